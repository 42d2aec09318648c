"""Loading published reward models: plain transformers backbones, heads read from the checkpoint, never remote code.

Two of the published models come with Python code of their own. It is not run: their backbones are plain Qwen2, and their
heads are rebuilt here from the tensors that the checkpoint names. Weights must be safetensors. Where a hub's main branch has
pickled weights only, name the revision with the converted ones, as in `peiyi9979/math-shepherd-mistral-7b-prm@refs/pr/5` or
`Skywork/Skywork-o1-Open-PRM-Qwen-2.5-7B@refs/pr/4`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from critics.published.formats import HeadKind
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import ModelError, first_line
from llm_mcts.models import model_folder, resolve_device, resolve_dtype

Head = Callable[[Tensor], Tensor]
"""Hidden states [n, hidden] to scores [n] in [0, 1]."""

# What is fetched from a hub: neither code nor pickled weights.
_WANTED = ["*.json", "*.safetensors", "tokenizer.model", "*.txt", "*.jinja"]


def checkpoint_folder(place: str | Path) -> Path:
    """The local folder of a model folder, or of a hub id (`owner/name` or `owner/name@revision`), fetched if need be.

    Raises:
        ModelError: there is no such model, or it has no safetensors, config or tokenizer.
    """
    name = str(place)
    if not Path(name).is_dir():
        name, _, revision = name.partition("@")
        if model_folder(name) != name or name.count("/") != 1:
            raise ModelError(f"'{place}' is no model; expected a folder or a hub id as owner/name or owner/name@revision")
        from huggingface_hub import snapshot_download

        try:
            name = snapshot_download(name, revision=revision or None, allow_patterns=_WANTED)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot fetch '{place}': {first_line(error)}") from error
    if any(Path(name).glob("*.bin")) and not any(Path(name).glob("*.safetensors")):
        raise ModelError(
            f"{place} holds pickled weights (*.bin) only, which are not read; expected *.safetensors: convert them"
        )
    return Path(model_folder(name))


def load_weights(folder: Path, auto_class: str) -> Any:
    """A transformers model from a folder, on the first GPU or else the CPU, all of its weights from the checkpoint.

    Args:
        folder: with safetensors.
        auto_class: AutoModel, AutoModelForCausalLM or AutoModelForSequenceClassification.

    Raises:
        ModelError: unreadable, or weights are missing.
    """
    import transformers

    device = resolve_device("auto")
    try:
        model, info = getattr(transformers, auto_class).from_pretrained(
            folder,
            dtype=resolve_dtype("auto", device),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the model in {folder}: {first_line(error)}") from error
    if missing := sorted([*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]):
        raise ModelError(f"{folder} lacks fitting weights for {len(missing)} tensors, as {missing[0]}; is it another format?")
    return model.to(device).eval()


def keep_within_window(config: Any) -> None:
    """Shorten the context to a sliding window that all layers share: within it, their attention is full attention."""
    window = getattr(config, "sliding_window", None)
    if window and not getattr(config, "layer_types", None):
        config.max_position_embeddings = min(window, config.max_position_embeddings)


def load_step_judge(folder: Path, head: HeadKind, plus: int = 0, minus: int = 0) -> tuple[Any, Head]:
    """A process reward model as its backbone and its head; `plus`, `minus`: the tokens of a plus_minus head."""
    if head == "plus_minus":
        model = load_weights(folder, "AutoModelForCausalLM")
        judge = _plus_minus(model, plus, minus)
        return pack_linears(model.base_model), judge
    backbone = pack_linears(load_weights(folder, "AutoModel"))
    return backbone, _two_classes(folder) if head == "two_classes" else _value(folder)


def _plus_minus(model: Any, plus: int, minus: int) -> Head:
    """softmax over the logits of "+" and "-", of "+"; the other words' logits are never computed."""
    output = model.get_output_embeddings()
    rows = torch.tensor([plus, minus], device=output.weight.device)
    weight = output.weight.detach()[rows].float()
    bias = output.bias.detach()[rows].float() if getattr(output, "bias", None) is not None else None

    def logits(hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), weight, bias)

    with torch.inference_mode():  # a model may do more to its logits than a linear layer, as capping them
        ours = logits(model.base_model(input_ids=rows[None]).last_hidden_state)
        theirs = model(input_ids=rows[None]).logits[..., rows].float()
    if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max()) + 1e-4):
        raise ModelError(
            f"model type '{model.config.model_type}' changes its logits behind the last layer; expected a plain head"
        )
    return lambda hidden: logits(hidden).softmax(-1)[..., 0]


def _two_classes(folder: Path) -> Head:
    """softmax(W2 relu(W1 h + b1) + b2), of class 1: Qwen2ForProcessRewardModel."""
    names = ("score.0.weight", "score.0.bias", "score.2.weight", "score.2.bias")
    w1, b1, w2, b2 = _tensors(folder, names)
    if w2.shape[0] != 2:
        raise ModelError(f"the score head in {folder} has {w2.shape[0]} classes; expected 2, as Qwen2.5-Math-PRM has")

    def score(hidden: Tensor) -> Tensor:
        inner = nn.functional.linear(hidden.float(), w1, b1).relu()
        return nn.functional.linear(inner, w2, b2).softmax(-1)[..., 1]

    return score


def _value(folder: Path) -> Head:
    """sigmoid(w h + b): Skywork-o1-Open-PRM."""
    weight, bias = _tensors(folder, ("v_head.summary.weight", "v_head.summary.bias"))
    return lambda hidden: nn.functional.linear(hidden.float(), weight, bias).squeeze(-1).sigmoid()


def _tensors(folder: Path, names: tuple[str, ...]) -> list[Tensor]:
    """Tensors of a checkpoint by name, from whichever of its files hold them, in float32 where the model runs."""
    device = resolve_device("auto")
    found: dict[str, Tensor] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                found |= {name: tensors.get_tensor(name) for name in set(names) & set(tensors.keys())}
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot read the weights in {folder}: {first_line(error)}") from error
    if missing := [name for name in names if name not in found]:
        raise ModelError(f"{folder} has no tensor {', '.join(missing)}; expected this format's head: is it another format?")
    return [found[name].to(device, torch.float32) for name in names]
