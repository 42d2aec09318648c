"""The openvino engine against the transformers engine, and the exports it runs. Skipped where openvino-genai is missing."""

import asyncio
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("openvino_genai")

from llm_mcts.engines.base import Completion, Engine, EngineConfig, OpenVINOConfig, Request
from llm_mcts.engines.openvino.engine import OpenVINOEngine
from llm_mcts.engines.openvino.engine import export as openvino_export
from llm_mcts.engines.openvino.export import GRAPH, MANIFEST, WEIGHTS, export_key, export_model
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.models import EMBEDDED
from llm_mcts.prompts import Encoder
from llm_mcts.types import Usage, metered

ANN = ("Question: Ann has 5 apples and buys 7 more. How many apples does Ann have?\nAnswer:\n",)
BOB = ("Question: Bob has 20 pens and loses 4.\nThen Bob finds 3 pens. How many pens does Bob have?\nAnswer:\n",)
# 24 of these lines are 300 to 500 tokens: more than the 256 that the library computes in one step.
LINE = "Ann has 5 + 7 = 12 apples.\n"


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="module")
def build(exports: str) -> Callable[..., OpenVINOEngine]:
    """An engine with float32 weights and a float32 cache, or as told."""

    def make(model: str = EMBEDDED, weights: Any = "float32", **settings: Any) -> OpenVINOEngine:
        settings = {"dtype": "float32", "cache_mb": 64, **settings}
        return OpenVINOEngine(EngineConfig(model, name="openvino", openvino=OpenVINOConfig(weights, exports), **settings))

    return make


@pytest.fixture(scope="module")
def engine(build: Callable[..., OpenVINOEngine]) -> OpenVINOEngine:
    return build()


@pytest.fixture(scope="module")
def reference() -> TransformersEngine:
    return TransformersEngine(EngineConfig(device="cpu"))


def ask(engine: Engine, *requests: Request) -> list[list[Completion]]:
    async def all_at_once() -> list[list[Completion]]:
        return list(await asyncio.gather(*(engine.generate(request) for request in requests)))

    return asyncio.run(all_at_once())


def usage_of(engine: Engine, request: Request) -> Usage:
    async def run() -> Usage:
        with metered() as usage:
            await engine.generate(request)
        return usage

    return asyncio.run(run())


def truth(reference: TransformersEngine, segments: tuple[str, ...], start: int) -> list[float]:
    """The log-probability of every token behind the first `start`, by one plain forward."""
    ids = Encoder(reference.tokenizer)(segments)
    with torch.no_grad():
        scores = reference.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [scores[i - 1, ids[i]].item() for i in range(start, len(ids))]


# Tokens and log-probabilities


def test_greedy_tokens_are_those_of_the_transformers_engine(
    engine: OpenVINOEngine, reference: TransformersEngine, build: Callable[..., OpenVINOEngine], tiny_model: Path
) -> None:
    requests = [Request(prompt, 1, 60, 0.0) for prompt in (ANN, BOB, (*ANN, "Ann has"), (*BOB, LINE * 12))]
    requests += [Request(ANN, 2, 60, 0.0, ("\n",)), Request(BOB, 1, 60, 0.0, ("apples", "="))]
    tiny = str(tiny_model)
    pairs = [(engine, reference), (build(tiny), TransformersEngine(EngineConfig(model=tiny, device="cpu")))]
    for ours, theirs in pairs:
        for found, expected in zip(ask(ours, *requests), ask(theirs, *requests), strict=True):
            assert [(c.text, c.num_tokens, c.finish_reason) for c in found] == [
                (c.text, c.num_tokens, c.finish_reason) for c in expected
            ]
            # Sums of up to 60 float32 log-probabilities, computed by other kernels.
            assert [c.logprob for c in found] == pytest.approx([c.logprob for c in expected], abs=2e-3)


def test_int8_weights_change_log_probabilities_little(
    build: Callable[..., OpenVINOEngine], reference: TransformersEngine
) -> None:
    [[solved]] = ask(reference, Request(ANN, 1, 60, 0.0))
    [found] = asyncio.run(build(weights="int8").logprobs(ANN, [(solved.text,)]))
    start = len(Encoder(reference.tokenizer)(ANN))
    expected = truth(reference, (*ANN, solved.text), start)
    apart = [abs(a - b) for a, b in zip(found, expected, strict=True)]
    assert 1e-5 < max(apart) < 0.3  # the weights are other ones, by about 0.4 %
    assert sum(apart) / len(apart) < 0.03


