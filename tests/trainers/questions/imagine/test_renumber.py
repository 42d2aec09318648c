"""Other numbers and hidden ones: what stays, what changes, and that stories still hold."""

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError
from llm_mcts.tasks.arith import ArithTask
from tests.story_cases import amounts
from trainers.questions.imagine.renumber import NumbersConfig, change_numbers, hide_number, numbers_in
from trainers.questions.imagine.rework import equations_of, makes_sense, reworked

F = Fraction


def changed(question: str, seed: int = 0, **config: float) -> str:
    found = change_numbers(question, NumbersConfig(**config), seed)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    "question",
    [
        "She ate 1/2 of it and 0 of 1 pie.",
        "He came at 7:30, left at 9 pm, or at 5 o'clock.",
        "In 2010 and since 1998 they were 2nd on May 5 in Grade 7.",
        "It was open 7 days a week, 24 hours a day; an hour has 60 minutes in an hour.",
        "They gave 100% in a ratio of 2:3 for 5kg.",
        "On the 3rd of March, the 4 June and Day 2.",
        "No figures at all, but three words.",
    ],
)
def test_these_stay(question: str) -> None:
    assert numbers_in(question) == []
    assert change_numbers(question, NumbersConfig(), 0) is None


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Weng earns $12 an hour, 50 minutes long.", ["12", "50"]),
        ("A 120-page book costs $1,250.50 or 25%.", ["120", "1,250.50", "25"]),
        ("They work 5 days a week. 2000 people came in 2000.", []),  # 2000 stays as a year, and then everywhere
        ("At 4 o'clock he had 4 pens and 6 pins.", ["6"]),
        ("He has 3, 4 and 5.", ["3", "4", "5"]),
    ],
)
def test_these_may_change(question: str, expected: list[str]) -> None:
    found = [n.text for n in numbers_in(question)]
    assert found == (["5"] if "days a week" in question else expected)


@pytest.mark.parametrize("seed", range(20))
def test_new_numbers_keep_form_and_size(seed: int) -> None:
    text = changed("$3.50 for 300 pins, 25% off 1,200 pens, 5 days a week", seed)
    match = re.fullmatch(r"\$(\d+\.\d\d) for (\d+) pins, (\d+)% off ([\d,]+) pens, (\d) days a week", text)
    assert match is not None
    price, pins, percent, pens, days = match.groups()
    assert 1.75 <= float(price) <= 7
    assert float(price) * 2 == int(float(price) * 2)  # as round as 3.50
    assert 150 <= int(pins) <= 600
    assert int(pins) % 50 == 0
    assert 10 <= int(percent) <= 50
    assert int(percent) % 5 == 0
    assert 600 <= int(pens.replace(",", "")) <= 2400
    assert days in "23467"


@pytest.mark.parametrize("seed", range(10))
def test_order_divisors_and_halves_are_kept(seed: int) -> None:
    text = changed("He gives half of 36 pens in 6 boxes to 4 friends", seed)
    pens, boxes, friends = map(int, re.findall(r"\d+", text))
    assert pens > boxes > friends
    assert pens % boxes == pens % friends == 0  # 6 and 4 divide 36
    assert pens % 2 == boxes % 2 == friends % 2 == 0  # all were even, and a half is spoken of


def test_equal_numbers_stay_equal_and_seeds_decide() -> None:
    text = changed("7 pens, 7 pins and 9 pots", 3)
    first, second, _ = re.findall(r"\d+", text)
    assert first == second
    assert text == changed("7 pens, 7 pins and 9 pots", 3)
    assert len({changed("70 pens and 90 pots", seed) for seed in range(10)}) > 3


def test_a_percentage_stays_below_the_whole() -> None:
    for seed in range(30):
        percent = int(changed("80% of them", seed).partition("%")[0])
        assert 40 <= percent < 100
        assert percent != 80


WORDS = st.sampled_from(["pens", "half", "$", "%", "days a week", "cost", "1/2", "in", "pm", "."])
NUMBERS = st.one_of(
    st.just("123,456,789"),
    st.just("9" * 5000),
    st.integers(0, 3000).map(str),
    st.decimals(0, 500, places=2).map(str),
    st.just("1,250"),
)


@given(st.lists(st.one_of(WORDS, NUMBERS), max_size=12), st.integers(0, 5))
def test_the_question_never_stays_as_it_was(words: list[str], seed: int) -> None:
    question = " ".join(words)
    found = change_numbers(question, NumbersConfig(draws=3), seed)
    if found is not None:
        text, changes = found
        assert text != question
        assert changes
        assert all(old != new and new > 0 for old, new in changes.items())
        assert re.sub(r"[\d,.]+", "#", text) == re.sub(r"[\d,.]+", "#", question)


