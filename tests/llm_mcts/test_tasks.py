"""Tasks: the built-in word problems checked by an independent reader of their stories, and data files read strictly."""

import json
import random
import re
from fractions import Fraction
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.tasks import TASKS, TaskConfig, get_task
from llm_mcts.tasks.arith import ArithProblem, ArithTask, distinct, draw, split_of, stream
from llm_mcts.tasks.arith_stories import LEVELS, Operation, Ref
from llm_mcts.tasks.base import AnswerTask, Task
from llm_mcts.tasks.gsm8k import GSM8KTask
from llm_mcts.tasks.jsonl import JsonlTask, read_jsonl

quick = settings(max_examples=50)

LEVEL_NAMES = ["easy", "medium", "hard"]
SPLITS = ["train", "dev", "test"]
# From the module's documentation: operations, largest number, largest result.
DOCUMENTED = {"easy": ({2}, 12, 50), "medium": ({3}, 20, 99), "hard": ({4, 5}, 35, 110)}


def calculate(text: str) -> Fraction:
    """A recursive-descent calculator for + - * / and brackets, left-associative."""
    tokens = re.findall(r"\d+|[-+*/()]", text)
    assert "".join(tokens) == text.replace(" ", "")

    def atom() -> Fraction:
        token = tokens.pop(0)
        if token != "(":
            return Fraction(int(token))
        value = total()
        assert tokens.pop(0) == ")"
        return value

    def product() -> Fraction:
        value = atom()
        while tokens and tokens[0] in "*/":
            value = value * atom() if tokens.pop(0) == "*" else value / atom()
        return value

    def total() -> Fraction:
        value = product()
        while tokens and tokens[0] in "+-":
            value = value + product() if tokens.pop(0) == "+" else value - product()
        return value

    value = total()
    assert not tokens
    return value


def equation(line: str) -> tuple[Fraction, Fraction]:
    """Both sides of the equation inside a worked line."""
    match = re.search(r"([\d(][\d+*/() -]*) = (\d+)", line)
    assert match, line
    return calculate(match[1]), Fraction(match[2])


def retell(question: str) -> Fraction:
    """The answer that the question's own words imply, read sentence by sentence."""
    total = Fraction(0)
    answer = None
    for sentence in re.findall(r"[^.?]+[.?]", question):
        n = [Fraction(number) for number in re.findall(r"\d+", sentence)]
        if "keeps 1 of" in sentence:
            total /= n[1]
        elif "gives half" in sentence:
            total /= 2
        elif "doubles" in sentence:
            total *= 2
        elif "triples" in sentence:
            total *= 3
        elif "times as many" in sentence:
            total *= n[0]
        elif "to each of" in sentence:
            total -= n[0] * n[1]
        elif re.search(r"Then \w+ buys \d+ \w+ with", sentence):
            total += n[0] * n[1]
        elif " each" in sentence and " has " in sentence:
            total = n[0] * n[1]
        elif "Now " in sentence:
            answer = total + total + n[0]
        elif "sells them all" in sentence:
            answer = total * n[0]
        elif re.search(r"more \w+ than", sentence) or re.search(r"(buys|gives \w+) \d+ more", sentence):
            total += n[0]
        elif re.search(r"(gives|loses) \d+", sentence):
            total -= n[0]
        elif sentence.strip().startswith("How many"):
            answer = total if answer is None else answer
        else:
            assert re.fullmatch(r" ?\w+ has \d+ \w+\.", sentence), sentence
            total = n[0]
    assert answer is not None
    return answer


def some(level: str, n: int, seed: int = 0) -> list[ArithProblem]:
    rng = random.Random(seed)
    return [draw(rng, LEVELS[level]) for _ in range(n)]