def test_fewer_bits_make_a_smaller_export(tiny_model: Path, build: Callable[..., OpenVINOEngine], exports: str) -> None:
    tiny = str(tiny_model)
    [[c]] = ask(build(tiny, "int4"), Request(ANN, 1, 3, 0.0))
    assert 1 <= c.num_tokens <= 3
    wholes, fours = (export_model(tiny, OpenVINOConfig(w, exports)).folder / WEIGHTS for w in ("float32", "int4"))
    assert fours.stat().st_size < 0.5 * wholes.stat().st_size


@pytest.mark.parametrize("lines", [1, 24])
def test_logprobs_of_continuations(engine: OpenVINOEngine, reference: TransformersEngine, lines: int) -> None:
    prompt = (*ANN, *[LINE] * lines)
    continuations = [("+",), ("-",), (LINE, "#### 12\n"), ()]
    ask(engine, Request((*prompt, LINE), 1, 8, 0.0))  # what is in the cache changes nothing
    start = len(Encoder(reference.tokenizer)(prompt))
    expected = [truth(reference, (*prompt, *c), start) for c in continuations]
    for _ in range(2):
        found = asyncio.run(engine.logprobs(prompt, continuations))
        assert [len(f) for f in found] == [len(e) for e in expected]
        for one, other in zip(found, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)  # float32 of other kernels, values down to -20


# Sampling


def first_tokens(engine: OpenVINOEngine, n: int = 400, **settings: Any) -> list[str]:
    [drawn] = ask(engine, Request(("Question: Ann has 5",), n, 1, seed=5, **settings))
    return [c.text for c in drawn]


@pytest.fixture(scope="module")
def next_tokens(reference: TransformersEngine) -> tuple[list[str], list[float]]:
    """The tokens that may follow "Question: Ann has 5" and their probabilities at temperature 2, the likeliest first."""
    ids = torch.tensor([Encoder(reference.tokenizer)(("Question: Ann has 5",))])
    with torch.no_grad():
        p = (reference.model(ids).logits[0, -1].float() / 2).softmax(-1)
    ranked = p.argsort(descending=True).tolist()
    return [reference.tokenizer.decode([i], skip_special_tokens=True) for i in ranked], [p[i].item() for i in ranked]


def test_samples_follow_the_distribution(engine: OpenVINOEngine, next_tokens: tuple[list[str], list[float]]) -> None:
    texts, p = next_tokens
    drawn = first_tokens(engine, 1000, temperature=2.0)
    for text, share in list(zip(texts, p, strict=True))[:4]:
        # Five standard deviations of a share of 1000 draws; the seed is fixed.
        assert drawn.count(text) / 1000 == pytest.approx(share, abs=5 * (share * (1 - share) / 1000) ** 0.5)


def test_truncated_sampling(engine: OpenVINOEngine, next_tokens: tuple[list[str], list[float]]) -> None:
    texts, p = next_tokens
    free = set(first_tokens(engine, temperature=2.0))
    assert set(first_tokens(engine, temperature=2.0, top_k=3)) == set(texts[:3])
    nucleus = next(i for i in range(len(p)) if sum(p[: i + 1]) >= 0.5) + 1
    assert set(first_tokens(engine, temperature=2.0, top_p=0.5)) == set(texts[:nucleus])
    likely = sum(share >= 0.4 * p[0] for share in p)
    assert set(first_tokens(engine, temperature=2.0, min_p=0.4)) == set(texts[:likely])
    for kept in (3, nucleus, likely):
        assert len(set(texts[:kept])) < len(free)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_neighbours_and_cache_do_not_change_samples(build: Callable[..., OpenVINOEngine], weights: str) -> None:
    requests = [Request((*p, *[LINE] * k), 3, 24, 1.0, ("\n",), seed=k) for k in range(4) for p in (ANN, BOB)]
    alone = build(weights=weights)
    expected = [ask(alone, request)[0] for request in requests]
    for found in (ask(build(weights=weights), *requests), ask(alone, *reversed(requests))[::-1]):
        assert [[c.text for c in cs] for cs in found] == [[c.text for c in cs] for cs in expected]


# The cache


