"""Answers: what counts as stated, what counts as equal, and that no text is ever evaluated."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_mcts.tasks.answers import extract_answer, format_number, normalise_answer, parse_number, same_answer

quick = settings(max_examples=50)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("18", "18"),
        (" 18 ", "18"),
        ("18.", "18"),
        ("18 .", "18"),
        ("18;", "18"),
        ("+18", "18"),
        ("-18", "-18"),
        ("\u221218", "-18"),
        ("-0", "0"),
        ("-0.00", "0"),
        ("007", "7"),
        ("1,200", "1200"),
        ("1,234,567.50", "1234567.5"),
        ("0.50", "0.5"),
        (".5", "0.5"),
        ("3.000", "3"),
        ("$18", "18"),
        ("$1,200.00", "1200"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("€ 7", "7"),
        ("\\$18", "18"),
        ("50%", "50"),
        ("50 %", "50"),
        ("50\\%", "50"),
        ("18 apples", "18"),
        ("18 dollars.", "18"),
        ("3/4 cup", "0.75"),
        ("1/2", "0.5"),
        ("2/6", "1/3"),
        ("-1/3", "-1/3"),
        ("\\frac{1}{2}", "0.5"),
        ("\\dfrac{ 3 }{ 4 }", "0.75"),
        ("-\\frac{1}{3}", "-1/3"),
        ("\\boxed{18}", "18"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("\\boxed{\\text{Monday}}", "monday"),
        ("5\\text{ cm}", "5"),
        ("**18**", "18"),
        ("`18`", "18"),
        ("Blue  Whale", "blue whale"),
        ("", ""),
        ("  .  ", ""),
    ],
)
def test_one_spelling(written: str, expected: str) -> None:
    assert normalise_answer(written) == expected


@pytest.mark.parametrize(
    "text",
    [
        "3 or 4",
        "3 or four",
        "3, 4",
        "1,23",
        "1,2345",
        "1.2.3",
        "2+3",
        "2 * 3",
        "7-2",
        "2**3",
        "2^3",
        "1/0",
        "1/2/3",
        "1/2.5",
        "1e5",
        "x = 5",
        "(5)",
        "1 200",
        "3:30",
        "five",
        "__import__('os').getpid()",
        "int('5')",
        "",
    ],
)
def test_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("formula", "value"),
    [("2+3", "5"), ("2 * 3", "6"), ("7-2", "5"), ("2**3", "8"), ("10 - 4 = 6", "6"), ("int('5')", "5"), ("len('abc')", "3")],
)
def test_formulas_are_never_evaluated(formula: str, value: str) -> None:
    assert not same_answer(formula, value)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("3.33", "10/3"),
        ("3.3333333333333333333333", "10/3"),
        ("0.30000000000000004", "0.3"),
        ("18", "18.0000000001"),
        ("9007199254740993", "9007199254740992"),
        ("5", "-5"),
        ("1200", "12"),
        ("50%", "0.5"),
        ("5", ""),
        ("", ""),
        ("5", "five"),
        ("3 or 4", "3"),
    ],
)
def test_no_tolerance(a: str, b: str) -> None:
    assert not same_answer(a, b)
    assert not same_answer(b, a)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 = 5\n#### 5", "5"),
        ("#### $1,200.00", "1200"),
        ("####5", "5"),
        ("#### 5 \n\n", "5"),
        ("#### 4\nno, wait\n#### 5", "5"),
        ("so \\boxed{12}", "12"),
        ("\\boxed{3} and then \\boxed{4}", "4"),
        ("\\boxed{\\frac{1}{4}} is it", "0.25"),
        ("$\\boxed{\\text{Monday}}$", "monday"),
        ("\\boxed{5} and \\boxed{6", "5"),
        ("The answer is 7.", "7"),
        ("the answer is: 7", "7"),
        ("So the final answer is $7.50.", "7.5"),
        ("The answer is 7 because I say so.", "7"),
        ("Answer: 7", "7"),
        ("FINAL ANSWER: 7 apples", "7"),
        ("The answer is 6.\nThe answer is 7.", "7"),
        ("A: 9", "9"),
        ("Q: what?\nA: 8\nA: 9", "9"),
        # The order of the markers, not their place, decides.
        ("#### 1\n\\boxed{2}\nThe answer is 3\nA: 4", "1"),
        ("A: 4\nThe answer is 3\n\\boxed{2}", "2"),
        ("A: 4\nThe answer is 3", "3"),
        # A marker that states nothing gives way to the next.
        ("The answer is 3\n####", "3"),
        ("\\boxed{}\nA: 4", "4"),
    ],
)
def test_stated_answers(text: str, expected: str) -> None:
    assert extract_answer(text) == expected


@pytest.mark.parametrize("text", ["", "5", "2 + 3 = 5", "The total is 5.", "####", "\\boxed{5", "BA: 5", "I have 5 answers"])
def test_nothing_stated(text: str) -> None:
    assert extract_answer(text) is None


@quick
@given(st.integers(-(10**12), 10**12))
def test_every_dress_of_an_integer(n: int) -> None:
    plain = str(n)
    for dressed in (f"{n:,}", f"{n}.00", f"{n:,}.0", f"{n}.", f" {n} apples", f"{n}%", f"**{n}**", f"\\boxed{{{n}}}", f"{n}/1"):
        assert normalise_answer(dressed) == plain
    sign = "-" if n < 0 else ""
    assert normalise_answer(f"{sign}${abs(n):,}") == plain


@quick
@given(st.integers(-(10**9), 10**9), st.integers(0, 12))
def test_decimals_keep_every_digit(mantissa: int, places: int) -> None:
    exact = Decimal(mantissa).scaleb(-places)
    shortest = f"{exact.normalize():f}" if mantissa else "0"
    assert normalise_answer(f"{exact:f}") == shortest
    assert normalise_answer(f"{exact:f}000" if places else f"{mantissa}.000") == shortest


@quick
@given(st.fractions())
def test_a_formatted_number_reads_back(value: Fraction) -> None:
    text = format_number(value)
    assert parse_number(text) == value
    assert normalise_answer(text) == text


@quick
@given(st.fractions(), st.fractions())
def test_fractions_are_equal_when_their_values_are(a: Fraction, b: Fraction) -> None:
    def written(x: Fraction, factor: int) -> str:
        return f"{x.numerator * factor}/{x.denominator * factor}"

    assert same_answer(written(a, 1), written(b, 3)) is (a == b)
    assert same_answer(written(a, 7), written(a, 1))


@quick
@given(st.text(alphabet="abcXYZ019 ,-", max_size=20))
def test_normalising_plain_text_twice_changes_nothing(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@quick
@given(st.text(max_size=30))
def test_an_extracted_answer_is_never_empty(text: str) -> None:
    answer = extract_answer(f"{text}\n#### {text}")
    assert answer != ""


@pytest.mark.parametrize("text", ["x . .", "**x**.", "* **5**", "\\BOXED{5}", "\\TEXT{a}", "\\text{\\text{a}}", "\\\\$5"])
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@example("a. .")
@quick
@given(st.text(alphabet="aB5.,!* `$%{}\\", max_size=12))
def test_normalising_any_text_twice_changes_nothing(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(once) == once


@pytest.mark.parametrize("text", ["The answer is **18**.", "#### **18**."])
def test_bold_answer_before_a_full_stop(text: str) -> None:
    assert extract_answer(text) == "18"


@pytest.mark.parametrize("text", ["So the answer is 4. The final answer is 5.", "#### 4 #### 5"])
def test_last_of_two_statements_on_one_line(text: str) -> None:
    assert extract_answer(text) == "5"


def test_a_denial_states_no_answer() -> None:
    assert extract_answer("The answer isn't 5") is None


def test_a_trailing_empty_marker_does_not_hide_the_answer() -> None:
    assert extract_answer("#### 5\n####") == "5"


@pytest.mark.parametrize("text", ["5 million", "5 thousand", "5 dozen", "5 and a half", "5½", "5²", "5x", "5π"])
def test_a_factor_is_no_unit(text: str) -> None:
    assert not same_answer(text, "5")


def test_two_signs_are_no_positive_number() -> None:
    assert parse_number("-$-7 x") is None


def test_an_endless_number_is_no_crash() -> None:
    assert extract_answer("#### " + "1" * 5000) != "1"


@pytest.mark.parametrize(
    ("text", "expected"), [("\\(18\\)", "18"), ("$$18$$", "18"), ("1{,}000", "1000"), ("\\tfrac{1}{2}", "0.5")]
)
def test_latex_dress(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected
