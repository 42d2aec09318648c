"""Tiny random models of the published reward models' layouts, each with its authors' way to a solution's step scores.

What is expected is computed here by plain forwards over the published form of the whole text, what stands behind the last
judged token included.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
)

from llm_mcts.types import State, Step

EMBEDDED = Path(__file__).parents[1] / "llm_mcts" / "embedded"

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
    "max_position_embeddings": 640,
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
    code = {"AutoConfig": "configuration_qwen2_rm.Qwen2RMConfig", "AutoModel": f"modeling_qwen2_rm.{architecture}"}
    config |= {"architectures": [architecture], "auto_map": code}
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


def expected(model: Published, asked: State) -> list[float]:
    """The step scores of a state, behind that of its bare question."""
    with torch.inference_mode():
        return [0.5, *model.scores(asked.question, [step.text for step in asked.steps])]