def test_a_reference_solution_is_worked_again_by_hand() -> None:
    solution = "She sold 48/2 = <<48/2=24>>24 in May.\nThat is 48+24 = <<48+24=72>>72.\n#### 72"
    assert equations_of(solution) == [("48/2", "24"), ("48+24", "72")]
    assert reworked(solution, {F(48): F(60)}) == [(F(24), F(30)), (F(72), F(90))]
    assert makes_sense(solution, {F(48): F(60)})
    assert not makes_sense(solution, {F(48): F(61)})  # 61/2 is no longer whole
    assert not makes_sense("10 - 4 = 6", {F(10): F(3), F(4): F(5)})  # negative
    assert makes_sense("12 / 48 = 0.25", {F(12): F(24)})  # 0.5: cents
    assert not makes_sense("12 / 48 = 0.25", {F(48): F(36)})  # 1/3: not even cents


def test_an_equation_that_could_be_read_two_ways_ends_it() -> None:
    # 5 is a result and one of the question's numbers: 20 - 5 could use either. The last of two equal results is meant.
    assert reworked("10 / 2 = 5\n20 - 5 = 15", {F(10): F(20), F(5): F(6)}) == [(F(5), F(10))]
    assert reworked("2 * 4 = 8\n10 - 2 = 8\n8 + 1 = 9", {F(4): F(5)})[-1] == (F(9), F(9))
    assert reworked("2 + 2 = 5", {F(2): F(3)}) == []


def test_changed_stories_still_hold_together() -> None:
    sound = broken = 0
    for seed, problem in enumerate(ArithTask("hard").load("train", 60)):
        assert problem.solution is not None
        solution = problem.solution
        found = change_numbers(problem.question, NumbersConfig(), seed, lambda c, s=solution: makes_sense(s, c))  # type: ignore[misc]
        assert found is not None
        fine = all(n > 0 and n.denominator == 1 for n in amounts(found[0]))
        if len(reworked(solution, found[1])) == len(equations_of(solution)):
            assert fine
        sound += fine
        broken += not fine
    assert sound >= 50  # the others have a number that could be two things


def test_a_hidden_number_is_the_answer() -> None:
    found = hide_number("Ben has 4 pens and 9 pins. How many?", "13", 0, 0)
    assert found is not None
    text, gold = found
    assert gold in ("4", "9")
    asked = "If we know the answer to the above question is 13, what is the value of unknown variable x?"
    assert text == "Ben has 4 pens and 9 pins. How many? ".replace(f" {gold} ", " x ") + asked


def test_a_number_that_stands_twice_cannot_be_hidden() -> None:
    assert hide_number("He has 4 pens and 4 pins. How many?", "8", 0, 0) is None
    first, second = (hide_number("4 pens, 9 pins, 4 pots, 3 pans?", "20", 1, i) for i in (0, 1))
    assert first is not None
    assert second is not None
    assert {first[1], second[1]} == {"9", "3"}
    assert hide_number("4 pens, 9 pins, 4 pots, 3 pans?", "20", 1, 2) is None
    assert hide_number("He has 9 pens, and 6 are blue. Pens?", "9", 0, 0) == hide_number(
        "He has 9 pens, and 6 are blue. Pens?", "9", 1, 0
    )


def test_another_letter_where_x_is_taken() -> None:
    found = hide_number("A board of 9 x 12 squares", "108", 0, 0)
    assert found is not None
    assert "unknown variable y?" in found[0]


@pytest.mark.parametrize("level", ["easy", "medium", "hard"])
def test_backward_answers_hold_by_arithmetic(level: str) -> None:
    checked = 0
    for seed, problem in enumerate(ArithTask(level).load("train", 40)):  # type: ignore[arg-type]
        assert problem.gold is not None
        if (found := hide_number(problem.question, problem.gold, seed, 0)) is None:
            continue
        story, asked = found[0].split(" If we know ")
        assert f"question is {problem.gold}," in asked
        assert amounts(re.sub(r"\bx\b", found[1], story))[-1] == F(problem.gold)
        wrong = [
            n for n in range(1, 200) if n != int(found[1]) and amounts(re.sub(r"\bx\b", str(n), story))[-1] == F(problem.gold)
        ]
        assert wrong == []  # no other number gives that answer
        checked += 1
    assert checked > 30


@pytest.mark.parametrize("bad", [{"low": 0.0}, {"low": 1.0}, {"high": 1.0}, {"draws": 0}])
def test_settings_are_checked(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ConfigError, match=rf"numbers\.{name} is {value}; expected a"):
        NumbersConfig(**bad)  # type: ignore[arg-type]