def test_the_calculator_itself() -> None:
    assert calculate("2 + 3 * (4 - 1) / 9") == 3  # 2 + 9 / 9
    assert calculate("10 - 4 - 3") == 3
    assert calculate("7 / 2 / 2") == Fraction(7, 4)


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_every_step_is_true_and_the_last_is_the_answer(level: str) -> None:
    for problem in some(level, 300):
        *lines, answer = problem.solution().split("\n")
        for line in lines:
            left, right = equation(line)
            assert left == right
        assert answer == f"#### {equation(lines[-1])[1]}"
        assert answer == f"#### {problem.gold}"


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_the_solution_solves_the_question_as_told(level: str) -> None:
    for problem in some(level, 300, seed=1):
        assert str(retell(problem.question)) == problem.gold


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_operation_counts_and_results_fit_the_level(level: str) -> None:
    counts, _, largest = DOCUMENTED[level]
    problems = some(level, 300, seed=2)
    seen = {len(p.solution().split("\n")) - 1 for p in problems}
    assert seen == counts
    for problem in problems:
        for line in problem.solution().split("\n")[:-1]:
            assert 1 <= equation(line)[1] <= largest


def test_told_numbers_fit_the_level() -> None:
    for level in LEVEL_NAMES:
        told = [int(n) for p in some(level, 300, seed=3) for n in re.findall(r"\d+", p.question)]
        assert max(told) <= DOCUMENTED[level][1]


def test_no_event_of_nothing() -> None:
    told = [int(n) for p in some("hard", 2000, seed=4) for n in re.findall(r"\d+", p.question)]
    assert min(told) >= 1


@quick
@given(st.integers(0, 10**9), st.sampled_from(LEVEL_NAMES), st.sets(st.integers(0, 4)))
def test_hidden_steps_are_worked_inside_with_the_right_brackets(seed: int, level: str, shown: set[int]) -> None:
    problem = draw(random.Random(seed), LEVELS[level])
    last = len(problem.operations) - 1
    *lines, answer = problem.solution(shown).split("\n")
    assert len(lines) == len({i for i in shown if i <= last} | {last})
    for line in lines:
        left, right = equation(line)
        assert left == right
    assert answer == f"#### {problem.gold}"


@pytest.mark.parametrize(
    ("first", "symbol", "left", "right", "value", "written"),
    [
        (("+", 2, 3, 5), "-", 10, Ref(0), 5, "10 - (2 + 3)"),
        (("-", 7, 3, 4), "-", 10, Ref(0), 6, "10 - (7 - 3)"),
        (("*", 2, 3, 6), "-", 10, Ref(0), 4, "10 - 2 * 3"),
        (("-", 7, 3, 4), "+", 10, Ref(0), 14, "10 + 7 - 3"),
        (("+", 2, 3, 5), "*", Ref(0), 4, 20, "(2 + 3) * 4"),
        (("+", 2, 3, 5), "*", 4, Ref(0), 20, "4 * (2 + 3)"),
        (("-", 9, 3, 6), "/", Ref(0), 2, 3, "(9 - 3) / 2"),
        (("*", 2, 3, 6), "/", 60, Ref(0), 10, "60 / (2 * 3)"),
        (("/", 12, 3, 4), "/", 60, Ref(0), 15, "60 / (12 / 3)"),
        (("/", 12, 3, 4), "/", Ref(0), 2, 2, "12 / 3 / 2"),
        (("-", 9, 3, 6), "-", Ref(0), 2, 4, "9 - 3 - 2"),
        (("/", 12, 3, 4), "*", 5, Ref(0), 20, "5 * 12 / 3"),
    ],
)
def test_brackets_by_hand(
    first: tuple[str, int, int, int], symbol: str, left: int | Ref, right: int | Ref, value: int, written: str
) -> None:
    operations = (Operation(*first, "First {work}."), Operation(symbol, left, right, value, "Then {work}."))
    problem = ArithProblem("?", operations, "made by hand")
    assert problem.solution(set()) == f"Then {written} = {value}.\n#### {value}"
    assert calculate(written) == value


