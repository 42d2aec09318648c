"""What every engine keeps to, whatever stands behind it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_mcts.engines.base import Completion, Engine, EngineConfig, OpenAIConfig, OpenVINOConfig, Request
from llm_mcts.engines.openai.engine import OpenAIEngine
from llm_mcts.engines.openvino.engine import OpenVINOEngine
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.types import metered
from tests.fake_openai import FakeServer, HashModel, serve, serving

FIRST = ("Question: Ann has 5 apples.\nAnswer:\n",)
REQUEST = Request(FIRST, 4, 12, 1.0, seed=1)
OTHERS = [
    Request((*FIRST, "Ann has 5 apples.\n"), 2, 12, 0.7, ("\n",), seed=2),
    Request(("Question: 7?\nAnswer:\n",), 1, 3, 0.0),
    Request(FIRST, 3, 12, 1.0, ("\n",), seed=1),
]


def script(prompt: str) -> Sequence[tuple[str, float]]:
    """Three lines and an end; what may come depends on the line before."""
    if prompt.count("\n") >= 6:
        return []
    return [("2 + 2 = 4", 0.5), ("2 + 2 = 5", 0.3), (f"so {len(prompt) % 7}", 0.2)]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """Serves a made-up model as vLLM would."""
    with serving(serve(HashModel(blank_lines=False))) as running:
        yield running


@pytest.fixture(scope="session")
def vllm_engine() -> Iterator[Engine]:
    """One for all tests, since vLLM takes half a minute to start; scripts/check_vllm.sh compares two of them.

    It runs the built-in model: vLLM on a CPU knows no attention heads as small as the tiny model's.
    """
    pytest.importorskip("vllm", reason="vLLM is not installed; scripts/check_vllm.sh runs this with it")
    from llm_mcts.engines.vllm.engine import VLLMEngine

    engine = VLLMEngine(EngineConfig(name="vllm", max_batch=8, cache_mb=64))
    yield engine
    asyncio.run(engine.aclose())


ENGINES = [
    "scripted",
    "scripted, late",
    "transformers",
    "transformers, two at a time",
    "openai",
    "openvino",
    "openvino, two at a time",
    "vllm",
]


@pytest.fixture(params=ENGINES)
def build(request: pytest.FixtureRequest, tiny_model: Path, server: FakeServer) -> Callable[[], Engine]:
    """Makes the same engine, anew at each call."""
    if request.param.startswith("openvino"):
        pytest.importorskip("openvino_genai")
    model, openvino = str(tiny_model), OpenVINOConfig("float32", exports=str(tiny_model.parent / "exports"))
    builders: dict[str, Callable[[], Engine]] = {
        "scripted": lambda: ScriptedEngine(script),
        "scripted, late": lambda: ScriptedEngine(script, turns=lambda r: 7 * (r.seed + r.n) % 5),
        "transformers": lambda: TransformersEngine(EngineConfig(model, device="cpu")),
        "transformers, two at a time": lambda: TransformersEngine(EngineConfig(model, device="cpu", max_batch=2, cache_mb=0)),
        "openai": lambda: OpenAIEngine(EngineConfig(name="openai", model="made-up", openai=OpenAIConfig((server.url,)))),
        "openvino": lambda: OpenVINOEngine(EngineConfig(model, name="openvino", openvino=openvino)),
        "openvino, two at a time": lambda: OpenVINOEngine(
            EngineConfig(model, name="openvino", max_batch=2, cache_mb=0, openvino=openvino)
        ),
        "vllm": lambda: request.getfixturevalue("vllm_engine"),
    }
    return builders[request.param]


def ask(engine: Engine, *requests: Request) -> list[list[Completion]]:
    async def all_at_once() -> list[list[Completion]]:
        return list(await asyncio.gather(*(engine.generate(request) for request in requests)))

    return asyncio.run(all_at_once())


def assert_same(found: list[Completion], expected: list[Completion]) -> None:
    assert [replace(c, logprob=0.0) for c in found] == [replace(c, logprob=0.0) for c in expected]
    # Sums of 12 float32 log-probabilities of about -6 each, computed in another batch: 1e-4.
    assert [c.logprob for c in found] == pytest.approx([c.logprob for c in expected], abs=1e-4)


def test_it_is_an_engine(build: Callable[[], Engine]) -> None:
    engine = build()
    assert isinstance(engine, Engine)
    assert engine.chat_template is None  # neither the script nor the tiny model has one


def test_completions(build: Callable[[], Engine]) -> None:
    for request, completions in zip(OTHERS, ask(build(), *OTHERS), strict=True):
        assert len(completions) == request.n
        for completion in completions:
            assert type(completion) is Completion
            assert 1 <= completion.num_tokens <= request.max_tokens
            assert completion.logprob < 0
            assert completion.finish_reason in ("stop", "eos", "length")
            if completion.finish_reason == "length":
                assert completion.num_tokens == request.max_tokens


def test_no_stop_string_means_no_stop(build: Callable[[], Engine]) -> None:
    [completions] = ask(build(), REQUEST)
    assert "stop" not in {c.finish_reason for c in completions}


def test_the_newline_as_stop(build: Callable[[], Engine]) -> None:
    [completions] = ask(build(), Request(FIRST, 16, 60, 1.0, ("\n",), seed=3))
    stopped = [c for c in completions if c.finish_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert "\n" not in completion.text
        assert completion.text.strip() != ""


def test_the_same_request_has_the_same_answer(build: Callable[[], Engine]) -> None:
    engine = build()
    [once], [twice], [elsewhere] = ask(engine, REQUEST), ask(engine, REQUEST), ask(build(), REQUEST)
    assert_same(twice, once)
    assert_same(elsewhere, once)


def test_company_and_order_do_not_matter(build: Callable[[], Engine]) -> None:
    requests = [REQUEST, *OTHERS]
    alone = [ask(build(), request)[0] for request in requests]
    together = ask(build(), *requests)
    backwards = ask(build(), *requests[::-1])[::-1]
    for one, two, three in zip(alone, together, backwards, strict=True):
        assert_same(two, one)
        assert_same(three, one)


def test_continuation_i_depends_on_seed_and_i_alone(build: Callable[[], Engine]) -> None:
    [four], [two] = ask(build(), REQUEST), ask(build(), replace(REQUEST, n=2))
    assert_same(two, four[:2])


def test_samples_and_seeds_differ(build: Callable[[], Engine]) -> None:
    seeds = [replace(REQUEST, seed=seed) for seed in range(2)]
    first, second = ask(build(), *seeds)
    assert len({c.text for c in first}) > 1
    assert [c.text for c in first] != [c.text for c in second]


def test_greedy_ignores_the_seed(build: Callable[[], Engine]) -> None:
    greedy = replace(REQUEST, temperature=0.0)
    [three], [other] = ask(build(), greedy), ask(build(), replace(greedy, seed=9))
    assert_same(three, [three[0]] * 4)
    assert_same(other, three)


def test_the_logprob_is_that_of_temperature_1(build: Callable[[], Engine]) -> None:
    """Cold samples of a token or line are greedy ones, and as likely as those."""
    [[cold]] = ask(build(), Request(FIRST, 1, 1, 0.0))
    [warm] = ask(build(), Request(FIRST, 30, 1, 1.0))
    same = [c for c in warm if c.text == cold.text]
    assert [c.logprob for c in same] == pytest.approx([cold.logprob] * len(same), abs=1e-4)
    assert max(c.logprob for c in warm) <= cold.logprob + 1e-4


def test_usage_is_counted_once_for_who_asked(build: Callable[[], Engine]) -> None:
    engine = build()

    async def one(request: Request) -> tuple[int, int, int]:
        with metered() as usage:
            completions = await engine.generate(request)
        assert usage.critic_calls == usage.critic_tokens == 0
        return usage.lm_calls, usage.generated_tokens, sum(c.num_tokens for c in completions)

    async def both() -> list[tuple[int, int, int]]:
        return list(await asyncio.gather(*(one(request) for request in [REQUEST, *OTHERS])))

    for calls, generated, sampled in asyncio.run(both()):
        assert calls == 1
        assert generated == sampled


def test_a_cancelled_caller_harms_no_one(build: Callable[[], Engine]) -> None:
    engine = build()

    async def run() -> list[Completion]:
        leaving, staying = (asyncio.create_task(engine.generate(r)) for r in (OTHERS[0], REQUEST))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert_same(asyncio.run(run()), ask(build(), REQUEST)[0])


def test_one_engine_serves_one_event_loop_after_another(build: Callable[[], Engine]) -> None:
    engine = build()
    assert_same(ask(engine, REQUEST)[0], ask(engine, REQUEST)[0])


# The script alone: every number by hand


def test_scripted_probabilities_and_ends() -> None:
    engine = ScriptedEngine(lambda prompt: [("one", 0.25), ("two", 0.75)] if prompt.count("\n") < 2 else [])
    [[whole]] = ask(engine, Request(("go\n",), 1, 9, 0.0))
    assert (whole.text, whole.num_tokens, whole.finish_reason) == ("two\n", 1, "eos")
    assert whole.logprob == pytest.approx(-0.2876820724517809)  # ln 0.75
    [[cut]] = ask(engine, Request(("go ",), 1, 1, 0.0))
    assert (cut.text, cut.finish_reason) == ("two\n", "length")
    assert [request.prompt for request in engine.requests] == [("go\n",), ("go ",)]


def test_scripted_shares() -> None:
    engine = ScriptedEngine(lambda _: [("one", 0.25), ("two", 0.75)])
    [drawn] = ask(engine, Request(("go\n",), 4000, 1, 1.0))
    share = sum(c.text == "one\n" for c in drawn) / 4000
    # Standard deviation sqrt(0.25 * 0.75 / 4000) = 0.0068; five of them are 0.034. The seed is fixed.
    assert share == pytest.approx(0.25, abs=0.034)
