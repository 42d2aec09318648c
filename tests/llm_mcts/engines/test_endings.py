"""When a continuation ends, with a tokenizer of six tokens."""

import asyncio

import pytest

from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.endings import Endings, Row
from llm_mcts.types import Usage

WORDS = {0: "<end>", 1: "\n", 2: "ab", 3: "c\nd", 4: " ", 5: "-"}


class Words:
    """Decodes by table; the end of text is the one special token."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(WORDS[t] for t in tokens if t or not skip_special_tokens)


def feed(request: Request, tokens: list[int], context: int = 100) -> tuple[Completion | None, Usage]:
    """What ends a row of a prompt of 10 tokens, each sampled token of log-probability -0.5."""

    async def run() -> tuple[Completion | None, Usage]:
        row = Row(request, 0, (9,) * 10, Usage(), asyncio.get_running_loop().create_future())
        endings, completion = Endings(Words(), [0], context), None
        for token in tokens:
            assert completion is None
            completion = endings.append(row, token, -0.5)
        return completion, row.usage

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("tokens", "stop", "expected"),
    [
        ([2, 2, 0], (), Completion("abab", -1.5, 3, "eos")),
        ([2, 1], ("\n",), Completion("ab", -1.0, 2, "stop")),
        # The newline in front of the first visible character is no stop, and not part of the text.
        ([1, 4, 2, 1], ("\n",), Completion("ab", -2.0, 4, "stop")),
        ([3], ("\n",), Completion("c", -0.5, 1, "stop")),
        ([5, 2], ("b", "-a"), Completion("", -1.0, 2, "stop")),
        ([2, 5], ("zz", "b-"), Completion("a", -1.0, 2, "stop")),
        ([0], ("\n",), Completion("", -0.5, 1, "eos")),
        ([2, 2, 2, 2, 2], ("\n",), Completion("ababababab", -2.5, 5, "length")),
        ([1, 1, 1, 1, 1], ("\n",), Completion("\n\n\n\n\n", -2.5, 5, "length")),
    ],
)
def test_ends(tokens: list[int], stop: tuple[str, ...], expected: Completion) -> None:
    completion, usage = feed(Request(("?",), max_tokens=5, stop=stop), tokens)
    assert completion == expected
    assert usage.generated_tokens == len(tokens)


def test_the_context_ends_a_text() -> None:
    completion, _ = feed(Request(("?",), max_tokens=5), [2, 2], context=12)
    assert completion == Completion("abab", -1.0, 2, "length")


def test_no_end_yet() -> None:
    assert feed(Request(("?",), max_tokens=5, stop=("zz",)), [2, 1, 4])[0] is None
