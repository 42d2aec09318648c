"""Published process reward models: asked as their authors' code asks them, cached, batched, refused."""

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM, Qwen2Config, Qwen2Model

from critics.published.formats import FORMATS
from critics.published.loading import load_step_judge
from critics.published.prm import PublicPRM, load_public
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.types import Critic, State, metered
from tests.public_cases import (
    BUILDERS,
    LINES,
    LLAMA_TEMPLATE,
    QUESTION,
    SIZES,
    STATES,
    Published,
    expected,
    random_model,
    state,
)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    return {name: build(tmp_path_factory.mktemp("public") / name) for name, build in BUILDERS.items()}


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(critic: PublicPRM, states: list[State]) -> list[list[float]]:
    return asyncio.run(critic.step_scores(states))


# Scores


def test_every_format_is_tested() -> None:
    assert BUILDERS.keys() == FORMATS.keys()


def test_scores_are_those_of_the_authors_way(published: dict[str, Published], name: str) -> None:
    critic = load_public(published[name].folder, name)
    assert isinstance(critic, PublicPRM) and isinstance(critic, Critic)
    wanted = [expected(published[name], s) for s in STATES]
    for scores, want in zip(ask(critic, STATES), wanted, strict=True):
        assert scores == pytest.approx(want, abs=1e-5)
    single = [score for scores in wanted for score in scores[1:]]
    assert max(single) - min(single) > 0.05  # they depend on the text
    assert len({round(score, 4) for score in single}) > 8


def test_a_position_off_by_one_would_be_noticed(published: dict[str, Published], name: str) -> None:
    critic = load_public(published[name].folder, name)
    assert isinstance(critic, PublicPRM)
    right = critic._format.ids
    critic._format.ids = lambda *text: right(*text)[:-1]  # type: ignore[method-assign]
    for scores, asked in zip(ask(critic, STATES), STATES, strict=True):
        wanted = expected(published[name], asked)
        assert max(abs(a - b) for a, b in zip(scores, wanted, strict=True)) > 1e-3


def test_a_step_is_judged_at_its_token(published: dict[str, Published], name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published[name].folder)
    ids = FORMATS[name](tokenizer).ids(QUESTION, LINES[:2])
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == published[name].judged
    written = {
        "math_shepherd": "<s> Ann has 5 apples and buys 3 more. How many apples does Ann have now? "
        "Step 1: Ann has 5 + 3 = 8 apples. ки\nStep 2: Then Ann has 8 - 1 = 7 apples left. ки",
        "rlhflow": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "Ann has 5 apples and buys 3 more. How many apples does Ann have now? Ann has 5 + 3 = 8 apples.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n+<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nThen Ann has 8 - 1 = 7 apples left.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "qwen": "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nAnn has 5 apples and buys 3 more. How many apples does Ann have now?<|im_end|>\n"
        "<|im_start|>assistant\nAnn has 5 + 3 = 8 apples.<extra_0>Then Ann has 8 - 1 = 7 apples left.<extra_0>",
        "skywork": "<|endoftext|>Ann has 5 apples and buys 3 more. How many apples does Ann have now?\n"
        "Ann has 5 + 3 = 8 apples.\nThen Ann has 8 - 1 = 7 apples left.\n",
    }[name]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == written


def test_neither_cache_nor_order_nor_company_matter(published: dict[str, Published], name: str) -> None:
    first = load_public(published[name].folder, name)
    assert isinstance(first, PublicPRM)
    wanted = dict(zip(STATES, ask(first, STATES), strict=True))
    for seed, cache_mb in itertools.product(range(3), (0, 512)):
        critic = PublicPRM(first.batch.model, first._head, first._format, max_batch=3, cache_mb=cache_mb)
        shuffled = random.Random(seed).sample(STATES, len(STATES))

        async def at_once(critic: PublicPRM = critic, shuffled: list[State] = shuffled) -> list[list[list[float]]]:
            return list(await asyncio.gather(*(critic.step_scores([s]) for s in shuffled)))

        for asked, [scores] in zip(shuffled, asyncio.run(at_once()), strict=True):
            assert scores == pytest.approx(wanted[asked], abs=1e-5)