def test_hiding_steps_does_not_change_the_callers_set() -> None:
    shown = {0}
    some("hard", 1)[0].solution(shown)
    assert shown == {0}


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_splits_share_no_signature_whatever_the_seeds(level: str) -> None:
    drawn = {split: {p.signature for seed in (0, 1, 2) for p in islice(stream(split, level, seed), 60)} for split in SPLITS}
    assert min(map(len, drawn.values())) > 100
    assert drawn["train"].isdisjoint(drawn["dev"])
    assert drawn["train"].isdisjoint(drawn["test"])
    assert drawn["dev"].isdisjoint(drawn["test"])


def test_no_question_of_one_split_is_told_in_another() -> None:
    told = {s: {p.question for seed in (3, 4) for p in ArithTask("medium").load(s, 100, seed)} for s in SPLITS}
    assert told["train"].isdisjoint(told["dev"] | told["test"])
    assert told["dev"].isdisjoint(told["test"])


def test_split_shares() -> None:
    # 4000 draws at 0.8, 0.1, 0.1: the standard deviations are 25, 19 and 19; the margins are 5 of them.
    found = [split_of(f"has buy count|{i} {i + 1}") for i in range(4000)]
    assert abs(found.count("train") - 3200) < 127
    assert abs(found.count("dev") - 400) < 95
    assert abs(found.count("test") - 400) < 95


def test_same_seed_same_problems_and_another_seed_others() -> None:
    task = ArithTask("hard")
    first = task.load("dev", 30, seed=5)
    assert task.load("dev", 30, seed=5) == first
    assert task.load("dev", 10, seed=5) == first[:10]
    assert [p.question for p in task.load("dev", 30, seed=6)] != [p.question for p in first]


def test_problems_of_a_load_are_distinct_and_200_by_default() -> None:
    problems = ArithTask("easy").load("test")
    assert len(problems) == 200
    assert len({p.id for p in problems}) == 200
    assert len({p.question for p in problems}) == 200


def test_more_than_there_is_is_an_error_and_no_endless_loop() -> None:
    class OneProblem:
        def __iter__(self) -> "OneProblem":
            return self

        def __next__(self) -> ArithProblem:
            return problem

    problem = some("easy", 1)[0]
    with pytest.raises(ConfigError, match="no 2 distinct problems"):
        list(distinct(OneProblem(), 2))


def test_arith_checks_its_own_solutions_and_nothing_else() -> None:
    task = ArithTask("hard")
    for problem in task.load("train", 50):
        assert problem.solution is not None
        assert problem.gold is not None
        assert task.check(problem.solution, problem.gold)
        assert not task.check(problem.solution.rsplit("\n", 1)[0], problem.gold)
        assert not task.check(f"#### {int(problem.gold) + 1}", problem.gold)


@pytest.mark.parametrize(("split", "level"), [("tst", "hard"), ("test", "hrd")])
def test_arith_names_what_it_does_not_know(split: str, level: str) -> None:
    with pytest.raises(ConfigError, match=r"did you mean '(test|hard)'"):
        ArithTask(level).load(split, 1)


@pytest.mark.parametrize(
    ("solution", "gold", "right"),
    [
        ("2 + 3 = 5\n#### 5", "5", True),
        ("The answer is $1,200.", "1200", True),
        ("\\boxed{0.50}", "0.5", True),
        ("A: 25%", "25", True),
        ("2 + 3 = 5", "5", False),
        ("", "5", False),
        ("#### 5.001", "5", False),
        ("#### 2+3", "5", False),
        ("####", "", False),
    ],
)
def test_check(solution: str, gold: str, right: bool) -> None:
    assert AnswerTask().check(solution, gold) is right


# GSM8K


