"""The three critics' trainers: one procedure, three encodings and losses.

value   every solution token learns the outcome, squared error (OVM, arXiv 2311.09724)
prm     each step's last token learns the step's label, cross-entropy (Math-Shepherd, arXiv 2312.08935)
orm     the last token learns the outcome, cross-entropy
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from critics.modeling import CriticModel, HeadConfig, Kind
from llm_mcts.errors import ConfigError
from llm_mcts.prompts import Encoder, PromptConfig
from trainers.base import (
    TrainConfig,
    encode_outcome_at_end,
    encode_outcome_everywhere,
    encode_steps,
    fit,
    save_atomically,
)
from trainers.datasets import SolutionRow, StepRow
from trainers.losses import score_cross_entropy, score_mse

RECIPES: dict[Kind, tuple[Callable[..., Any], Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "value": (encode_outcome_everywhere, score_mse),
    "prm": (encode_steps, score_cross_entropy),
    "orm": (encode_outcome_at_end, score_cross_entropy),
}
"""kind -> (encoding of a row, loss of logits, labels and mask)"""


def train_critic(
    kind: Kind,
    rows: Sequence[SolutionRow] | Sequence[StepRow],
    start: str,
    out: Path,
    config: TrainConfig,
    head: HeadConfig | None = None,
    prompt: PromptConfig | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Train a critic and write its checkpoint to `out`.

    Args:
        start: a critic checkpoint of the same kind to go on from, or a language model whose backbone gets a new head.
        head, prompt: for a new critic; a checkpoint brings its own.

    Raises:
        ConfigError: `start` is a critic with an adapter and LoRA is off, or the other way round.
    """
    if (Path(start) / "critic.json").exists():
        if (adapted := (Path(start) / "adapter_config.json").exists()) != (config.lora.rank > 0):
            kind_of_weights, remedy = ("a LoRA adapter", "above 0") if adapted else ("whole weights", "to 0")
            raise ConfigError(f"critic {start} has {kind_of_weights} and lora.rank is {config.lora.rank}; set it {remedy}")
        model = CriticModel.from_pretrained(start, kind, trainable=True)
    else:
        model = CriticModel.create(kind, start, head, prompt, config.lora, seed)
    encode_row, loss = RECIPES[kind]
    fmt, encode = model.prompt_format, Encoder(model.tokenizer)
    encoded = [encode_row(row, fmt, encode) for row in rows]

    def batch_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return loss(model(batch["input_ids"], batch["attention_mask"]), batch["labels"], batch["mask"])

    metrics = fit(model, encoded, batch_loss, config, seed)
    save_atomically(model.save_pretrained, out)
    return metrics