def test_a_new_step_costs_its_own_tokens(published: dict[str, Published], name: str) -> None:
    critic = load_public(published[name].folder, name)
    assert isinstance(critic, PublicPRM)
    ids = [critic._format.ids(QUESTION, LINES[:k]) for k in (1, 2)]
    with metered() as usage:
        ask(critic, [state(LINES[0])])
        assert usage.critic_tokens == len(ids[0])
        ask(critic, [state(*LINES[:2])])
        assert usage.critic_tokens == len(ids[1])
        ask(critic, [state(*LINES[:2]), state(LINES[0])])
    assert (usage.critic_tokens, usage.critic_calls) == (len(ids[1]), 4)


# Aggregates and bare questions


def test_steps_become_one_score(published: dict[str, Published]) -> None:
    critic = load_public(published["qwen"].folder, "qwen", "min")
    steps = expected(published["qwen"], STATES[0])[1:]
    assert len(set(steps)) == 3
    assert asyncio.run(critic.score(STATES[:1])) == pytest.approx([min(steps)], abs=1e-5)
    assert isinstance(critic, PublicPRM)
    assert asyncio.run(critic.aggregated("last").score(STATES[:1])) == pytest.approx([steps[-1]], abs=1e-5)
    assert asyncio.run(critic.score(STATES[:1])) == pytest.approx([min(steps)], abs=1e-5)
    with pytest.raises(ConfigError, match="aggregate is 'median'"):
        critic.aggregated("median")


def test_a_bare_question_is_neutral_and_free(published: dict[str, Published], name: str) -> None:
    critic = load_public(published[name].folder, name, "min")
    with metered() as usage:
        assert asyncio.run(critic.score([state(), state(question="7?")])) == [0.5, 0.5]
    assert usage.critic_tokens == 0


# Texts that cannot be judged


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("math_shepherd", "so 3 ки and 4"),
        ("math_shepherd", "the end</s>"),
        ("rlhflow", "fine<|eot_id|>"),
        ("qwen", "one<extra_0>two"),
        ("qwen", "<|im_end|>"),
        ("skywork", "one\ntwo"),
        ("skywork", "<|endoftext|>"),
    ],
)
def test_a_step_with_the_models_own_tokens_is_refused(published: dict[str, Published], name: str, line: str) -> None:
    critic = load_public(published[name].folder, name)
    with pytest.raises(QuestionError):
        asyncio.run(critic.score([state(LINES[0], line)]))
    if "\n" not in line:
        with pytest.raises(QuestionError):
            asyncio.run(critic.score([state(LINES[0], question=f"{QUESTION} {line}")]))
    assert asyncio.run(critic.score([state(LINES[0])]))[0] == pytest.approx(
        expected(published[name], state(LINES[0]))[1], abs=1e-5
    )


def test_states_longer_than_the_context_are_refused(published: dict[str, Published], name: str) -> None:
    critic = load_public(published[name].folder, name)
    with pytest.raises(QuestionError, match="expected at most the critic's context of 640"):
        asyncio.run(critic.score([state(LINES[0], "7 " * 640)]))


def test_text_that_a_tokenizer_joins_across_steps_is_read_apart(published: dict[str, Published]) -> None:
    critic = load_public(published["skywork"].folder, "skywork")
    assert isinstance(critic, PublicPRM)
    right = critic._format.ids
    critic._format.ids = lambda question, steps: [*right(question, steps)[: 5 * len(steps)], 7 + len(steps)]  # type: ignore[method-assign]
    together = ask(critic, [state(*LINES)])[0]
    critic = load_public(published["skywork"].folder, "skywork")
    assert isinstance(critic, PublicPRM)
    critic._format.ids = lambda question, steps: [*right(question, steps)[: 5 * len(steps)], 7 + len(steps)]  # type: ignore[method-assign]
    apart = [ask(critic, [state(*LINES[:k])])[0][-1] for k in (1, 2, 3)]
    assert together[1:] == pytest.approx(apart, abs=1e-5)
    assert len({round(score, 4) for score in apart}) == 3


