"""When a continuation ends, with a tokenizer of six tokens."""

import asyncio

import pytest

from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.errors import QuestionError
from llm_mcts.types import Usage

WORDS = {0: "<end>", 1: "\n", 2: "ab", 3: "c\nd", 4: " ", 5: "-"}


class Words:
    """Decodes by table; the end of text is the one special token."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(WORDS[t] for t in tokens if t or not skip_special_tokens)


def feed(request: Request, tokens: list[int], context: int = 100) -> tuple[Completion | None, Usage]:
    """What ends a continuation of a prompt of 10 tokens, each sampled token of log-probability -0.5."""

    async def run() -> tuple[Completion | None, Usage]:
        done: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        row = Continuation(request, 0, (9,) * 10, Endings(Words(), [0], context), Usage(), done)
        for token in tokens:
            assert not done.done()
            assert row.append(token, -0.5) == done.done()
        return done.result() if done.done() else None, row.usage

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("tokens", "stop", "expected"),
    [
        ([2, 2, 0], (), Completion("abab", -1.5, 3, "eos")),
        ([2, 1], ("\n",), Completion("ab", -1.0, 2, "stop")),
        # The newline in front of the first visible character is no stop, and not part of the text.
        ([1, 4, 2, 1], ("\n",), Completion("ab", -2.0, 4, "stop")),
        ([3], ("\n",), Completion("c", -0.5, 1, "stop")),
        ([3], ("d", "\n"), Completion("c", -0.5, 1, "stop")),  # the earlier of two in one token
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


def test_a_prompt_needs_a_token_and_room() -> None:
    endings = Endings(Words(), [0], 12)
    assert endings.checked([9] * 11) == (9,) * 11  # one token of room
    assert endings.checked([9] * 12, room=0) == (9,) * 12
    with pytest.raises(QuestionError, match=r"12 tokens; expected fewer than the model's context of 12: .* fewer shots"):
        endings.checked([9] * 12)
    with pytest.raises(QuestionError, match="the prompt is empty; expected at least one token"):
        endings.checked([])


def test_a_cancelled_continuation_still_ends() -> None:
    """Its owner left: nothing is reported to it, but its place in the batch is free again."""

    async def run() -> bool:
        done: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        done.cancel()
        return Continuation(Request(("?",)), 0, (9,), Endings(Words(), [0], 100), Usage(), done).append(0, -0.5)

    assert asyncio.run(run())


def test_each_continuation_draws_from_its_own_stream() -> None:
    """The numbers of random.Random("7/0") and ("7/1"): seed and index alone decide, not who asks first."""

    async def run() -> list[float]:
        request, endings, loop = Request(("?",), 2, seed=7), Endings(Words(), [0], 100), asyncio.get_running_loop()
        rows = [Continuation(request, i, (9,), endings, Usage(), loop.create_future()) for i in range(2)]
        return [rows[i].random.random() for i in (1, 0, 0)]

    assert asyncio.run(run()) == [0.05507912152868766, 0.7059339087777089, 0.6168329049611778]
