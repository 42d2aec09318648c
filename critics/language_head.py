"""A critic's language-model head: kept only for training, where the generator and the score are learnt together (OVM).

tied with the embeddings   the embeddings themselves, which the checkpoint holds anyway
under LoRA                 the base model's, frozen
else                       its own weights, trained along, in `lm_head.safetensors` beside the checkpoint
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from llm_mcts.engines.transformers import first_line, load_causal_lm
from llm_mcts.errors import ModelError

if TYPE_CHECKING:
    from critics.modeling import CriticModel

FILE = "lm_head.safetensors"


def attach_language_head(model: "CriticModel", checkpoint: str | Path | None = None) -> None:
    """Give a critic the head that its backbone came without.

    Args:
        model: a new critic, or one loaded from `checkpoint`.

    Raises:
        ModelError: the checkpoint was trained without one, or the base's logits are not its head's output alone.
    """
    adapted = hasattr(model.backbone, "peft_config")
    embeddings = model.backbone.get_input_embeddings()
    if checkpoint is None or adapted:
        head = _head_of(model.base)
    else:
        head = nn.Linear(embeddings.weight.shape[1], embeddings.weight.shape[0], bias=False)
        if not _tied(model):
            _load(head, Path(checkpoint))
    if _tied(model):
        head.weight = embeddings.weight
    model.lm_head = head.requires_grad_(not adapted)


def save_language_head(model: "CriticModel", folder: Path) -> None:
    """Write the head where nothing else in the checkpoint holds it."""
    if model.lm_head is not None and not _tied(model) and not hasattr(model.backbone, "peft_config"):
        save_file({name: p.detach().contiguous() for name, p in model.lm_head.state_dict().items()}, folder / FILE)


def _tied(model: "CriticModel") -> bool:
    return bool(model.backbone.config.get_text_config().tie_word_embeddings)


def _head_of(base: str) -> Any:
    """The head of a language model whose logits are that head's output: some scale or bound them afterwards."""
    causal = load_causal_lm(base, torch.float32, torch.device("cpu"))
    head, ids = causal.get_output_embeddings(), torch.tensor([[0, 1]])
    with torch.no_grad():
        whole = causal(input_ids=ids, use_cache=False).logits
        hidden = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.allclose(head(hidden), whole, rtol=1e-4, atol=1e-4):
            raise ModelError(
                f"'{base}' changes its head's logits afterwards; train its critic with critic_loss.value.lm_weight 0"
            )
    return head


def _load(head: nn.Module, checkpoint: Path) -> None:
    try:
        head.load_state_dict(load_file(checkpoint / FILE))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{checkpoint} holds no {FILE} ({first_line(error)}); expected a critic trained with lm_weight, or lm_weight 0"
        ) from error
    except RuntimeError as error:
        raise ModelError(f"the {FILE} in {checkpoint} does not fit its backbone: {first_line(error)}") from error
