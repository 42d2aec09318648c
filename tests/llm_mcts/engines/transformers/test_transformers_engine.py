"""The batching engine against plain uncached forwards of the same model, under all sorts of company."""

import asyncio
import copy
import gc
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

import llm_mcts.engines.transformers.batching as module
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.models import load_tokenizer, resolve_dtype
from llm_mcts.prompts import Encoder
from llm_mcts.types import metered

# Two key-value heads of 8 numbers, keys and values, 2 layers, 4 bytes each.
TOKEN_BYTES = 2 * 8 * 2 * 2 * 4

SHARED = "Question: Ann has 5 apples and buys 3 more. How many apples does Ann have now?\nAnswer:\n"
PROMPTS: list[tuple[str, ...]] = [
    (SHARED,),
    (SHARED, "Ann has 5 + 3 = 8 apples.\n"),
    (SHARED, "Ann has 5 + 3 = 9 apples.\n"),
    (SHARED, "Ann has 5 + 3 = 8 apples.\n", "#### 8\n"),
    ("Question: 7 boxes?\nAnswer:\n",),
    ("7",),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    """The tiny model with larger weights and a head of its own, so that its next token depends on all that stands before."""
    loaded = LlamaForCausalLM.from_pretrained(tiny_model).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
        head = 0.5 * torch.randn(loaded.lm_head.weight.shape, generator=generator)
        loaded.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return loaded


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> TransformersEngine:
    return build(model, tokenizer)


def build(model: Any, tokenizer: Any, **config: Any) -> TransformersEngine:
    return TransformersEngine(EngineConfig(device="cpu", **config), model=model, tokenizer=tokenizer)


def ids_of(tokenizer: Any, prompt: tuple[str, ...]) -> list[int]:
    return [token for segment in prompt for token in tokenizer(segment, add_special_tokens=False).input_ids]


class Reference:
    """What the engine should answer: a whole forward a token, one sequence at a time, in float64 where it draws."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.eos = model, tokenizer, tokenizer.eos_token_id
        self.tokens = cache(self._tokens)

    def _tokens(
        self, prompt: tuple[str, ...], i: int, max_tokens: int, temperature: float, seed: int
    ) -> tuple[list[int], float]:
        ids, draws = ids_of(self.tokenizer, prompt), random.Random(f"{seed}/{i}")
        generated: list[int] = []
        total = 0.0
        while len(generated) < max_tokens and generated[-1:] != [self.eos]:
            with torch.no_grad():
                logits = self.model(torch.tensor([ids + generated]), use_cache=False).logits[0, -1].double()
            draw = draws.random()
            if temperature == 0:
                token = int(logits.argmax())
            else:
                cumulative = torch.softmax(logits / temperature, dim=-1).cumsum(dim=-1).tolist()
                token = next(t for t, c in enumerate(cumulative) if draw < c)
            generated.append(token)
            total += float(torch.log_softmax(logits, dim=-1)[token])
        return generated, total

    def __call__(self, request: Request) -> list[Completion]:
        """The completions of a request without stop strings."""
        answers = []
        for i in range(request.n):
            generated, logprob = self.tokens(request.prompt, i, request.max_tokens, request.temperature, request.seed)
            ended = generated[-1] == self.eos
            text = self.tokenizer.decode(generated, skip_special_tokens=True)
            answers.append(Completion(text, logprob, len(generated), "eos" if ended else "length"))
        return answers


@pytest.fixture(scope="module")
def reference(model: Any, tokenizer: Any) -> Reference:
    return Reference(model, tokenizer)


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [(c.text, c.num_tokens, c.finish_reason) for c in found] == [
        (c.text, c.num_tokens, c.finish_reason) for c in expected
    ]
    # Sums of up to 24 float32 log-probabilities of about -5 each, computed in another order: 1e-4.
    assert [c.logprob for c in found] == pytest.approx([c.logprob for c in expected], abs=1e-4)


def outcomes(engine: TransformersEngine, *requests: Request, timeout: float = 20.0) -> list[Any]:
    """What each of several concurrent callers gets: completions or an exception."""

    async def all_at_once() -> list[Any]:
        calls = [asyncio.wait_for(engine.generate(request), timeout) for request in requests]
        found = await asyncio.gather(*calls, return_exceptions=True)
        if engine.batch._loop is not None:
            await asyncio.wait([engine.batch._loop])
            engine.batch._loop.exception()  # known to the callers: asyncio need not log it a second time
        return found

    return asyncio.run(all_at_once())


def ask(engine: TransformersEngine, *requests: Request) -> list[list[Completion]]:
    found = outcomes(engine, *requests)
    for outcome in found:
        if isinstance(outcome, BaseException):
            raise outcome
    return found


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def test_the_model_listens_to_its_prompt(reference: Reference) -> None:
    """Else nothing below would show an error in positions or masks."""
    texts = {reference(Request(prompt, 1, 8, 0.0))[0].text for prompt in PROMPTS}
    assert len(texts) == len(PROMPTS)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_greedy_equals_generate(engine: TransformersEngine, model: Any, tokenizer: Any, prompt: tuple[str, ...]) -> None:
    ids = torch.tensor([ids_of(tokenizer, prompt)])
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24)[0].tolist()
    new = whole[ids.shape[1] :]
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([whole]), use_cache=False).logits[0], dim=-1)
    expected = sum(float(logprobs[ids.shape[1] - 1 + i, token]) for i, token in enumerate(new))
    [[completion]] = ask(engine, Request(prompt, 1, 24, 0.0))
    assert completion.text == tokenizer.decode(new, skip_special_tokens=True)
    assert completion.num_tokens == len(new)
    assert completion.logprob == pytest.approx(expected, abs=1e-4)


requests_ = st.builds(
    Request,
    prompt=st.sampled_from(PROMPTS),
    n=st.integers(1, 3),
    max_tokens=st.sampled_from([1, 2, 5, 12]),
    temperature=st.sampled_from([0.0, 0.7, 1.3]),
    seed=st.integers(0, 2),
)


@settings(max_examples=30, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    schedule=st.lists(st.tuples(requests_, st.integers(0, 40)), min_size=1, max_size=7),
    max_batch=st.sampled_from([1, 2, 3, 8]),
    cached_tokens=st.sampled_from([0, 60, 100_000]),
)
def test_any_schedule_gives_what_a_plain_forward_gives(
    model: Any,
    tokenizer: Any,
    reference: Reference,
    schedule: list[tuple[Request, int]],
    max_batch: int,
    cached_tokens: int,
) -> None:
    """Requests come after a number of turns of the event loop, share a batch, wait, and find prefixes cached or evicted."""
    engine = build(model, tokenizer, max_batch=max_batch)
    engine.batch.tree.byte_limit = cached_tokens * TOKEN_BYTES

    async def later(request: Request, wait: int) -> list[Completion]:
        await turns(wait)
        return await engine.generate(request)

    async def run() -> list[list[Completion]]:
        return list(await asyncio.gather(*(later(request, wait) for request, wait in schedule)))

    with metered() as usage:
        answers = asyncio.run(run())
    for (request, _), answer in zip(schedule, answers, strict=True):
        assert_same(answer, reference(request))
    assert engine.batch.tree.bytes <= cached_tokens * TOKEN_BYTES
    assert engine.batch.active == []
    prompts = sum(r.n * (len(ids_of(tokenizer, r.prompt)) - 1) for r, _ in schedule)  # the last token is a decode input
    assert usage.prefilled_tokens + usage.reused_tokens == prompts
    assert usage.generated_tokens == sum(c.num_tokens for answer in answers for c in answer)
    assert usage.lm_calls == len(schedule)
    assert engine.batch.decoded_rows == usage.generated_tokens


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_the_configured_cache_size(model: Any, tokenizer: Any, reference: Reference, cache_mb: int) -> None:
    engine = build(model, tokenizer, cache_mb=cache_mb)
    requests = [Request(prompt, 2, 8, 1.0, seed=3) for prompt in PROMPTS]
    for _ in range(2):
        for answer, request in zip(ask(engine, *requests), requests, strict=True):
            assert_same(answer, reference(request))
    assert (engine.batch.tree.bytes == 0) == (cache_mb == 0)


def test_order_and_neighbours_do_not_matter(model: Any, tokenizer: Any) -> None:
    requests = [Request(prompt, 2, 10, 1.0, seed=i) for i, prompt in enumerate(PROMPTS)]
    alone = [ask(build(model, tokenizer), request)[0] for request in requests]
    together = ask(build(model, tokenizer), *requests)
    backwards = ask(build(model, tokenizer), *reversed(requests))[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert_same(two, one)
        assert_same(three, one)


def test_samples_of_one_request_differ_and_do_not_depend_on_how_many(engine: TransformersEngine, reference: Reference) -> None:
    [four], [two] = ask(engine, Request((SHARED,), 4, 10, 1.0, seed=5)), ask(engine, Request((SHARED,), 2, 10, 1.0, seed=5))
    assert len({c.text for c in four}) == 4
    assert_same(four[:2], two)
    assert_same(four, reference(Request((SHARED,), 4, 10, 1.0, seed=5)))


def test_more_samples_than_the_batch_holds(model: Any, tokenizer: Any, reference: Reference) -> None:
    engine = build(model, tokenizer, max_batch=2)
    request = Request((SHARED,), 5, 6, 1.0, seed=1)
    assert_same(ask(engine, request)[0], reference(request))
    assert engine.batch.decoded_rows / engine.batch.decode_steps <= 2


def test_waiting_requests_share_a_batch(engine: TransformersEngine) -> None:
    with_eos = ask(engine, *(Request(prompt, 1, 6, 0.0) for prompt in PROMPTS))
    # All prompts join at once or, where they wait for a shared prefix, within the two next steps.
    longest = max(c.num_tokens for [c] in with_eos)
    assert engine.batch.decode_steps <= longest + 3


# Usage, to the token


def test_usage_of_n_samples(engine: TransformersEngine, tokenizer: Any) -> None:
    length = len(ids_of(tokenizer, (SHARED,)))
    with metered() as usage:
        [completions] = ask(engine, Request((SHARED,), 3, 4, 1.0))
    # The last prompt token is the first decode input: it is computed there, in place of the last sampled one.
    assert usage.prefilled_tokens == length - 1
    assert usage.reused_tokens == 2 * (length - 1)
    assert usage.generated_tokens == sum(c.num_tokens for c in completions)
    assert usage.lm_calls == 1
    with metered() as again:
        ask(engine, Request((SHARED,), 3, 4, 1.0))
    assert again.prefilled_tokens == 0
    assert again.reused_tokens == 3 * (length - 1)


def test_usage_of_a_longer_prompt_counts_the_shared_part_once(
    engine: TransformersEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = ids_of(tokenizer, ("#### 8\n",))
    play(monkeypatch, [*step, *step])
    ask(engine, Request((SHARED,), 1, len(step), 1.0))
    known = len(ids_of(tokenizer, (SHARED,))) + len(step) - 1  # the last sampled token was never computed
    with metered() as usage:
        ask(engine, Request((SHARED, "#### 8\n", "#### 8\n"), 1, 1, 1.0))
    assert usage.reused_tokens == known
    assert usage.prefilled_tokens == 1 + len(step) - 1  # the step's last token, and the next step without its last
    assert usage.generated_tokens == 1


def test_siblings_sent_together_compute_their_common_prefix_once(engine: TransformersEngine, tokenizer: Any) -> None:
    first, second = PROMPTS[1], PROMPTS[2]
    a, b = ids_of(tokenizer, first), ids_of(tokenizer, second)
    shared = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    assert shared > len(ids_of(tokenizer, (SHARED,)))
    with metered() as usage:
        ask(engine, Request(first, 1, 3, 0.0), Request(second, 1, 3, 0.0))
    assert usage.prefilled_tokens == len(a) - 1 + len(b) - 1 - shared
    assert usage.reused_tokens == shared


def test_each_caller_pays_for_its_own(engine: TransformersEngine, tokenizer: Any) -> None:
    async def one(prompt: tuple[str, ...], max_tokens: int) -> tuple[int, int, int]:
        with metered() as usage:
            [completion] = await engine.generate(Request(prompt, 1, max_tokens, 0.0))
        return usage.prefilled_tokens, usage.generated_tokens - completion.num_tokens, usage.lm_calls

    async def both() -> list[tuple[int, int, int]]:
        return list(await asyncio.gather(one(PROMPTS[4], 9), one(PROMPTS[0], 3)))

    lengths = [len(ids_of(tokenizer, PROMPTS[i])) for i in (4, 0)]
    assert asyncio.run(both()) == [(lengths[0] - 1, 0, 1), (lengths[1] - 1, 0, 1)]


# How a continuation ends. The tokens are given; each has log-probability -0.5.


def play(monkeypatch: pytest.MonkeyPatch, tokens: list[int]) -> None:
    script = iter(tokens)
    monkeypatch.setattr(module, "sample", lambda logits, *_: ([next(script) for _ in logits], [-0.5 for _ in logits]))


@pytest.mark.parametrize(
    ("written", "stop", "text", "reason", "spare"),
    [
        ("2 + 2 = 4\nand", ("\n",), "2 + 2 = 4", "stop", "and"),
        ("\n\n 5 apples\nand", ("\n",), "5 apples", "stop", "and"),  # nothing visible stood before the first two
        ("5\nQuestion: 6", ("\nQuestion:",), "5", "stop", " 6"),  # the stop string spans two tokens
        ("5 has 6\nand", ("\n", " has"), "5", "stop", " 6\nand"),  # the earliest of several
        ("5 coins<eos>", ("\n",), "5 coins", "eos", ""),
        ("<eos>", ("\n",), "", "eos", ""),
        ("5 coins", ("\n",), "5 coins", "length", ""),
        ("5\ncoins", (), "5\ncoins", "length", ""),
    ],
)
def test_how_it_ends(
    engine: TransformersEngine,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    stop: tuple[str, ...],
    text: str,
    reason: str,
    spare: str,
) -> None:
    tokens, unused = (tokenizer(part, add_special_tokens=False).input_ids for part in (written, spare))
    expected = len(tokens) - len(unused)
    play(monkeypatch, tokens)
    [[completion]] = ask(engine, Request((SHARED,), 1, len(tokens), 1.0, stop))
    assert completion == Completion(text, -0.5 * expected, expected, reason)  # type: ignore[arg-type]


def test_stop_strings_cut_what_the_model_writes(engine: TransformersEngine, reference: Reference) -> None:
    """A real continuation, stopped at a string in the middle of it, is the same up to there."""
    [free] = reference(Request((SHARED,), 1, 12, 0.0))
    stop = free.text.strip()[4:6]
    body = free.text.lstrip()
    [[cut]] = ask(engine, Request((SHARED,), 1, 12, 0.0, (stop,)))
    assert cut.text == body[: body.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.num_tokens < free.num_tokens


def test_a_special_token_as_stop_string(engine: TransformersEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, tokenizer("5 coins<pad> and", add_special_tokens=False).input_ids)
    [[completion]] = ask(engine, Request((SHARED,), 1, 20, 1.0, ("<pad>",)))
    assert completion.text == "5 coins"
    assert completion.finish_reason == "stop"


def test_a_stop_string_outside_ascii(engine: TransformersEngine, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenizer("5 é and 6", add_special_tokens=False).input_ids
    play(monkeypatch, tokens)
    [[completion]] = ask(engine, Request((SHARED,), 1, len(tokens), 1.0, ("é",)))
    assert completion.text == "5 "
    assert completion.finish_reason == "stop"


# Cancelling and failing


def test_a_cancelled_request_leaves_and_the_others_finish(engine: TransformersEngine, reference: Reference) -> None:
    short = [Request(PROMPTS[4], 2, 12, 0.7), Request(PROMPTS[5], 1, 12, 0.7)]

    async def run() -> list[list[Completion]]:
        long = asyncio.create_task(engine.generate(Request((SHARED,), 3, 150, 0.7)))
        others = [asyncio.create_task(engine.generate(request)) for request in short]
        while engine.batch.decode_steps < 4:
            await asyncio.sleep(0)
        assert len(engine.batch.active) == 6
        long.cancel()
        answers = [await task for task in others]
        with pytest.raises(asyncio.CancelledError):
            await long
        await turns(20)
        assert engine.batch.active == []
        return answers

    answers = asyncio.run(run())
    for answer, request in zip(answers, short, strict=True):
        assert_same(answer, reference(request))
    assert engine.batch.decode_steps <= 4 + 12 + 2


def test_a_request_cancelled_while_it_waits_is_never_computed(model: Any, tokenizer: Any, reference: Reference) -> None:
    engine = build(model, tokenizer, max_batch=1)
    first = Request(PROMPTS[4], 1, 12, 0.7)

    async def run() -> list[Completion]:
        ahead = asyncio.create_task(engine.generate(first))
        await turns(2)
        waiting = asyncio.create_task(engine.generate(Request((SHARED,), 2, 50, 0.7)))
        while engine.batch.decode_steps < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        return await ahead

    assert_same(asyncio.run(run()), reference(first))
    assert engine.batch.decoded_rows <= 12


@pytest.fixture
def broken(model: Any) -> Iterator[Any]:
    """Make the model fail from its n-th forward on; the fixture mends it."""
    handles = []

    def break_after(n: int) -> None:
        left = [n]

        def hook(*_: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("the model broke")

        handles.append(model.base_model.register_forward_pre_hook(hook))

    yield break_after
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("forwards", [0, 3])
def test_a_failure_in_the_model_reaches_every_caller(
    model: Any, tokenizer: Any, reference: Reference, broken: Any, forwards: int
) -> None:
    """In the prefill and while decoding; callers that still wait for room hear of it too, and the engine stays usable."""
    engine = build(model, tokenizer, max_batch=2)
    requests = [Request(prompt, 1, 10, 0.7) for prompt in PROMPTS]

    broken(forwards)
    failures = outcomes(engine, *requests)
    assert [(type(f), str(f)) for f in failures] == [(RuntimeError, "the model broke")] * len(requests)
    model.base_model._forward_pre_hooks.clear()
    assert_same(ask(engine, requests[0])[0], reference(requests[0]))


def test_a_failure_while_joining_reaches_every_caller(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: int) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(engine.batch.slots, "ensure_room", no_room)
    failures = outcomes(engine, *(Request(prompt, 1, 4, 0.0) for prompt in PROMPTS), timeout=1)
    assert [type(f) for f in failures] == [MemoryError] * len(PROMPTS)


def test_a_failure_that_reached_its_callers_is_not_logged_again(model: Any, tokenizer: Any, broken: Any) -> None:
    engine, logged = build(model, tokenizer), list[str]()
    broken(0)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context["message"]))
        with pytest.raises(RuntimeError, match="the model broke"):
            await engine.generate(Request((SHARED,), 1, 4, 0.0))
        await turns(3)
        engine.batch._loop = None
        gc.collect()

    asyncio.run(run())
    assert logged == []


def test_the_engine_outlives_an_event_loop_that_was_left_in_the_middle(
    engine: TransformersEngine, reference: Reference
) -> None:
    async def leave() -> None:
        task = asyncio.create_task(engine.generate(Request((SHARED,), 2, 100, 0.7)))
        while engine.batch.decode_steps < 3:
            await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(leave())
    request = Request(PROMPTS[1], 2, 8, 0.7)
    assert_same(ask(engine, request)[0], reference(request))


# Lengths


def test_a_prompt_beyond_the_context_is_refused_and_harms_no_one(
    engine: TransformersEngine, reference: Reference, tokenizer: Any
) -> None:
    too_long, fine = Request(("7" * 256,), 1, 4, 0.0), Request(PROMPTS[0], 1, 6, 0.0)
    assert len(ids_of(tokenizer, too_long.prompt)) == 256  # the tokenizer gives each digit a token; the context is 256
    refused, answered = outcomes(engine, too_long, fine)
    assert type(refused) is QuestionError
    assert "256" in str(refused)
    assert_same(answered, reference(fine))


def test_a_continuation_ends_where_the_context_does(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [20] * 50)
    [[three]] = ask(engine, Request(("7" * 253,), 1, 50, 1.0))
    assert (three.num_tokens, three.finish_reason) == (3, "length")  # 253 + 3 = 256
    [[one]] = ask(engine, Request(("7" * 255,), 1, 50, 1.0))
    assert (one.num_tokens, one.finish_reason) == (1, "length")


def test_an_empty_prompt_is_refused_and_harms_no_one(engine: TransformersEngine, reference: Reference) -> None:
    fine = Request(PROMPTS[0], 1, 6, 0.0)
    refused, answered = outcomes(engine, Request(("",), 1, 4), fine)
    assert type(refused) is QuestionError
    assert_same(answered, reference(fine))


# Other models


def test_learned_positions(tokenizer: Any) -> None:
    """GPT-2 adds a learned vector a position: any error in position_ids shows."""
    gpt2, engine = tiny_gpt2(tokenizer)
    reference = Reference(gpt2, tokenizer)
    requests = [Request(("7" * 20,), 2, 8, 0.7), Request(("8 9 7",), 1, 8, 0.7)]
    for answer, request in zip(ask(engine, *requests), requests, strict=True):
        assert_same(answer, reference(request))


def test_padding_never_leaves_the_context(tokenizer: Any) -> None:
    gpt2, engine = tiny_gpt2(tokenizer)
    reference = Reference(gpt2, tokenizer)
    ask(engine, Request(("7" * 40,), 1, 2, 0.0))
    # 40 of the first prompt's 44 tokens are stored and 30 are new in the second: padded to 39 + 29 > 64.
    requests = [Request(("8" * 30,), 1, 4, 0.0), Request(("7" * 40, "8888"), 1, 4, 0.0)]
    for answer, request in zip(ask(engine, *requests), requests, strict=True):
        assert_same(answer, reference(request))


def tiny_gpt2(tokenizer: Any) -> tuple[Any, TransformersEngine]:
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=1
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gpt2 = GPT2LMHeadModel(config).eval()
        with torch.no_grad():
            for parameter in gpt2.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(10.0)
    return gpt2, build(gpt2, tokenizer)


def test_eager_attention_gives_the_same(model: Any, tokenizer: Any, reference: Reference) -> None:
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    engine = build(eager, tokenizer)
    requests = [Request(prompt, 1, 8, 0.0) for prompt in PROMPTS]
    for answer, request in zip(ask(engine, *requests), requests, strict=True):
        assert_same(answer, reference(request))


def test_a_folder_is_loaded_by_name(tiny_model: Path) -> None:
    engine = TransformersEngine(EngineConfig(str(tiny_model), device="cpu"))
    assert engine.model.dtype == torch.float32
    [[completion]] = ask(engine, Request((SHARED,), 1, 3, 0.0))
    assert completion.num_tokens >= 1
    assert engine.chat_template is None


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        TransformersEngine(EngineConfig(str(tmp_path / "none")))
    with pytest.raises(ModelError, match=r"config\.json"):
        TransformersEngine(EngineConfig(str(tmp_path)))


def test_configurations_out_of_range() -> None:
    with pytest.raises(ConfigError, match=r"engine\.max_batch is 0; expected a whole number >= 1"):
        EngineConfig(max_batch=0)
    with pytest.raises(ConfigError, match=r"engine\.cache_mb is -1; expected a whole number >= 0"):
        EngineConfig(cache_mb=-1)
    with pytest.raises(ConfigError, match=r"request\.n is 0; expected a whole number >= 1"):
        Request(("7",), n=0)
    with pytest.raises(ConfigError, match=r"request\.max_tokens is 0; expected a whole number >= 1"):
        Request(("7",), max_tokens=0)
    with pytest.raises(ConfigError, match=r"request\.temperature is -1; expected a number >= 0"):
        Request(("7",), temperature=-1)


def test_no_bfloat16_on_cpus() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) == torch.float32
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_a_first_token_that_the_template_adds_is_kept(tmp_path: Path, tiny_model: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    bos = tokenizer.bos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", bos)])
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("7").input_ids[0] == bos
    assert Encoder(loaded)(("7",))[0] == bos
