"""`llm-mcts label`: rows and costs by hand on known policies, and the command itself on the embedded one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trainers.labels.command
from llm_mcts.cli import main
from llm_mcts.config import load_config
from llm_mcts.errors import ConfigError, DataError, PolicyError
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.trees import load_tree, save_tree
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.arith import ArithTask
from llm_mcts.tree import Tree
from llm_mcts.types import State, Step, meter
from trainers.data.config import RowsConfig
from trainers.data.rows import SolutionRow
from trainers.labels.command import LabelConfig, label, summary
from trainers.labels.step_labels import OmegaConfig
from trainers.loop.train_command import read_rows, read_step_rows

PROBLEMS = ArithTask("easy").load("train", 3)
GOLD = {p.question: p.gold for p in PROBLEMS}


class KnownPolicy:
    """Completes any prefix with `#### ANSWER`; of n completions those in `right[number of steps so far]` are right.

    A bare question gets a line "a" in front. Each completion costs 10 tokens.
    """

    def __init__(self, right: dict[int, tuple[int, ...]], broken: str = "") -> None:
        self.right, self.broken = right, broken
        self.asked: list[tuple[str, tuple[str, ...], int]] = []

    async def propose(self, state: State, n: int, seed: int) -> list[Step]:
        raise AssertionError("labels need no proposals")

    async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
        if state.question == self.broken:
            raise RuntimeError("out of order")
        self.asked.append((state.question, tuple(s.text for s in state.steps), n))
        meter().generated_tokens += 10 * n
        before = () if state.steps else (Step("a"),)
        answers = [GOLD[state.question] if i in self.right.get(len(state.steps), ()) else "-1" for i in range(n)]
        return [state.then(*before, Step(f"#### {a}", terminal=True, answer=a)) for a in answers]


def known(monkeypatch: pytest.MonkeyPatch, policy: KnownPolicy) -> KnownPolicy:
    """Let the command's solver be one with this policy."""

    class Known:
        def __init__(self, config: Any) -> None:
            self.policy = policy

        def __enter__(self) -> "Known":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(trainers.labels.command, "Solver", Known)
    return policy


def config(**changes: Any) -> LabelConfig:
    given = {"task": TaskConfig(level="easy"), "num_questions": 3, "num_solutions": 3, "num_completions": 4}
    return LabelConfig(**{**given, **changes})


def test_math_shepherd_rows_and_costs_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Three solutions a question: right, wrong, wrong; the wrong ones are equal. Each has the steps a, #### N. The prefix "a" is
    # shared: four completions, three of them right: 0.75. The last step's label is the outcome, for nothing.
    policy = known(monkeypatch, KnownPolicy({0: (0,), 1: (0, 1, 3)}))
    report = label(config(), tmp_path / "out")
    rows = read_step_rows(tmp_path / "out" / "prm.jsonl")
    assert [(r.problem, r.labels) for r in rows] == [(p.id, labels) for p in PROBLEMS for labels in [(0.75, 1.0), (0.75, 0.0)]]
    assert rows[0].steps == ("a", f"#### {PROBLEMS[0].gold}")
    assert len(policy.asked) == 6
    # 3 questions x (3 + 4) completions of 10 tokens; 3 x 4 labels; 210 / 12 = 17.5.
    assert report["completions"] == 21
    assert (report["rows"], report["labels"], report["questions"], report["failed"]) == (6, 12, 3, 0)
    assert (report["generated_tokens"], report["tokens_per_label"]) == (210, 17.5)
    assert report["mean_label"] == pytest.approx((0.75 + 1 + 0.75 + 0) / 4)
    # "a" is no arithmetic: the task judges the answers alone, whose labels are the outcome.
    assert report["agreement_with_truth"] == 1.0
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())


def test_outcomes_are_rows_for_whole_solutions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Three solutions a question: right, wrong, wrong; the wrong ones are equal. Nothing is completed.
    policy = known(monkeypatch, KnownPolicy({0: (0,)}))
    report = label(config(method="outcome"), tmp_path / "out")
    rows = read_rows("orm", tmp_path / "out" / "solutions.jsonl", SolutionRow)
    assert [(r.problem, r.label) for r in rows] == [(p.id, label) for p in PROBLEMS for label in (1.0, 0.0)]
    assert len(policy.asked) == 3
    # 3 questions x 3 solutions of 10 tokens; 6 labels; 90 / 6 = 15.
    assert (report["completions"], report["generated_tokens"], report["tokens_per_label"]) == (9, 90, 15.0)
    assert (report["labels"], report["mean_label"], report["agreement_with_truth"]) == (6, 0.5, None)