@pytest.fixture
def gsm8k(tmp_path: Path) -> Path:
    def row(i: int) -> str:
        return json.dumps({"question": f"What is {i} + 1,000?", "answer": f"{i} + 1000 = {i + 1000}\n#### {i + 1000:,}"})

    (tmp_path / "train.jsonl").write_text("\n".join(row(i) for i in range(10)) + "\n")
    (tmp_path / "test.jsonl").write_text("\n".join(row(i) for i in (50, 51, 52)) + "\n\n")
    return tmp_path


def test_gsm8k_holds_the_last_training_problems_out_as_dev(gsm8k: Path) -> None:
    task = GSM8KTask(str(gsm8k), held_out=3)
    train, dev, test = (task.load(split) for split in SPLITS)
    assert [p.question for p in train] == [f"What is {i} + 1,000?" for i in range(7)]
    assert [p.question for p in dev] == [f"What is {i} + 1,000?" for i in (7, 8, 9)]
    assert [p.gold for p in test] == ["1050", "1051", "1052"]
    assert len({p.id for p in [*train, *dev, *test]}) == 13
    assert task.load("dev", 2) == dev[:2]
    assert task.load("train", 0) == []
    assert train[0].solution is not None
    assert task.check(train[0].solution, "1,000")


def test_gsm8k_holding_out_everything_is_refused(gsm8k: Path) -> None:
    with pytest.raises(ConfigError, match="held_out is 10 of 10"):
        GSM8KTask(str(gsm8k), held_out=10).load("train")
    assert len(GSM8KTask(str(gsm8k), held_out=10).load("test")) == 3


def test_gsm8k_knows_its_splits(gsm8k: Path) -> None:
    with pytest.raises(ConfigError, match="no split 'validation'"):
        GSM8KTask(str(gsm8k)).load("validation")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a list"),
        ('{"question": "q"}', '"question" and "answer"'),
        ('{"question": 5, "answer": "#### 5"}', '"question" and "answer"'),
        ('{"question": "q", "answer": "it is 5"}', "####"),
    ],
)
def test_a_broken_line_is_named(gsm8k: Path, line: str, found: str) -> None:
    file = gsm8k / "test.jsonl"
    file.write_text(file.read_text().replace("\n\n", "\n") + f"\n{line}\n")  # three rows, a blank line, then line 5
    with pytest.raises(DataError) as caught:
        GSM8KTask(str(gsm8k)).load("test")
    assert str(caught.value).startswith(f"{file}:5: ")
    assert found in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        GSM8KTask(str(tmp_path)).load("test")
    assert str(tmp_path / "test.jsonl") in str(caught.value)


def test_gsm8k_answer_without_a_number_is_broken(gsm8k: Path) -> None:
    (gsm8k / "test.jsonl").write_text('{"question": "q", "answer": "so it is 5\\n####"}\n')
    with pytest.raises(DataError):
        GSM8KTask(str(gsm8k)).load("test")


def test_gsm8k_negative_held_out_is_refused(gsm8k: Path) -> None:
    with pytest.raises(ConfigError):
        GSM8KTask(str(gsm8k), held_out=-1).load("train")


# A user's own file


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_jsonl_rows(tmp_path: Path) -> None:
    file = write(
        tmp_path / "mine.jsonl",
        {"question": " How many? ", "answer": "1,200 apples"},
        {"question": "Worked?", "answer": "2 + 3 = 5\n#### 5", "id": "w"},
        {"question": "Number?", "answer": 7},
        {"question": "Unknown?"},
        {"question": "Text?", "answer": "Blue"},
    )
    first, worked, number, unknown, text = JsonlTask(file).load("anything")
    assert (first.id, first.question, first.gold, first.solution) == ("mine-1", "How many?", "1200", None)
    assert (worked.id, worked.gold, worked.solution) == ("w", "5", "2 + 3 = 5\n#### 5")
    assert (number.gold, number.solution) == ("7", None)
    assert (unknown.gold, unknown.solution) == (None, None)
    assert text.gold == "blue"
    assert len(JsonlTask(file).load("test", 2)) == 2


