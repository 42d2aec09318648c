"""Sequence classifiers as outcome reward models: against the classifier's own forward in transformers."""

import asyncio
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from critics.published.classifier import ClassifierCritic, is_decoder
from critics.published.prm import load_public
from llm_mcts.errors import ModelError, QuestionError
from llm_mcts.types import Critic, State, Step, metered

QUESTION = "Ann has 5 apples and buys 3 more. How many apples does Ann have now?"
LINES = ["Ann has 5 + 3 = 8 apples.", "Then Ann has 8 - 1 = 7 apples left.", "#### 8"]
TEMPLATE = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<eos>' }}{% endfor %}"


def state(*lines: str, question: str = QUESTION) -> State:
    return State(question, tuple(Step(line) for line in lines))


STATES = [state(*LINES), state(LINES[0]), state(*LINES[:2]), state(LINES[1]), state("7", "8", question="7?")]


def build(folder: Path, embedded: Path, kind: str, labels: int, template: str | None, pad: str | None = "<pad>") -> Path:
    """A tiny random classifier; `kind`: llama (decoder) or bert (encoder)."""
    tokenizer = AutoTokenizer.from_pretrained(embedded)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    tokenizer.chat_template = template
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    more: dict[str, Any] = {"num_attention_heads": 4, "max_position_embeddings": 256, "num_labels": labels}
    pad_id = tokenizer.convert_tokens_to_ids(pad) if pad else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "llama":
            config = LlamaConfig(**sizes, **more, num_key_value_heads=2, pad_token_id=pad_id)
            model: Any = LlamaForSequenceClassification(config)
        else:
            model = BertForSequenceClassification(BertConfig(**sizes, **more, pad_token_id=pad_id))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(12.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(folder: Path, text: str, special: bool) -> torch.Tensor:
    """What the classifier itself says of a text."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found: torch.Tensor = model(torch.tensor([tokenizer(text, add_special_tokens=special).input_ids])).logits[0]
    return found


def chat(asked: State) -> str:
    return f"<|user|>{asked.question}<eos><|assistant|>" + "\n".join(step.text for step in asked.steps) + "<eos>"


def plain(asked: State) -> str:
    return f"Question: {asked.question}\nAnswer:\n" + "".join(step.text + "\n" for step in asked.steps)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[tuple[str, int, bool], Path]:
    return {
        key: build(tmp_path_factory.mktemp("orm"), tiny_model, key[0], key[1], TEMPLATE if key[2] else None)
        for key in itertools.product(("llama", "bert"), (1, 2), (False, True))
    }


@pytest.fixture(params=list(itertools.product(("llama", "bert"), (1, 2), (False, True))))
def key(request: pytest.FixtureRequest) -> tuple[str, int, bool]:
    found: tuple[str, int, bool] = request.param
    return found


def load(folder: Path, **settings: Any) -> ClassifierCritic:
    critic = load_public(folder, "classifier", **settings)
    assert isinstance(critic, ClassifierCritic) and isinstance(critic, Critic)
    return critic


def test_scores_are_the_classifiers(folders: dict[tuple[str, int, bool], Path], key: tuple[str, int, bool]) -> None:
    kind, labels, has_template = key
    critic = load(folders[key])
    assert (critic.batch is not None) == (kind == "llama") == is_decoder(critic.model)
    wanted = []
    for asked in STATES:
        found = logits(folders[key], chat(asked) if has_template else plain(asked), special=not has_template)
        assert found.shape == (labels,)
        wanted.append(float(found.sigmoid()[0] if labels == 1 else found.softmax(-1)[1]))
    assert asyncio.run(critic.score(STATES)) == pytest.approx(wanted, abs=1e-5)
    assert max(wanted) - min(wanted) > 0.05


def test_neither_cache_nor_order_nor_company_matter(
    folders: dict[tuple[str, int, bool], Path], key: tuple[str, int, bool]
) -> None:
    first = load(folders[key])
    wanted = dict(zip(STATES, asyncio.run(first.score(STATES)), strict=True))
    for seed, cache_mb in itertools.product(range(2), (0, 512)):
        critic = ClassifierCritic(first.model, first.tokenizer, max_batch=2, cache_mb=cache_mb)
        shuffled = random.Random(seed).sample(STATES, len(STATES))
        for group in (shuffled[:1], shuffled[1:], shuffled):
            assert asyncio.run(critic.score(group)) == pytest.approx([wanted[s] for s in group], abs=1e-5)


def test_prefixes_are_read_as_solutions(folders: dict[tuple[str, int, bool], Path]) -> None:
    critic = load(folders["llama", 1, True])
    [scores] = asyncio.run(critic.step_scores([state(*LINES)]))
    found = [float(logits(folders["llama", 1, True], chat(state(*LINES[:k])), False).sigmoid()[0]) for k in (1, 2, 3)]
    assert scores == pytest.approx([0.5, *found], abs=1e-5)


def test_a_bare_question_is_neutral_and_free(folders: dict[tuple[str, int, bool], Path], key: tuple[str, int, bool]) -> None:
    critic = load(folders[key])
    with metered() as usage:
        assert asyncio.run(critic.score([state(), state(question="7?")])) == [0.5, 0.5]
    assert (usage.critic_tokens, usage.critic_calls) == (0, 2)


def test_what_is_known_costs_nothing(folders: dict[tuple[str, int, bool], Path], key: tuple[str, int, bool]) -> None:
    critic = load(folders[key])
    with metered() as usage:
        asyncio.run(critic.score(STATES))
        once = usage.critic_tokens
        asyncio.run(critic.score(STATES))
    assert usage.critic_tokens == once > 0


def test_scores_are_sigmoids_of_the_logits(folders: dict[tuple[str, int, bool], Path]) -> None:
    one, two = folders["llama", 1, True], folders["llama", 2, True]
    asked = state(*LINES)
    x = float(logits(one, chat(asked), False)[0])
    a, b = logits(two, chat(asked), False).tolist()
    want = torch.sigmoid(torch.tensor([x, b - a])).tolist()
    assert [asyncio.run(load(folder).score([asked]))[0] for folder in (one, two)] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_the_last_token_that_is_no_padding_counts(tmp_path: Path, tiny_model: Path, pad: str | None) -> None:
    folder = build(tmp_path, tiny_model, "llama", 1, TEMPLATE, pad)
    want = float(logits(folder, chat(STATES[0]), False).sigmoid()[0])
    assert asyncio.run(load(folder).score(STATES[:1])) == pytest.approx([want], abs=1e-5)
    cut = chat(STATES[0]).removesuffix("<eos>")  # a text that ends in padding is judged in front of it
    same = float(logits(folder, cut, False).sigmoid()[0])
    assert (abs(same - want) < 1e-5) == (pad == "<eos>")


def test_what_cannot_be_judged(folders: dict[tuple[str, int, bool], Path], key: tuple[str, int, bool]) -> None:
    critic = load(folders[key])
    with pytest.raises(QuestionError, match="expected at most the critic's context of 256"):
        asyncio.run(critic.score([state("7 " * 256)]))
    with pytest.raises(QuestionError, match="reads as structure"):
        asyncio.run(critic.score([state("fine<|user|>")]))


def test_classifiers_of_other_sizes_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="the classifier has 3 labels; expected 1"):
        load_public(build(tmp_path, tiny_model, "llama", 3, None), "classifier")


def test_a_language_model_is_no_classifier(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"lacks fitting weights for 1 tensors, as score\.weight"):
        load_public(tiny_model, "classifier")