def test_outcomes_balanced_by_question(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Numbered(KnownPolicy):
        """Every solution has a first line of its own."""

        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            ends = await super().rollout(state, n, seed, temperature)
            return [state.then(Step(f"line {i}"), end.steps[-1]) for i, end in enumerate(ends)]

    # Six solutions, the last alone right. At most four, two of each if there are: one right, three wrong.
    known(monkeypatch, Numbered({0: (5,)}))
    settings = config(method="outcome", num_questions=1, num_solutions=6, rows=RowsConfig(critic_per_question=4))
    label(replace(settings, balance=True), tmp_path / "out")
    rows = read_rows("orm", tmp_path / "out" / "solutions.jsonl", SolutionRow)
    assert [(r.steps[0], r.label) for r in rows] == [("line 5", 1.0), ("line 0", 0.0), ("line 1", 0.0), ("line 2", 0.0)]
    # Four right, two wrong: two of each. Without balance: all, as they were sampled.
    known(monkeypatch, Numbered({0: (1, 2, 3, 5)}))
    label(replace(settings, balance=True), tmp_path / "even")
    rows = read_rows("orm", tmp_path / "even" / "solutions.jsonl", SolutionRow)
    assert [(r.steps[0], r.label) for r in rows] == [("line 1", 1.0), ("line 2", 1.0), ("line 0", 0.0), ("line 4", 0.0)]
    label(settings, tmp_path / "all")
    rows = read_rows("orm", tmp_path / "all" / "solutions.jsonl", SolutionRow)
    assert [r.label for r in rows] == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]


def test_agreement_with_the_tasks_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem = PROBLEMS[0]
    assert problem.solution is not None
    first, second, last = problem.solution.split("\n")

    class Worked(KnownPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            ends = await super().rollout(state, n, seed, temperature)
            lines = [] if state.steps else [Step(first), Step(f"{second} 1 + 1 = 3")]
            return [state.then(*lines, end.steps[-1]) for end in ends]

    # Labels: after the first line 1.0 (right: agrees), after the second 0.5 (wrong by arithmetic: does not agree); behind it
    # nothing is judged. Both solutions have these lines: 2 of 4.
    known(monkeypatch, Worked({0: (0,), 1: (0, 1, 2, 3), 2: (0, 1)}))
    assert label(config(num_questions=1), tmp_path / "out")["agreement_with_truth"] == 0.5
    [row, _] = read_step_rows(tmp_path / "out" / "prm.jsonl")
    assert row.labels == (1.0, 0.5, 1.0)
    assert last == f"#### {problem.gold}"
    # A task that does not tell.
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps({"question": problem.question, "answer": problem.gold}))
    plain = config(task=TaskConfig("jsonl", str(file)))
    assert label(plain, tmp_path / "plain")["agreement_with_truth"] is None


def test_hard_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known(monkeypatch, KnownPolicy({1: (2,)}))
    label(config(hard=True, num_questions=1), tmp_path / "out")
    [row] = read_step_rows(tmp_path / "out" / "prm.jsonl")
    assert row.labels == (1.0, 0.0)


def test_omega_prm_rows_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The bare question: two of four right. The first wrong completion is a, #### -1: the search looks at (0 + 2) // 2 = 1 step:
    # "a", right in one of four: 0.25. So #### -1 is the first wrong step. Then nothing is left but the completions of "a".
    policy = known(monkeypatch, KnownPolicy({0: (0, 3), 1: (0,)}))
    report = label(config(method="omega_prm", num_questions=1, omega=OmegaConfig(num_searches=1)), tmp_path / "out")
    [row] = read_step_rows(tmp_path / "out" / "prm.jsonl")
    assert (row.steps, row.labels) == (("a",), (0.25,))
    assert [(steps, n) for _, steps, n in policy.asked] == [((), 4), (("a",), 4)]
    assert (report["completions"], report["tokens_per_label"]) == (8, 80.0)


def test_a_failure_is_a_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known(monkeypatch, KnownPolicy({1: (0,)}, broken=PROBLEMS[1].question))
    report = label(config(), tmp_path / "out")
    assert (report["questions"], report["failed"], report["rows"]) == (3, 1, 2)
    records = Journal(tmp_path / "out" / "questions.jsonl").read()
    assert [r["id"] for r in records] == [p.id for p in PROBLEMS]
    assert [r["error"] is None for r in records] == [True, False, True]
    assert "out of order" in records[1]["error"]
    assert records[1]["rows"] == []


