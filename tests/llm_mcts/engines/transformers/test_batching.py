"""Generation, log-probabilities and hidden states in one batch, against plain uncached forwards.

Runs on the built-in model; LLM_MCTS_TEST_MODEL names a folder with another one to check (a real model takes some minutes).
"""

import asyncio
import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.engines.transformers.packing import PackedLinear
from llm_mcts.errors import QuestionError
from llm_mcts.models import EMBEDDED, load_causal_lm, load_tokenizer
from llm_mcts.types import Usage, metered

MODEL = os.environ.get("LLM_MCTS_TEST_MODEL", EMBEDDED)
CPU = torch.device("cpu")
SHARED = "Question: Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?\nAnswer:\n"
TEXTS: list[tuple[str, ...]] = [
    (SHARED, "Mia has 3 * 4 = 12 shells.\n", "Then Mia has 12 + 5 = 17 shells.\n", "#### 17\n"),
    (SHARED, "Mia has 3 * 4 = 13 shells.\n", "#### 13\n"),
    (SHARED, "Mia has 3 * 4 = 12 shells.\n", "#### 12\n"),
    ("Question: Ben has 7 apples.\nAnswer:\n", "7\n"),
]


@cache
def plain() -> tuple[Any, Any]:
    return load_causal_lm(MODEL, torch.float32, CPU), load_tokenizer(MODEL)