def test_jsonl_folder_has_a_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "dev.jsonl", {"question": "d"})
    write(tmp_path / "test.jsonl", {"question": "t"})
    assert [p.question for p in JsonlTask(str(tmp_path)).load("dev")] == ["d"]
    assert [p.question for p in JsonlTask(str(tmp_path)).load("test")] == ["t"]
    with pytest.raises(DataError, match=r"train\.jsonl"):
        JsonlTask(str(tmp_path)).load("train")


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "q", "answer": %s}' % ("1" * 5000),
        "[" * 100_000,
        '{"question": "half a pair: \\ud800"}',
        '{"question": "q", "answer": true}',
        "{",
        "7",
        '"text"',
        '{"question": ""}',
        '{"question": "  "}',
        '{"answer": "5"}',
        '{"question": "q", "answer": [5]}',
    ],
)
def test_jsonl_broken_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(f'{{"question": "fine"}}\n\n{line}\n')
    with pytest.raises(DataError) as caught:
        JsonlTask(str(file)).load("test")
    assert str(caught.value).startswith(f"{file}:3: ")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_jsonl_without_problems(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match="holds no problem"):
        JsonlTask(str(file)).load("test")


def test_jsonl_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"question": "1 + 1?", "answer": 2}\n')
    assert [(p.question, p.gold) for p in JsonlTask(str(file)).load("test")] == [("1 + 1?", "2")]


def test_jsonl_must_be_utf8(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(b'{"question": "\xff"}\n')
    with pytest.raises(DataError, match=r"mine\.jsonl.*UTF-8"):
        list(read_jsonl(file))


@quick
@given(st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=8), max_size=2), max_size=4))
def test_jsonl_reads_what_json_writes(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert list(read_jsonl(file)) == list(enumerate(rows, 1))


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"])
def test_jsonl_lines_end_at_newlines_only(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"question": f"a{separator}b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [row for _, row in read_jsonl(file)] == [{"question": f"a{separator}b"}]


def test_jsonl_limit_of_zero_is_no_error(tmp_path: Path) -> None:
    assert JsonlTask(write(tmp_path / "mine.jsonl", {"question": "q"})).load("test", 0) == []


def test_jsonl_empty_answer_is_no_answer(tmp_path: Path) -> None:
    assert JsonlTask(write(tmp_path / "mine.jsonl", {"question": "q", "answer": " "})).load("test")[0].gold is None


def test_jsonl_large_float_is_its_number(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "q", "answer": 0.00001}\n')
    assert JsonlTask(str(tmp_path / "mine.jsonl")).load("test")[0].gold == "0.00001"


def test_jsonl_repeated_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        JsonlTask(write(tmp_path / "mine.jsonl", {"question": "a", "id": "x"}, {"question": "b", "id": "x"})).load("test")


# Tasks by name


def test_every_task_is_a_task(tmp_path: Path) -> None:
    options = {"arith": {}, "gsm8k": {}, "jsonl": {"path": "x"}}
    assert set(TASKS) == set(options)
    for name, given_options in options.items():
        task = get_task(name, **given_options)
        assert isinstance(task, Task)
        assert task.name == name


def test_task_config_builds_and_refuses() -> None:
    assert TaskConfig().build() == ArithTask("hard")
    assert TaskConfig("arith", level="easy").build() == ArithTask("easy")
    assert TaskConfig("gsm8k", path="here").build() == GSM8KTask("here")
    assert TaskConfig("jsonl", path="file").build() == JsonlTask("file")
    with pytest.raises(ConfigError, match="did you mean 'gsm8k'"):
        TaskConfig("gsm8")
    with pytest.raises(ConfigError, match="did you mean 'medium'"):
        TaskConfig("arith", level="medum")
    with pytest.raises(ConfigError, match=r"task\.path"):
        TaskConfig("jsonl")
    with pytest.raises(ConfigError, match="did you mean 'arith'"):
        get_task("aritm")
