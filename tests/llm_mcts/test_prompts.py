"""Prompts: the written form of states, and the prefix property that caches and critics rely on."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError
from llm_mcts.prompts import EXAMPLES, Encoder, PromptConfig, PromptFormat, chat_template_of
from llm_mcts.types import State, Step

quick = settings(max_examples=50)

EMBEDDED_FOLDER = Path(__file__).parents[2] / "llm_mcts" / "embedded"
PLAIN = PromptFormat(PromptConfig())

lines = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30)


def state_of(question: str, texts: list[str]) -> State:
    return State(question, tuple(Step(text) for text in texts))


class CharTokenizer:
    """One token a character; `<` is the begin-of-text token 1, which is put in front of whole texts by `add_bos_token`."""

    def __init__(self, add_bos_token: bool, bos_token_id: int | None = 1) -> None:
        self.add_bos_token, self.bos_token_id = add_bos_token, bos_token_id
        self.asked: list[str] = []

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        ids = [1 if character == "<" else ord(character) for character in text]
        if not add_special_tokens:
            self.asked.append(text)
        elif self.add_bos_token and self.bos_token_id is not None:
            ids = [self.bos_token_id, *ids]
        return SimpleNamespace(input_ids=ids)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)


# Encoder


def test_tokens_of_a_state_are_a_prefix_of_every_longer_state(tokenizer: Any) -> None:
    encode = Encoder(tokenizer)

    @quick
    @given(lines, st.lists(lines, min_size=1, max_size=5), st.data())
    def check(question: str, texts: list[str], data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(texts) - 1))
        shorter = encode(PLAIN.segments(state_of(question, texts[:cut])))
        longer = encode(PLAIN.segments(state_of(question, texts)))
        assert longer[: len(shorter)] == shorter
        assert len(longer) > len(shorter)

    check()


def test_encoding_is_the_segments_one_by_one_and_decodes_to_their_text(tokenizer: Any) -> None:
    segments = PLAIN.segments(state_of("What is 2 + 3?", ["2 + 3 = 5", "#### 5"]))
    alone = [tokenizer(segment, add_special_tokens=False).input_ids for segment in segments]
    encode = Encoder(tokenizer)
    assert encode(segments) == alone[0] + alone[1] + alone[2]
    assert tokenizer.decode(encode(segments)) == "Question: What is 2 + 3?\nAnswer:\n2 + 3 = 5\n#### 5\n"


@quick
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5), st.booleans())
def test_ends_are_the_last_tokens_of_the_segments(segments: list[str], add_bos: bool) -> None:
    encode = Encoder(CharTokenizer(add_bos))
    ends = encode.ends(segments)
    assert ends == [len(encode(segments[: i + 1])) - 1 for i in range(len(segments))]
    ids = encode(segments)
    assert [ids[end] for end in ends] == [1 if segment[-1] == "<" else ord(segment[-1]) for segment in segments]


def test_ends_by_hand() -> None:
    # "ab" "c" "def" are 0-1, 2, 3-5; a begin-of-text token in front moves all by one.
    assert Encoder(CharTokenizer(False)).ends(["ab", "c", "def"]) == [1, 2, 5]
    assert Encoder(CharTokenizer(True)).ends(["ab", "c", "def"]) == [2, 3, 6]
    assert Encoder(CharTokenizer(True)).ends(["<b", "c", "def"]) == [1, 2, 5]


@pytest.mark.parametrize(
    ("add_bos", "bos", "text", "expected"),
    [
        (True, 1, "a", [1, 97]),
        (True, 1, "<a", [1, 97]),  # a chat template that writes the token itself gets no second one
        (True, 1, "", [1]),
        (False, 1, "a", [97]),
        (True, None, "a", [97]),
        (False, None, "", []),
    ],
)
def test_begin_of_text(add_bos: bool, bos: int | None, text: str, expected: list[int]) -> None:
    assert Encoder(CharTokenizer(add_bos, bos))([text]) == expected


def test_a_segment_is_tokenised_once() -> None:
    tokenizer = CharTokenizer(True)
    encode = Encoder(tokenizer)
    first = encode(["a", "b", "a"])
    assert encode(["a", "b", "a"]) == first
    assert sorted(tokenizer.asked) == ["a", "b"]


def test_the_callers_list_is_no_part_of_the_memory() -> None:
    encode = Encoder(CharTokenizer(False))
    encode(["ab"]).append(0)
    assert encode(["ab"]) == [97, 98]


def test_begin_of_text_by_post_processor() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<s>": 0, "a": 1, "b": 2, "<unk>": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", unk_token="<unk>")
    assert tokenizer("a b").input_ids == [0, 1, 2]
    assert Encoder(tokenizer)(["a", "b"]) == [0, 1, 2]


# PromptFormat


def test_plain_prompt() -> None:
    assert PLAIN.segments(state_of("Q?", ["one", "two"])) == ("Question: Q?\nAnswer:\n", "one\n", "two\n")


@pytest.mark.parametrize("shots", [0, 1, 4])
def test_few_shot_prompt_ends_in_the_plain_one(shots: int) -> None:
    prompt = PromptFormat(PromptConfig(style="few_shot", shots=shots)).question("Q?")
    assert prompt.endswith("Question: Q?\nAnswer:\n")
    assert prompt.count("Question: ") == shots + 1
    assert prompt.count("#### ") == shots


def test_chat_prompt_shows_the_examples_as_turns() -> None:
    seen: list[list[dict[str, str]]] = []

    def template(messages: list[dict[str, str]]) -> str:
        seen.append(messages)
        return "rendered"

    chat = PromptFormat(PromptConfig(style="chat", shots=1, system="S"), template)
    assert chat.question("Q?") == "rendered"
    assert seen == [
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": EXAMPLES[0][0]},
            {"role": "assistant", "content": EXAMPLES[0][1]},
            {"role": "user", "content": "Q?"},
        ]
    ]


def test_chat_needs_a_template(tokenizer: Any) -> None:
    assert chat_template_of(tokenizer) is None
    with pytest.raises(ConfigError, match="no chat template"):
        PromptFormat(PromptConfig(style="chat"), chat_template_of(tokenizer))


def test_chat_template_of_renders_up_to_the_answer() -> None:
    class Chatty:
        chat_template = "x"

        def apply_chat_template(self, messages: list[dict[str, str]], **options: bool) -> str:
            assert options == {"tokenize": False, "add_generation_prompt": True}
            return messages[0]["content"]

    render = chat_template_of(Chatty())
    assert render is not None
    assert render([{"role": "user", "content": "hello"}]) == "hello"


@pytest.mark.parametrize(("shown", "calculated"), [(shown, solved) for shown, solved in EXAMPLES])
def test_examples_are_worked_right(shown: str, calculated: str) -> None:
    results = []
    for a, symbol, b, result in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", calculated):
        x, y = int(a), int(b)
        assert int(result) == {"+": x + y, "-": x - y, "*": x * y, "/": x // y}[symbol]
        assert symbol != "/" or x % y == 0  # no remainder is lost
        results.append(result)
    assert calculated.endswith(f"\n#### {results[-1]}")


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("#### 5", True),
        ("so \\boxed{5}", True),
        ("THE ANSWER IS 5", True),
        ("Thus the final answer is 5.", True),
        ("2 + 3 = 5", False),
        ("### 5", False),
        ("", False),
    ],
)
def test_states_answer(line: str, ends: bool) -> None:
    assert PLAIN.states_answer(line) is ends


def test_read_step() -> None:
    step = PLAIN.read_step("  2 + 3 = 5 ", -1.5, 7, ended=False)
    assert (step.text, step.logprob, step.num_tokens, step.terminal, step.answer) == ("2 + 3 = 5", -1.5, 7, False, None)
    step = PLAIN.read_step("#### 1,200", -0.5, 0, ended=False)
    assert (step.text, step.num_tokens, step.terminal, step.answer) == ("#### 1,200", 1, True, "1200")
    step = PLAIN.read_step("I give up", 0.0, 3, ended=True)
    assert (step.terminal, step.answer) == (True, None)


def test_parse_solution_drops_what_follows_the_answer() -> None:
    steps = PLAIN.parse_solution("\n 2 + 3 = 5\n\n#### 5\n6 + 6 = 12\n#### 12\n")
    assert [s.text for s in steps] == ["2 + 3 = 5", "#### 5"]
    assert [s.terminal for s in steps] == [False, True]
    assert [s.answer for s in steps] == [None, "5"]


def test_parse_solution_without_an_answer_ends_at_its_last_line() -> None:
    steps = PLAIN.parse_solution("one\ntwo")
    assert [(s.text, s.terminal, s.answer) for s in steps] == [("one", False, None), ("two", True, None)]
    assert PLAIN.parse_solution(" \n\n") == ()


@quick
@given(st.lists(st.text(alphabet="abc 12+=", min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_a_written_solution_reads_back(texts: list[str]) -> None:
    steps = PLAIN.parse_solution("\n".join(texts))
    assert State("Q", steps).text == "\n".join(text.strip() for text in texts)
    assert [s.terminal for s in steps] == [False] * (len(texts) - 1) + [True]


@pytest.mark.parametrize(("change", "named"), [({"style": "chatty"}, "chatty"), ({"shots": 5}, "5"), ({"shots": -1}, "-1")])
def test_bad_settings_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"is '?{named}"):
        PromptConfig(**change)
