"""Published process reward models: tiny random ones of the same layout, asked as their authors' code asks them.

What is expected is computed here by plain forwards over the published form of the whole text, what stands behind the last
judged token included.
"""

import asyncio
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
)

from critics.public import PublicPRM, load_public
from critics.public_formats import FORMATS
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.types import Critic, State, Step, metered

EMBEDDED = Path(__file__).parents[2] / "llm_mcts" / "embedded"

QUESTION = "Ann has 5 apples and buys 3 more. How many apples does Ann have now?"
LINES = ["Ann has 5 + 3 = 8 apples.", "Then Ann has 8 - 1 = 7 apples left.", "#### 8"]

LLAMA_TEMPLATE = (
    "{{ '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: ' }}"
    "{{ date_string if date_string is defined else 'today' }}{{ '\n\n<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def state(*lines: str, question: str = QUESTION) -> State:
    return State(question, tuple(Step(line) for line in lines))


STATES = [
    state(*LINES),
    state(LINES[0]),
    state(*LINES[:2]),
    state(LINES[0], LINES[2]),
    state(LINES[1]),
    state("7", "8", question="7?"),
    state("Step 1: 3 * 4 = 12 shells", "12 + 5 = 17"),
]


# Tokenizers


def byte_level(*special: str, **settings: Any) -> Any:
    """The embedded tokenizer with further special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    return tokenizer


def sentencepiece_like() -> Any:
    """As Mistral's: a blank belongs to the word behind it, newlines stand alone, `<s>` begins a text."""
    model = Tokenizer(models.BPE(unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    )
    model.decoder = decoders.Metaspace(prepend_scheme="first")
    text = [f"{QUESTION} Step 1: {LINES[0]} ки", *LINES, "7? + - * = 0 1 2 3 4 6 9 shells ки + - ки ки + -"]
    model.train_from_iterator(text * 3, trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", "<s>", "</s>", "\n"]))
    model.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def reloaded(tokenizer: Any, folder: Path) -> Any:
    """As it is read beside the saved model: for some models transformers puts its own splitting of text in."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


# Models


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 320,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def random_model(cls: Any, config: Any) -> Any:
    """With larger weights than a fresh model's, so that its outputs differ and depend on all that stands before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(12.0)
    return model.eval()


def add_tensors(folder: Path, architecture: str, tensors: dict[str, Tensor]) -> None:
    """Make a checkpoint as one of a model with its own code: a head's tensors, and a config that names that code."""
    save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": [architecture], "auto_map": {"AutoModel": f"modeling_qwen2_rm.{architecture}"}}
    (folder / "config.json").write_text(json.dumps(config))


def linear(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 3


@dataclass
class Published:
    """A checkpoint, and its authors' way to the step scores of a question and steps."""

    folder: Path
    scores: Callable[[str, list[str]], list[float]]
    judged: str
    """The text of the token at which a step is judged."""


@torch.inference_mode()
def math_shepherd(folder: Path) -> Published:
    tokenizer = sentencepiece_like()
    config = MistralConfig(**SIZES | {"vocab_size": len(tokenizer), "sliding_window": None})
    model = random_model(MistralForCausalLM, config)
    model.save_pretrained(folder)
    tokenizer = reloaded(tokenizer, folder)
    candidates = tokenizer.encode("+ -")[1:]
    tag = tokenizer.encode("ки")[-1]
    assert tokenizer.convert_ids_to_tokens([*candidates, tag]) == ["▁+", "▁-", "▁ки"]

    def scores(question: str, steps: list[str]) -> list[float]:
        named = [s if s.startswith("Step ") else f"Step {k + 1}: {s}" for k, s in enumerate(steps)]
        ids = torch.tensor([tokenizer.encode(question + " " + " ки\n".join(named) + " ки")])
        plus = model(ids).logits[:, :, candidates].softmax(-1)[:, :, 0]
        return plus[ids == tag].tolist()

    return Published(folder, scores, "▁ки")


@torch.inference_mode()
def rlhflow(folder: Path) -> Published:
    special = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = byte_level(*special, chat_template=LLAMA_TEMPLATE)
    model = random_model(LlamaForCausalLM, LlamaConfig(**SIZES | {"vocab_size": len(tokenizer), "tie_word_embeddings": True}))
    model.save_pretrained(folder)
    tokenizer = reloaded(tokenizer, folder)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]

    def scores(question: str, steps: list[str]) -> list[float]:
        found, text = [], "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        for k, step in enumerate(steps):
            asked = f"{question} {step}" if k == 0 else step
            text += f"<|start_header_id|>user<|end_header_id|>\n\n{asked}<|eot_id|>"
            text += "<|start_header_id|>assistant<|end_header_id|>\n\n+<|eot_id|>"
            ids = torch.tensor([tokenizer.encode(text)])
            assert tokenizer.decode(ids[0, -2:]) == "+<|eot_id|>"
            found.append(float(model(ids).logits[0, -3, candidates].softmax(-1)[0]))
        return found

    return Published(folder, scores, "Ċ")


@torch.inference_mode()
def qwen(folder: Path) -> Published:
    tokenizer = byte_level("<|im_start|>", "<|im_end|>", "<extra_0>", chat_template=QWEN_TEMPLATE)
    model = random_model(Qwen2ForCausalLM, Qwen2Config(**SIZES | {"vocab_size": len(tokenizer), "sliding_window": 131072}))
    model.save_pretrained(folder)
    tokenizer = reloaded(tokenizer, folder)
    w1, b1, w2, b2 = linear(1, 32, 32), linear(2, 32), linear(3, 2, 32), linear(4, 2)
    add_tensors(
        folder,
        "Qwen2ForProcessRewardModel",
        {"score.0.weight": w1, "score.0.bias": b1, "score.2.weight": w2, "score.2.bias": b2},
    )

    def scores(question: str, steps: list[str]) -> list[float]:
        text = "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        text += f"<|im_start|>user\n{question}<|im_end|>\n"
        text += "<|im_start|>assistant\n" + "<extra_0>".join(steps) + "<extra_0>" + "<|im_end|>\n"
        ids = torch.tensor([tokenizer.encode(text)])
        hidden = model(ids, output_hidden_states=True).hidden_states[-1]
        logits = torch.relu(hidden @ w1.T + b1) @ w2.T + b2
        return logits.softmax(-1)[ids == tokenizer.convert_tokens_to_ids("<extra_0>")][:, 1].tolist()

    return Published(folder, scores, "<extra_0>")


@torch.inference_mode()
def skywork(folder: Path) -> Published:
    tokenizer = byte_level("<|endoftext|>")
    tokenizer.bos_token = "<|endoftext|>"
    model = random_model(Qwen2ForCausalLM, Qwen2Config(**SIZES | {"vocab_size": len(tokenizer)}))
    model.save_pretrained(folder, max_shard_size="40KB")  # several files and an index, as large models have
    assert len(list(folder.glob("*.safetensors"))) > 1
    tokenizer = reloaded(tokenizer, folder)
    weight, bias = linear(5, 1, 32), linear(6, 1)
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias}, folder / "model-00099-of-00099.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(["v_head.summary.weight", "v_head.summary.bias"], "model-00099-of-00099.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def scores(question: str, steps: list[str]) -> list[float]:
        newline = tokenizer.encode("\n")[-1]
        row, flags = tokenizer.encode("<|endoftext|>" + question + "\n"), []
        for step in "\n".join(steps).split("\n"):
            row += [*tokenizer.encode(step), newline]
            flags.append(len(row) - 1)
        hidden = model(torch.tensor([row]), output_hidden_states=True).hidden_states[-1]
        return torch.sigmoid(hidden @ weight.T + bias)[0, flags, 0].tolist()

    return Published(folder, scores, "Ċ")


BUILDERS = {"math_shepherd": math_shepherd, "rlhflow": rlhflow, "qwen": qwen, "skywork": skywork}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Published]:
    return {name: build(tmp_path_factory.mktemp("public") / name) for name, build in BUILDERS.items()}


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(critic: PublicPRM, states: list[State]) -> list[list[float]]:
    return asyncio.run(critic.step_scores(states))


def expected(model: Published, asked: State) -> list[float]:
    with torch.inference_mode():
        return [0.5, *model.scores(asked.question, [step.text for step in asked.steps])]


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
    with pytest.raises(QuestionError, match="expected at most the critic's context of 320"):
        asyncio.run(critic.score([state(LINES[0], "7 " * 320)]))


def test_text_that_a_tokenizer_joins_across_steps_is_read_apart(published: dict[str, Published]) -> None:
    critic = load_public(published["skywork"].folder, "skywork")
    assert isinstance(critic, PublicPRM)
    right = critic._format.ids
    critic._format.ids = lambda question, steps: [*right(question, steps)[: 5 * len(steps)], 7 + len(steps)]  # type: ignore[method-assign]
    together = ask(critic, [state(*LINES)])[0]
    critic._known.clear()
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
