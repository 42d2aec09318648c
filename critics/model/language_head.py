"""A critic's language-model head: for training generator and score together (OVM), and for a critic that judges by surprisal,
which needs it to score as well.

tied with the embeddings    the embeddings themselves, which the checkpoint holds anyway
under LoRA, or on a trunk   the base model's, frozen; one that is in memory already is borrowed
else                        its own weights, trained along, in `lm_head.safetensors` beside the checkpoint
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_mcts.errors import ModelError, first_line
from llm_mcts.models import load_causal_lm

FILE = "lm_head.safetensors"


class Headless(Protocol):
    """What a language-model head is given to: a critic's backbone and where it came from."""

    backbone: Any
    base: str
    trunk: bool
    lm_head: nn.Module | None


class BorrowedHead(nn.Module):
    """The head of a language model that others use; asked for at each call, for packing puts another in its place."""

    def __init__(self, lender: Any) -> None:
        super().__init__()
        self._lender = (getattr(lender, "model", lender) if not hasattr(lender, "get_output_embeddings") else lender,)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., hidden] to logits [..., V]."""
        logits: Tensor = self._lender[0].get_output_embeddings()(hidden)
        return logits


def attach_language_head(model: Headless, checkpoint: str | Path | None = None, lender: Any = None) -> None:
    """Give a critic the head that its backbone came without.

    Args:
        model: a new critic, or one loaded from `checkpoint`.
        lender: a language model on the very backbone, whose head is borrowed.

    Raises:
        ModelError: the checkpoint was trained without one, or the base's logits are not its head's output alone.
    """
    if lender is not None:
        model.lm_head = BorrowedHead(lender)
        return
    embeddings = model.backbone.get_input_embeddings()
    if checkpoint is None or (_frozen(model) and not _tied(model)):
        head = _head_of(model.base)
    else:
        head = nn.Linear(embeddings.weight.shape[1], embeddings.weight.shape[0], bias=False)
        if not _tied(model):
            _load(head, Path(checkpoint))
    if _tied(model):
        head.weight = embeddings.weight
    model.lm_head = head.requires_grad_(not _frozen(model))


def save_language_head(model: Headless, folder: Path) -> None:
    """Write the head where nothing else in the checkpoint holds it."""
    if model.lm_head is not None and not _tied(model) and not _frozen(model):
        save_file({name: p.detach().contiguous() for name, p in model.lm_head.state_dict().items()}, folder / FILE)


def _frozen(model: Headless) -> bool:
    """Whether the head is the base's as it is."""
    return model.trunk or hasattr(model.backbone, "peft_config")


def _tied(model: Headless) -> bool:
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
                f"'{base}' changes its head's logits afterwards; train its critic with lm_weight 0 and head.kind mlp"
            )
    return head


def _load(head: nn.Module, checkpoint: Path) -> None:
    try:
        head.load_state_dict(load_file(checkpoint / FILE))
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{checkpoint} holds no {FILE} ({first_line(error)}); expected a critic trained with lm_weight, or by "
            "surprisal, or lm_weight 0"
        ) from error
    except RuntimeError as error:
        raise ModelError(f"the {FILE} in {checkpoint} does not fit its backbone: {first_line(error)}") from error