# Loading


def test_a_sliding_window_bounds_the_context(tmp_path: Path, published: dict[str, Published]) -> None:
    model = published["math_shepherd"]
    for file in model.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 100}))
    critic = load_public(tmp_path, "math_shepherd")
    assert isinstance(critic, PublicPRM)
    assert critic.batch.context == 100
    assert ask(critic, STATES[5:6])[0] == pytest.approx(expected(model, STATES[5]), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "name", "words"),
    [
        ("rlhflow", "qwen", "'<extra_0>' as"),
        ("math_shepherd", "rlhflow", "no chat template"),
        ("rlhflow", "skywork", "begin-of-text"),
        ("skywork", "qwen", "no chat template"),
        ("qwen", "classifier", "lacks fitting weights"),
    ],
)
def test_another_format_is_refused(published: dict[str, Published], model: str, name: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        load_public(published[model].folder, name)


def test_a_head_that_is_missing_is_refused(published: dict[str, Published], tmp_path: Path) -> None:
    model = random_model(Qwen2Model, Qwen2Config(**SIZES | {"vocab_size": 600}))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(published["qwen"].folder).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no tensor score\.0\.weight"):
        load_public(tmp_path, "qwen")


def test_logits_that_are_changed_behind_the_last_layer_are_refused(tmp_path: Path) -> None:
    sizes = SIZES | {"vocab_size": 64}
    random_model(GraniteForCausalLM, GraniteConfig(**sizes, logits_scaling=8.0)).save_pretrained(tmp_path / "scaled")
    random_model(GraniteForCausalLM, GraniteConfig(**sizes, logits_scaling=1.0)).save_pretrained(tmp_path / "plain")
    with pytest.raises(ModelError, match="'granite' changes its logits"):
        load_step_judge(tmp_path / "scaled", "plus_minus", 3, 4)
    backbone, head = load_step_judge(tmp_path / "plain", "plus_minus", 3, 4)
    ids = torch.tensor([[9, 8, 7]])
    with torch.inference_mode():
        found = head(backbone(ids).last_hidden_state[0])
        model = GraniteForCausalLM.from_pretrained(tmp_path / "plain")
        assert found.tolist() == pytest.approx(model(ids).logits[0][:, [3, 4]].softmax(-1)[:, 0].tolist(), abs=1e-5)


def test_a_chat_template_that_hides_the_answer_is_refused(published: dict[str, Published]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(published["rlhflow"].folder)
    tokenizer.chat_template = LLAMA_TEMPLATE.replace("assistant<|end_header_id|>\n\n", "assistant<|end_header_id|>")
    with pytest.raises(ModelError, match="right behind its prompt"):
        FORMATS["rlhflow"](tokenizer)


def test_pickled_weights_are_refused(published: dict[str, Published], tmp_path: Path) -> None:
    for file in published["rlhflow"].folder.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pickled weights .* which are not read"):
        load_public(tmp_path, "rlhflow")


@pytest.mark.parametrize(
    ("place", "name", "error", "words"),
    [
        ("/nowhere/at/all", "qwen", ModelError, "does not exist"),
        ("embedded", "qwen", ModelError, "expected a folder or a hub id"),
        ("owner/name@refs/pr/4", "qwen", ModelError, "cannot fetch 'owner/name@refs/pr/4'"),
        ("owner/name", "qwn", ConfigError, "did you mean 'qwen'"),
    ],
)
def test_places_and_formats_that_are_not_there(place: str, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_public(place, name)


def test_what_is_fetched_from_a_hub(published: dict[str, Published], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision))
        assert not any(Path(f"x{end}").match(p) for p in allow_patterns for end in (".py", ".bin", ".pt", ".pkl"))
        return str(published["qwen"].folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    load_public("owner/name", "qwen")
    load_public("owner/name@refs/pr/5", "qwen")
    assert asked == [("owner/name", None), ("owner/name", "refs/pr/5")]