@cache
def ids_of(text: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(token for segment in text for token in plain()[1](segment, add_special_tokens=False).input_ids)


@cache
def whole_forward(text: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities [T, V] and last hidden states [T, H] without any cache."""
    with torch.inference_mode():
        out = plain()[0](torch.tensor([ids_of(text)]), use_cache=False, output_hidden_states=True)
        last = plain()[0].base_model(torch.tensor([ids_of(text)]), use_cache=False).last_hidden_state
    return out.logits[0].log_softmax(-1), last[0]


@cache
def greedy(text: tuple[str, ...], n: int) -> tuple[list[int], float]:
    model, _ = plain()
    ids = torch.tensor([ids_of(text)])
    with torch.inference_mode():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=n)[0]
        logprobs = model(whole[None], use_cache=False).logits[0].log_softmax(-1)
    new = whole[ids.shape[1] :].tolist()
    return new, sum(float(logprobs[ids.shape[1] - 1 + i, token]) for i, token in enumerate(new))


@dataclass(frozen=True)
class Ask:
    """One caller: what, of which text, of how many of its segments, after how many turns of the event loop."""

    what: str
    text: int
    length: int
    wait: int

    @property
    def segments(self) -> tuple[str, ...]:
        return TEXTS[self.text][: max(1 + (self.what == "logprobs"), min(self.length, len(TEXTS[self.text])))]


asks = st.builds(
    Ask, st.sampled_from(["greedy", "logprobs", "hidden"]), st.integers(0, 3), st.integers(1, 4), st.integers(0, 60)
)


async def answer(engine: TransformersEngine, ask: Ask) -> Any:
    for _ in range(ask.wait):
        await asyncio.sleep(0)
    if ask.what == "greedy":
        return await engine.generate(Request(ask.segments, 1, 8, 0.0))
    if ask.what == "logprobs":
        return await engine.logprobs(ask.segments[:1], [ask.segments[1:]])
    ends = [len(ids_of(ask.segments[: i + 1])) - 1 for i in range(len(ask.segments))]
    return await engine.batch.hidden(list(ids_of(ask.segments)), ends, lambda *_: None)


def check(ask: Ask, found: Any) -> None:
    if ask.what == "greedy":
        tokens, logprob = greedy(ask.segments, 8)
        [completion] = found
        assert type(completion) is Completion
        assert completion.text == plain()[1].decode(tokens, skip_special_tokens=True)
        assert completion.logprob == pytest.approx(logprob, abs=1e-4)
        return
    logprobs, hidden = whole_forward(ask.segments)
    if ask.what == "logprobs":
        start, ids = len(ids_of(ask.segments[:1])), ids_of(ask.segments)
        assert found == [pytest.approx([float(logprobs[i - 1, ids[i]]) for i in range(start, len(ids))], abs=1e-4)]
    else:
        ends = [len(ids_of(ask.segments[: i + 1])) - 1 for i in range(len(ask.segments))]
        # Hidden states are of size 1 and larger: 1e-4 of their largest.
        assert (found - hidden[ends]).abs().max() <= 1e-4 * hidden.abs().max()


@settings(max_examples=25, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    schedule=st.lists(asks, min_size=1, max_size=10),
    max_batch=st.sampled_from([1, 2, 8]),
    cached_tokens=st.sampled_from([0, 40, 100_000]),
)
def test_any_mix_under_eviction_is_exact(schedule: list[Ask], max_batch: int, cached_tokens: int) -> None:
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu", max_batch=max_batch))
    assert any(isinstance(module, PackedLinear) for module in engine.model.modules())  # the fast layers are what is checked
    engine.batch.tree.byte_limit = cached_tokens * engine.batch.slots.kv[:, :, 0, :, 0].nbytes

    async def run() -> list[Any]:
        return list(await asyncio.gather(*(answer(engine, ask) for ask in schedule)))

    for ask, found in zip(schedule, asyncio.run(run()), strict=True):
        check(ask, found)
    assert engine.batch.tree.bytes <= engine.batch.tree.byte_limit
    assert not (engine.batch.active or engine.batch.waiting or engine.batch.unfinished)


def test_what_was_decoded_is_read_for_its_own_positions_alone() -> None:
    """A value head on the policy's trunk: the step's keys are there, so a score costs the step's last token."""
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu"))
    text = TEXTS[0]
    counted: list[tuple[int, int]] = []

    async def run() -> torch.Tensor:
        await engine.logprobs(text[:1], [text[1:]])  # now all but the last token are in the cache
        tokens = list(ids_of(text))
        ends = [len(ids_of(text[:n])) - 1 for n in (1, 2, 4)]
        return await engine.batch.hidden(tokens, ends, lambda *count: counted.append(count))

    found = asyncio.run(run())
    assert counted == [(3, len(ids_of(text)) - 3)]
    ends = [len(ids_of(text[:n])) - 1 for n in (1, 2, 4)]
    expected = whole_forward(text)[1][ends]
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_log_probabilities_of_several_continuations_read_the_prompt_once() -> None:
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu"))

    async def run() -> tuple[list[list[float]], Usage]:
        with metered() as usage:
            return await engine.logprobs(TEXTS[0][:1], [TEXTS[0][1:], TEXTS[1][1:]]), usage

    found, usage = asyncio.run(run())
    logprobs = [whole_forward(text)[0] for text in TEXTS[:2]]
    start = len(ids_of(TEXTS[0][:1]))
    for row, table, text in zip(found, logprobs, TEXTS, strict=False):
        ids = ids_of(text)
        assert row == pytest.approx([float(table[i - 1, ids[i]]) for i in range(start, len(ids))], abs=1e-4)
    prefixes = {ids_of(text)[: i + 1] for text in TEXTS[:2] for i in range(len(ids_of(text)) - 1)}
    # The second asks for positions whose keys the first computed: those alone it computes again.
    shared = next(i for i in range(99) if ids_of(TEXTS[0])[i] != ids_of(TEXTS[1])[i])
    assert usage.prefilled_tokens == len(prefixes) + shared - (start - 1)
    assert usage.lm_calls == 1


def test_log_probabilities_of_nothing_are_refused() -> None:
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu"))
    for prompt, continuation in ((("a",), ()), ((), ("a",)), (("a",), ("",))):
        with pytest.raises(QuestionError, match="empty"):
            asyncio.run(engine.logprobs(prompt, [continuation]))
    with pytest.raises(QuestionError, match="context"):
        asyncio.run(engine.logprobs(("a",), [("7 " * 5000,)]))
    assert asyncio.run(engine.logprobs(("a",), [])) == []


def test_an_event_loop_that_ended_in_the_middle_leaves_the_engine_usable() -> None:
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu"))
    request = Request(TEXTS[0][:1], 2, 60, 1.0)
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[list[Completion]]:
        task = asyncio.create_task(engine.generate(request))
        for _ in range(12):
            await asyncio.sleep(0)
        return task

    left = loop.run_until_complete(begin())
    assert engine.batch.active
    short = Request(TEXTS[0][:1], 1, 5, 0.0)
    [found] = asyncio.run(asyncio.wait_for(engine.generate(short), 20))
    [expected] = asyncio.run(TransformersEngine(EngineConfig(MODEL, device="cpu")).generate(short))
    assert found.text == expected.text
    assert not (engine.batch.active or engine.batch.unfinished)
    assert not left.done() or left.cancelled()
    loop.run_until_complete(asyncio.gather(left, return_exceptions=True))
    loop.close()


def test_two_event_loops_at_once_are_an_error() -> None:
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu"))

    async def run() -> None:
        task = asyncio.create_task(engine.generate(Request(TEXTS[0][:1], 1, 200, 1.0)))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two event loops at once"):
            await asyncio.to_thread(asyncio.run, engine.generate(Request(TEXTS[0][:1], 1, 5, 1.0)))
        task.cancel()

    asyncio.run(run())


def test_readings_do_not_hold_up_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 40 tokens a turn, a text is being written while many readings still wait."""
    monkeypatch.setattr("llm_mcts.engines.transformers.batching._TURN_TOKENS", 40)
    engine = TransformersEngine(EngineConfig(MODEL, device="cpu", max_batch=4))
    waiting: list[int] = []

    async def run() -> None:
        prompts = [(f"Question: {i} {i} {i} {i} {i} {i} {i}?\nAnswer:\n", f"{i} + {i}\n") for i in range(30)]
        readings = [asyncio.create_task(engine.logprobs(p[:1], [p[1:]])) for p in prompts]
        await engine.generate(Request(("7?\n",), 1, 3, 1.0))
        waiting.append(sum(not task.done() for task in readings))
        await asyncio.gather(*readings)

    asyncio.run(run())
    assert waiting[0] > 5


class BlankDroppingTokenizer:
    """Decodes a lone token without its leading blank, as SentencePiece tokenizers do."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def decode(self, tokens: list[int], **how: Any) -> str:
        text = str(self.tokenizer.decode(tokens, **how))
        return text.lstrip(" ") if len(tokens) == 1 else text


def test_a_stop_string_with_blanks_is_found_token_by_token() -> None:
    _, tokenizer = plain()
    endings = Endings(BlankDroppingTokenizer(tokenizer), [], 512)
    request, done = Request(("a",), 1, 99, 1.0, ("shells now",)), asyncio.new_event_loop().create_future()
    row = Continuation(request, 0, (1,), endings, Usage(), done)
    for token in tokenizer("Mia has 3 shells now and then", add_special_tokens=False).input_ids:
        row.append(token, -1.0)
    assert (done.result().finish_reason, done.result().text) == ("stop", "Mia has 3 ")