def test_reuse_is_what_the_library_reuses(build: Callable[..., OpenVINOEngine]) -> None:
    engine = build()
    prompt = (*ANN, *[LINE] * 9)
    ids = engine._encode(prompt)
    assert usage_of(engine, Request(prompt, 1, 4, 0.0)).prefilled_tokens == len(ids)
    again = usage_of(engine, Request((*prompt, "so"), 1, 4, 0.0))
    assert again.reused_tokens == len(ids) // 32 * 32
    assert again.reused_tokens + again.prefilled_tokens == len(engine._encode((*prompt, "so")))
    # With `echo` the library tells a log-probability for each token it computes, but the first, and for the one it samples.
    longer = engine._encode((*prompt, "and then "))
    settings = engine._settings()
    settings.max_new_tokens, settings.echo = 1, True
    handle = engine._pipeline.add_request(10**6, engine._tensor(torch.tensor([longer]).numpy()), settings)
    while engine._pipeline.has_non_finished_requests():
        engine._pipeline.step()
    [output] = handle.read().values()
    assert len(longer) - len(output.generated_log_probs) == again.reused_tokens


def test_continuations_of_one_prompt_share_it(build: Callable[..., OpenVINOEngine]) -> None:
    engine = build()
    prompt = (*ANN, LINE, LINE)
    length = len(engine._encode(prompt))
    usage = usage_of(engine, Request(prompt, 5, 4, 1.0))
    assert usage.reused_tokens == 4 * (length // 32 * 32) > 0


def test_a_small_cache_gives_the_same_texts(build: Callable[..., OpenVINOEngine], engine: OpenVINOEngine) -> None:
    """1 MB holds 256 tokens of the embedded model: ten texts of up to 160 must take turns."""
    requests = [Request((*ANN, *[LINE] * k), 2, 60, 1.0, seed=k) for k in range(5)]
    small = build(cache_mb=1)
    assert small._pool.room == 256
    found, expected = ask(small, *requests), ask(engine, *requests)
    assert [[c.text for c in cs] for cs in found] == [[c.text for c in cs] for cs in expected]


def test_what_does_not_fit_is_told(build: Callable[..., OpenVINOEngine]) -> None:
    small = build(cache_mb=1)
    with pytest.raises(QuestionError, match=r"may grow to 325; expected at most the 256 that engine\.cache_mb=1 has room for"):
        ask(small, Request(ANN, 1, 300))  # the prompt is 25 tokens
    assert ask(small, Request(ANN, 1, 4, 0.0)) == ask(small, Request(ANN, 1, 4, 0.0))


# Life


def test_limits_of_the_context(engine: OpenVINOEngine) -> None:
    with pytest.raises(QuestionError, match="the prompt is empty"):
        ask(engine, Request(("",)))
    with pytest.raises(QuestionError, match="expected fewer than the model's context of 512"):
        ask(engine, Request((LINE * 60,)))
    engine.endings.eos, eos = frozenset(), engine.endings.eos
    try:
        [[c]] = ask(engine, Request(ANN, 1, 10_000, 0.0))
    finally:
        engine.endings.eos = eos
    assert (c.num_tokens, c.finish_reason) == (512 - len(engine._encode(ANN)), "length")


def test_a_cancelled_caller_frees_its_place(build: Callable[..., OpenVINOEngine]) -> None:
    engine = build(max_batch=2)
    steps = 0

    def counted(step: Callable[[], None] = engine._step) -> None:
        nonlocal steps
        steps += 1
        step()

    engine._step = counted  # type: ignore[method-assign]
    engine.endings.eos = frozenset()

    async def run() -> list[Completion]:
        leaving = asyncio.create_task(engine.generate(Request(BOB, 6, 400, 1.0)))
        while steps < 3:
            await asyncio.sleep(0)
        leaving.cancel()
        return await engine.generate(Request(ANN, 1, 10, 0.0))

    [staying] = asyncio.run(run())
    assert staying.num_tokens == 10
    assert steps < 20
    assert not engine._pipeline.has_non_finished_requests()


def test_a_failing_step_reaches_every_caller(build: Callable[..., OpenVINOEngine]) -> None:
    engine = build()
    step = engine._step

    def broken() -> None:
        raise RuntimeError("the library broke")

    engine._step = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the library broke"):
        ask(engine, Request(ANN, 2, 4), Request(BOB, 1, 4))
    engine._step = step  # type: ignore[method-assign]
    assert len(ask(engine, Request(ANN, 2, 4))[0]) == 2


def test_closing_ends_what_is_under_way(build: Callable[..., OpenVINOEngine]) -> None:
    engine = build()
    engine.endings.eos = frozenset()

    async def run() -> BaseException | list[Completion]:
        task = asyncio.create_task(engine.generate(Request(ANN, 2, 400)))
        await asyncio.sleep(0.01)
        await engine.aclose()
        [result] = await asyncio.gather(task, return_exceptions=True)
        return result

    assert "the engine was stopped" in str(asyncio.run(run()))
    assert engine._pipeline is None


def test_other_devices_are_refused(build: Callable[..., OpenVINOEngine]) -> None:
    with pytest.raises(ConfigError, match=r"engine\.device is 'cuda'; expected auto or cpu"):
        build(device="cuda")


# Exports


@pytest.fixture
def checkpoint(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_an_export_is_made_once(checkpoint: Path, tiny_model: Path, exports: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OpenVINOConfig("float32", exports)
    made = export_model(str(tiny_model), config)
    assert {p.name for p in made.folder.iterdir()} == {MANIFEST, WEIGHTS, GRAPH}
    # Two layers, keys and values, two heads of 8 numbers.
    assert (made.context, made.cache_values, len(made.eos)) == (256, 64, 1)
    monkeypatch.setattr(openvino_export, "_write", lambda *_: pytest.fail("made again"))
    assert export_model(str(checkpoint), config) == made
    assert [p.name for p in Path(exports).glob(".*")] == []


def test_the_key_follows_the_checkpoint(checkpoint: Path) -> None:
    key = export_key(str(checkpoint), "int8")
    assert export_key(str(checkpoint), "int8") == key
    assert export_key(str(checkpoint), "int4") != key
    (checkpoint / "notes.txt").write_text("not part of the model")
    assert export_key(str(checkpoint), "int8") == key
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        path = checkpoint / name
        before = path.read_bytes()
        path.write_bytes(before + b" ")
        assert export_key(str(checkpoint), "int8") != key
        path.write_bytes(before)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no manifest", "half a manifest", "no weights"])
def test_a_damaged_export_is_made_anew(
    damage: str,
    exports: str,
    tiny_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = OpenVINOConfig("float32", str(tmp_path / "exports"))
    sound = export_model(str(tiny_model), OpenVINOConfig("float32", exports)).folder
    monkeypatch.setattr(openvino_export, "_write", lambda _model, _weights, to: shutil.copytree(sound, to, dirs_exist_ok=True))
    folder = Path(shutil.copytree(sound, tmp_path / "exports" / sound.name))
    weights, manifest = folder / WEIGHTS, folder / MANIFEST
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "flipped":
            data = bytearray(weights.read_bytes())
            data[len(data) // 2] ^= 1
            weights.write_bytes(data)
        case "no manifest":
            manifest.unlink()
        case "half a manifest":
            manifest.write_text(manifest.read_text()[:20])
        case "no weights":
            weights.unlink()
    with caplog.at_level(logging.WARNING):
        made = export_model(str(tiny_model), config)
    assert "is damaged" in caplog.text
    assert made.folder == folder
    assert json.loads(manifest.read_text())["files"].keys() == {GRAPH, WEIGHTS}
    assert weights.read_bytes() == (sound / WEIGHTS).read_bytes()
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_failed_export_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OpenVINOConfig("float32", str(tmp_path / "exports"))

    def broken(_: Any) -> Any:
        raise ValueError("no rule for aten::frobnicate\nand a long trace")

    monkeypatch.setattr(openvino_export, "_convert", broken)
    wanted = "of type 'llama' for OpenVINO: ValueError: no rule for aten::frobnicate; expected a decoder as of the Llama family"
    with pytest.raises(ModelError, match=wanted):
        export_model(str(checkpoint), config)
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_graph_without_its_cache_is_not_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.exporters import exporter_openvino

    config = OpenVINOConfig("float32", str(tmp_path / "exports"))
    monkeypatch.setattr(exporter_openvino, "_find_state_pairs", lambda *_: {})
    with pytest.raises(ModelError, match="with 0 variables for its cache; expected 4, keys and values of each layer"):
        export_model(str(checkpoint), config)
    assert list((tmp_path / "exports").iterdir()) == []


def test_a_lora_adapter_is_merged(tiny_model: Path, tmp_path: Path, build: Callable[..., OpenVINOEngine]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    folder = str(tmp_path / "adapter")
    adapted.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    request = Request(ANN, 1, 30, 0.0)
    [[expected]] = ask(TransformersEngine(EngineConfig(model=folder, device="cpu")), request)
    [[found]], [[plain]] = ask(build(folder), request), ask(build(str(tiny_model)), request)
    assert found.text == expected.text
    assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)  # 30 log-probabilities of about -5, other kernels
    assert abs(plain.logprob - expected.logprob) > 0.05