def test_no_label_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known(monkeypatch, KnownPolicy({}, broken=PROBLEMS[0].question))
    with pytest.raises(DataError, match=r"none of 1 questions gave a label.*out of order"):
        label(config(num_questions=1), tmp_path / "out")
    assert not (tmp_path / "out" / "prm.jsonl").exists()
    known(monkeypatch, KnownPolicy({0: (0, 1, 2, 3)}))  # always right: OmegaPRM has nothing to search
    with pytest.raises(DataError, match="none of 3 questions gave a label; try"):
        label(config(method="omega_prm"), tmp_path / "other")


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Interrupted(KnownPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            if state.question == PROBLEMS[1].question:
                raise KeyboardInterrupt
            return await super().rollout(state, n, seed, temperature)

    known(monkeypatch, Interrupted({0: (0,), 1: (0, 1, 3)}))
    settings = config(concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        label(settings, tmp_path / "out")
    with (tmp_path / "out" / "questions.jsonl.part").open("ab") as file:
        file.write(b'{"id": "torn')
    with pytest.raises(ConfigError, match="--resume"):
        label(settings, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"num_completions \(was 4, now 5\)"):
        label(config(concurrency=1, num_completions=5), tmp_path / "out", resume=True)
    again = known(monkeypatch, KnownPolicy({0: (0,), 1: (0, 1, 3)}))
    report = label(settings, tmp_path / "out", resume=True)
    assert {question for question, _, _ in again.asked} == {p.question for p in PROBLEMS[1:]}
    known(monkeypatch, KnownPolicy({0: (0,), 1: (0, 1, 3)}))
    assert report == label(settings, tmp_path / "whole")
    for name in ("prm.jsonl", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Once more: complete already, so nothing is asked.
    idle = known(monkeypatch, KnownPolicy({}))
    assert label(settings, tmp_path / "out", resume=True) == report
    assert idle.asked == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"split": "test"}, "split is 'test'"),
        ({"method": "omega"}, "did you mean 'omega_prm'"),
        ({"num_completions": 0}, "num_completions is 0"),
        ({"num_solutions": 0}, "num_solutions is 0"),
        ({"method": "tree"}, "trees is None"),
        ({"balance": True}, "balance is true and method is 'math_shepherd'"),
        ({"trees": "x"}, "method is 'math_shepherd'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        config(**changes)


def test_the_summary_of_known_records() -> None:
    cost = {"generated_tokens": 30, "prefilled_tokens": 50, "critic_tokens": 20}
    records = [
        {"rows": [{"labels": [1.0, None, 0.5]}, {"labels": [0.0]}], "completions": 4, "error": None, "usage": cost},
        {"rows": [], "completions": 2, "error": None, "usage": {}},
        {"rows": [], "completions": 0, "error": "x", "usage": {"generated_tokens": 6}},
    ]
    found = summary("math_shepherd", records)
    # Three labels; 36 tokens sampled, 36 + 50 + 20 = 106 computed.
    assert (found["labels"], found["rows"], found["failed"], found["without_rows"]) == (3, 2, 1, 1)
    assert (found["tokens_per_label"], found["mean_label"]) == (12.0, 0.5)
    assert found["computed_tokens_per_label"] == pytest.approx(106 / 3)


# The command line


SMALL = ["--task.level", "easy", "--num_questions", "3", "--num_completions", "2", "--solver.policy.max_solution_tokens", "64"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Run a command that must fail; its one line on standard error."""

    def run(argv: list[str]) -> str:
        assert main(argv) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        return line

    return run


@pytest.mark.parametrize("method", ["math_shepherd", "omega_prm"])
def test_the_command_makes_rows_that_a_prm_learns_from(
    method: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels"
    assert main(["label", "--method", method, *SMALL, "--num_questions", "8", "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = read_step_rows(out / "prm.jsonl")
    assert len(rows) == report["rows"] > 0
    assert {row.question for row in rows} <= {p.question for p in ArithTask("easy").load("train", 8)}
    assert all(x is None or x in (0.0, 0.5, 1.0) for row in rows for x in row.labels)  # shares of two completions
    assert report["tokens_per_label"] == report["generated_tokens"] / report["labels"] > 0
    argv = ["train", "prm", str(out / "prm.jsonl"), "--out", str(tmp_path / "prm"), "--start", str(tiny_model)]
    assert main([*argv, "--head.width", "8"]) == 0
    assert (tmp_path / "prm" / "critic.json").exists()


def test_the_command_tells_what_labels_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["label", *SMALL, "--out", str(tmp_path / "labels")]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert f"{tmp_path}/labels/prm.jsonl: " in told
    assert "tokens sampled" in told
    assert "a label" in told
    assert main([*argv, "--resume"]) == 0
    assert capsys.readouterr().out == told


def test_bad_input_ends_in_one_line(refused: Callable[[list[str]], str], tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert "split is 'test'" in refused(["label", *SMALL, *out, "--split", "test"])
    assert "--out" in refused(["label", *SMALL])
    assert "did you mean 'method'" in refused(["label", *SMALL, *out, "--metod", "tree"])
    assert "is not a saved tree" in refused(
        ["label", *SMALL, *out, "--method", "tree", "--trees", str(tmp_path / "none.jsonl.gz")]
    )
    file = tmp_path / "questions.jsonl"
    file.write_text('{"id": "first", "question": "1 + 1?"}\n')
    task = ["--task.name", "jsonl", "--task.path", str(file)]
    assert "questions of split train have no answer, first for one" in refused(["label", *task, *out])
    assert not (tmp_path / "out").exists()


def test_labels_of_a_saved_tree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[[list[str]], str]
) -> None:
    problem = PROBLEMS[0]
    file = tmp_path / "tree.json.gz"
    argv = ["solve", problem.question, "--tree", str(file), "--search.name", "mcts", "--search.num_simulations", "8"]
    assert main([*argv, "--policy.max_solution_tokens", "64"]) == 0
    capsys.readouterr()
    out = tmp_path / "labels"
    assert main(["label", *SMALL, "--method", "tree", "--trees", str(file), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = read_step_rows(out / "prm.jsonl")
    assert {row.problem for row in rows} == {problem.id}
    # The label of a whole solution's last step is its outcome; of the others, the share of right solutions below.
    tree = load_tree(file)
    ends = [(tuple(s.text for s in t.state.steps), t.state.answer == problem.gold) for t in tree.traces()]
    for row in rows:
        for i, found in enumerate(row.labels, 1):
            below = [right for steps, right in ends if steps[:i] == row.steps[:i]]
            assert found == pytest.approx(sum(below) / len(below))
    assert report["generated_tokens"] == tree.usage.generated_tokens > 0
    assert report["completions"] == 0
    save_tree(Tree("Another?"), tmp_path / "other.json")
    line = refused(["label", *SMALL, "--method", "tree", "--trees", str(tmp_path / "other.json"), "--out", str(tmp_path / "x")])
    assert "'Another?', which is not among the first 3" in line


def test_labels_of_a_runs_trees(tmp_path: Path) -> None:
    tree = Tree(PROBLEMS[0].question)
    ends = [State(tree.question, (Step("a"), Step(f"#### {a}", terminal=True, answer=a))) for a in (PROBLEMS[0].gold, "-1")]
    tree.rollouts = [(tree.root, end, None) for end in ends]  # type: ignore[misc]
    cost = {"generated_tokens": 12}
    file = tmp_path / "trees.jsonl.gz"
    Journal(file).write(
        [
            {"id": PROBLEMS[0].id, "error": None, "usage": cost, "tree": tree.to_dict()},
            {"id": PROBLEMS[1].id, "error": "QuestionError: too long", "usage": {}},
        ]
    )
    report = label(config(method="tree", trees=str(file)), tmp_path / "out")
    rows = read_step_rows(tmp_path / "out" / "prm.jsonl")
    # Two solutions below "a", one of them right.
    assert [row.labels for row in rows] == [(0.5, 1.0), (0.5, 0.0)]
    assert (report["questions"], report["failed"], report["tokens_per_label"]) == (2, 1, 3.0)
    records = Journal(tmp_path / "out" / "questions.jsonl").read()
    assert "QuestionError: too long" in records[1]["error"]
    file.write_bytes(b"rubbish")
    with pytest.raises(DataError, match="has no trees"):
        label(config(method="tree", trees=str(file)), tmp_path / "other")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[3] / "configs" / "label").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_configuration_loads_and_is_named_after_its_method(path: Path) -> None:
    assert load_config(LabelConfig, path).method == path.stem


def test_memory_that_runs_out_ends_the_command_and_is_no_failed_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Hungry(KnownPolicy):
        async def rollout(self, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
            if state.question == PROBLEMS[1].question:
                raise MemoryError("no room")
            return await super().rollout(state, n, seed, temperature)

    known(monkeypatch, Hungry({0: (0,), 1: (0, 1, 3)}))
    with pytest.raises(PolicyError, match="MemoryError: no room"):
        label(config(concurrency=1), tmp_path / "out")
    kept = Journal(tmp_path / "out" / "questions.jsonl").read()
    assert PROBLEMS[1].id not in {row["id"] for row in kept}
    assert {row["error"] for row in kept} == {None}
