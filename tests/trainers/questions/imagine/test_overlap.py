"""Which questions are near each other, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError
from trainers.questions.imagine.overlap import OverlapConfig, OverlapIndex, numbers_of, words_of

BAKER = "A baker sells 3 trays of 12 rolls. How many rolls does he sell?"
# 13 words: a baker sells 3 trays of 12 rolls how many rolls does he sell -> 14 words, 11 four-grams.


def test_words_and_numbers_have_one_spelling() -> None:
    assert words_of("Twelve of the 1,200 DON'T cost $3.50, half-price!") == [
        *("12", "of", "the", "1200", "don't", "cost", "7/2", "half", "price"),
    ]
    assert words_of("3 of 12", mask_numbers=True) == ["#", "of", "#"]
    assert numbers_of("One of 12 boxes has two, or 1, or 2.0 things; 30 is thirty") == ("12", "2", "2", "30", "30")


def test_share_by_hand() -> None:
    index = OverlapIndex(["red green blue black white grey"], ngram=3)
    # 4 trigrams: rgb, gbb, bbw, bwg. "green blue black pink" has gbb and one other: 1 of min(2, 4) = 0.5.
    assert index.nearest("green blue black pink") == (0.5, 0)
    assert index.nearest("pink red green") == (0.0, None)


def test_a_held_out_question_that_is_swallowed_or_cut_down_is_near() -> None:
    index = OverlapIndex(["nothing of the kind is here at all", BAKER])
    assert index.nearest(f"It is Monday in a small town by the sea, and it rains. {BAKER}") == (1.0, 1)
    assert index.nearest("A baker sells 3 trays of 12 rolls.") == (1.0, 1)


def test_masked_numbers_compare_the_story_and_kept_ones_do_not() -> None:
    other = BAKER.replace("3", "5").replace("12", "20")
    assert OverlapIndex([BAKER], mask_numbers=True).nearest(other) == (1.0, 0)
    # Words 1 to 14, numbers at 4 and 7: the four-grams that begin at 1 to 7 hold one, those at 8 to 11 do not: 4 of 11.
    share, which = OverlapIndex([BAKER], mask_numbers=False).nearest(other)
    assert (share, which) == (pytest.approx(4 / 11), 0)


def test_exchanged_names_make_no_new_question() -> None:
    index = OverlapIndex(["Ada has 4 stamps. Then Ada buys 9 more."], mask_numbers=False)
    assert index.nearest("Leo has 4 apples. Then Leo buys 9 more.") == (1.0, 0)
    assert index.nearest("Leo has 4 apples. Then Leo buys 8 more.")[0] < 0.5


def test_duplicates_have_the_same_numbers() -> None:
    index = OverlapIndex([BAKER.replace("12", "13"), BAKER], mask_numbers=False, same_numbers=True)
    share, which = index.nearest(BAKER.replace("does he", "did he"))
    # Word 13 is another: of the 11 four-grams the last two hold it.
    assert (share, which) == (1.0, 1)  # as many words, the same numbers at the same places
    share, which = index.nearest(f"Now, {BAKER.replace('does he', 'did he')}")
    assert (share, which) == (pytest.approx(8 / 11), 1)
    assert index.nearest(BAKER.replace("12", "14")) == (0.0, None)


def test_shorter_than_an_ngram_and_empty_texts() -> None:
    index = OverlapIndex(["two words", ""], ngram=4)
    assert index.nearest("two words") == (1.0, 0)
    assert index.nearest("two other words") == (0.0, None)
    assert OverlapIndex([]).nearest(BAKER) == (0.0, None)


def test_the_first_of_equally_near_ones_is_named_and_added_ones_count() -> None:
    index = OverlapIndex([BAKER])
    index.add(BAKER)
    assert index.nearest(BAKER) == (1.0, 0)
    assert len(index) == 2


@given(st.lists(st.sampled_from(["a", "b", "c", "7", "eight"]), min_size=1, max_size=12), st.booleans())
def test_every_question_is_nearest_to_itself(words: list[str], mask: bool) -> None:
    question = " ".join(words)
    share, _ = OverlapIndex(["c b a", question], ngram=3, mask_numbers=mask).nearest(question)
    assert share == 1.0


@given(st.text(max_size=40), st.text(max_size=40))
def test_shares_are_shares_of_any_text(a: str, b: str) -> None:
    share, _ = OverlapIndex([a], ngram=2).nearest(b)
    assert 0.0 <= share <= 1.0


@pytest.mark.parametrize("bad", [{"ngram": 0}, {"threshold": 0.0}, {"threshold": 1.1}, {"duplicate": 0.0}])
def test_settings_are_checked(bad: dict[str, float]) -> None:
    ((name, value),) = bad.items()
    with pytest.raises(ConfigError, match=rf"overlap\.{name} is {value}; expected a"):
        OverlapConfig(**bad)
