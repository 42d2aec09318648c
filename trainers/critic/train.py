"""The three critics' trainers: one procedure; encodings and losses by the objective (`trainers.data.objectives`).

value   the outcome at every solution token, squared error (OVM, arXiv 2311.09724), or at step ends (AlphaLLM), the tree's Q,
        or lambda-returns
prm     each step's last token learns the step's label, cross-entropy (Math-Shepherd, arXiv 2312.08935), or pairs of steps
orm     the last token learns the outcome, cross-entropy, or pairs of solutions

Each of them on request with the language-model loss beside it.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from critics.kinds import Kind
from critics.model.language_head import attach_language_head
from critics.model.model import CriticModel
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.models import resolve_device
from llm_mcts.prompts import Encoder, PromptFormat
from llm_mcts.seeding import derive_seed
from trainers.data.critic_rows import each_node_once
from trainers.data.encoding import (
    Encoded,
    EncodedPair,
    collate,
    encode_outcome_at_end,
    encode_outcome_everywhere,
    encode_pair,
    encode_prefixes,
    encode_steps,
    token_labels,
    with_language_labels,
    with_segments,
)
from trainers.data.objectives import CriticLossConfig, ValueObjective, needed_rows
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TreeRow
from trainers.fit.fit import CriticTrainConfig, Metrics, TrainCall, TrainConfig, fit, save_atomically
from trainers.fit.language_model import context_length
from trainers.fit.losses import next_token_loss, pairwise_loss, score_cross_entropy, score_mse
from trainers.fit.returns import lambda_returns, outcome_rewards
from trainers.fit.terms import Batch, Counts, Loss, counted, tokens

EncodeRow = Callable[[Any, PromptFormat, Encoder], Encoded | EncodedPair]
POINTWISE = {"mse": score_mse, "cross_entropy": score_cross_entropy}


@dataclass(frozen=True)
class Recipe:
    """How one critic is trained."""

    encode: EncodeRow
    loss: Callable[[Tensor, Batch], Tensor]
    """Of logits [B, T] and the batch."""
    lm_weight: float = 0.0


def recipe(kind: Kind, losses: CriticLossConfig, seed: int = 0) -> Recipe:
    """Encoding and loss of a critic's objective; `seed` draws the prefixes where only some count."""
    if needed_rows(kind, losses) is PairRow:
        return Recipe(encode_pair, lambda logits, batch: pairwise_loss(logits, batch["mask"]))
    pointwise = POINTWISE[getattr(losses, kind).loss]

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return pointwise(logits, batch["target"], batch["mask"], batch.get("weight"))

    if kind == "value":
        return Recipe(_value_encoding(losses.value, seed), loss, losses.value.lm_weight)
    if kind == "orm":
        return Recipe(encode_outcome_at_end, loss, losses.orm.lm_weight)
    weight = losses.prm.lm_weight
    if losses.prm.target == "hard":
        threshold = losses.prm.threshold
        return Recipe(lambda row, fmt, encode: encode_steps(hardened(row, threshold), fmt, encode), loss, weight)
    return Recipe(encode_steps, loss, weight)


def _value_encoding(objective: ValueObjective, seed: int) -> EncodeRow:
    def prefixes(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
        return encode_prefixes(row, outcome_targets(row, objective.prefixes, seed), None, fmt, encode)

    def tree_q(row: TreeRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
        return encode_prefixes(row, row.q_values, row.visits, fmt, encode)

    def td_lambda(row: TreeRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
        return encode_prefixes(row, return_targets(row, objective.gamma, objective.lam), None, fmt, encode)

    encodings: dict[str, EncodeRow] = {
        "token": encode_outcome_everywhere,
        "prefix": prefixes,
        "tree_q": tree_q,
        "td_lambda": td_lambda,
    }
    return encodings[objective.target]


def hardened(row: StepRow, threshold: float) -> StepRow:
    """The row with labels 1 above the threshold and 0 up to it."""
    return replace(row, labels=tuple(None if label is None else float(label > threshold) for label in row.labels))


def outcome_targets(row: SolutionRow, n: int, seed: int) -> list[float | None]:
    """The outcome for `n` of the row's prefixes, None for the others; n 0 or more than there are: for all."""
    count = len(row.steps) + 1
    draw = random.Random(derive_seed(seed, row.question, *row.steps, "prefixes"))
    chosen = range(count) if n == 0 or n >= count else draw.sample(range(count), n)
    return [row.label if i in chosen else None for i in range(count)]


def return_targets(row: TreeRow, gamma: float, lam: float) -> list[float]:
    """The lambda-return of each prefix, from the row's outcome and its values.

    Raises:
        DataError: the row has no outcome.
    """
    if row.label is None:
        raise DataError(f"a path of question {row.question!r} has no outcome; expected whole solutions for td_lambda")
    return lambda_returns(outcome_rewards(row.label, len(row.q_values)), row.q_values, gamma, lam)


def train_critic(kind: Kind, call: TrainCall) -> Metrics:
    """Train a critic and write its checkpoint to `out`.

    `start` is a critic checkpoint of the same kind to train further, or a language model whose backbone gets a new head. `head`
    and `prompt` are for a new critic; a checkpoint brings its own. `settings` is a `CriticLossConfig`.

    Raises:
        ConfigError: `start` is a critic with an adapter and LoRA is off, or the other way round; or the objective asks the
            value model that training starts from, and `start` is none.
        DataError: a row is not of the objective's type, has no steps, or a label outside [0, 1].
    """
    rows, config, seed = call.rows, call.config, call.seed
    losses: CriticLossConfig = call.settings or CriticLossConfig()
    _check_rows(kind, rows, losses)
    made = recipe(kind, losses, seed)
    model = _load(kind, call, losses, made.lm_weight > 0)
    fmt, encode = model.prompt_format, Encoder(model.tokenizer)
    config = replace(config, max_length=min(config.max_length, context_length(model)))
    if kind == "value" and losses.value.asks_the_model:
        rows = with_model_values(rows, model, config)
    if kind == "value" and losses.value.target == "tree_q":
        rows = each_node_once(rows)
    if needed_rows(kind, losses) is PairRow:
        model.offset.requires_grad_(False)
    encoded: list[Any] = [made.encode(row, fmt, encode) for row in rows]
    if made.lm_weight:
        eos = model.tokenizer.eos_token_id
        encoded = [with_language_labels(e, row, fmt, encode, eos) for e, row in zip(encoded, rows, strict=True)]
        if kind != "value":
            encoded = [_right_alone(e, row) for e, row in zip(encoded, rows, strict=True)]
    if model.by_surprisal:
        encoded = [_segmented(e, row, fmt, encode) for e, row in zip(encoded, rows, strict=True)]
    metrics = fit(model, encoded, _batch_loss(made), config, seed, _counts(made), call.logs)
    save_atomically(model.save_pretrained, call.out)
    return metrics


def _right_alone(encoded: Encoded, row: SolutionRow | StepRow) -> Encoded:
    """A row whose tokens count for the language-model loss only if its solution, or its last step, is right."""
    label = row.label if isinstance(row, SolutionRow) else row.labels[-1]
    right = label is not None and label > 0.5
    return encoded if right else encoded.with_columns(written=[False] * len(encoded.ids))


def _segmented(encoded: Encoded | EncodedPair, row: Any, fmt: PromptFormat, encode: Encoder) -> Encoded | EncodedPair:
    """A row, or both of a pair, with the steps that its tokens belong to."""
    if isinstance(encoded, Encoded):
        return with_segments(encoded, row, fmt, encode)
    sides = (SolutionRow(row.problem, row.question, steps) for steps in (row.chosen, row.rejected))
    return EncodedPair(*(with_segments(part, side, fmt, encode) for part, side in zip(encoded.parts, sides, strict=True)))


def _batch_loss(made: Recipe) -> Loss:
    """The loss of a batch: the score's, and beside it lm_weight times the language model's."""

    def score_alone(model: Any, batch: Batch) -> Tensor:
        return made.loss(model(batch["input_ids"], batch["attention_mask"], segments=batch.get("segment")), batch)

    def with_language(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        logits, language = model(batch["input_ids"], batch["attention_mask"], True, batch.get("segment"))
        return made.loss(logits, batch), made.lm_weight * next_token_loss(language, token_labels(batch, "written"))

    return with_language if made.lm_weight else score_alone


def _counts(made: Recipe) -> Counts | None:
    """What the loss's means are over: with the language model's beside it, two different things."""
    return (lambda batch: (counted(batch), tokens(batch, "written"))) if made.lm_weight else None


def _load(kind: Kind, call: TrainCall, losses: CriticLossConfig, with_language: bool) -> CriticModel:
    """The critic to train: a checkpoint's, or a new one; with a language-model head where its objective has that loss."""
    start, config = call.start, call.config
    trunk = isinstance(config, CriticTrainConfig) and config.trunk
    if (Path(start) / "critic.json").exists():
        if (adapted := (Path(start) / "adapter_config.json").exists()) != (config.lora.rank > 0):
            kind_of_weights, remedy = ("a LoRA adapter", "above 0") if adapted else ("whole weights", "to 0")
            raise ConfigError(f"critic {start} has {kind_of_weights} and lora.rank is {config.lora.rank}; set it {remedy}")
        model = CriticModel.from_pretrained(start, kind, trainable=True)
        if model.trunk != trunk:
            raise ConfigError(
                f"critic {start} was trained {'on a trunk' if model.trunk else 'with a backbone of its own'} and trunk is "
                f"{str(trunk).lower()}; make them the same"
            )
    elif kind == "value" and losses.value.asks_the_model:
        raise ConfigError(
            f"critic_loss.value.estimate is 'model', and {start} is no value model; start from one, or use estimate: tree"
        )
    else:
        model = CriticModel.create(kind, start, call.head, call.prompt, config.lora, call.seed, trunk)
    if with_language and trunk:
        raise ConfigError(f"critic_loss.{kind}.lm_weight is above 0 with trunk; expected 0: the policy's weights do not move")
    if with_language and model.lm_head is None:
        attach_language_head(model, start if (Path(start) / "critic.json").exists() else None)
    return model


def _check_rows(kind: Kind, rows: Sequence[Row], losses: CriticLossConfig) -> None:
    expected = needed_rows(kind, losses)
    if not rows:
        raise DataError(f"none of 0 rows for {kind}; expected {expected.__name__}s: search more questions, or each one longer")
    for row in rows:
        if not isinstance(row, expected):
            raise DataError(f"a {type(row).__name__} of question {row.question!r}; expected {expected.__name__}s for {kind}")


def with_model_values(rows: Sequence[SolutionRow], model: CriticModel, config: TrainConfig) -> list[TreeRow]:
    """The rows with the model's score of each prefix as its value; rows that are too long to train on have none."""
    fmt, encode = model.prompt_format, Encoder(model.tokenizer)
    encoded = [encode_prefixes(row, [row.label] * (len(row.steps) + 1), None, fmt, encode) for row in rows]
    if model.by_surprisal:
        encoded = [with_segments(e, row, fmt, encode) for e, row in zip(encoded, rows, strict=True)]
    fitting = [i for i, e in enumerate(encoded) if len(e.ids) <= config.max_length]
    model.to(device := resolve_device("auto")).eval()
    values: dict[int, tuple[float, ...]] = {}
    for first in range(0, len(fitting), config.batch_size):
        numbers = fitting[first : first + config.batch_size]
        batch = collate([encoded[i] for i in numbers])
        inputs = [batch[name].to(device) for name in ("input_ids", "attention_mask")]
        segments = batch["segment"].to(device) if model.by_surprisal else None
        with torch.no_grad():
            scores = torch.sigmoid(model(*inputs, segments=segments).float()).cpu()
        for i, row_scores, mask in zip(numbers, scores, batch["mask"], strict=True):
            values[i] = tuple(row_scores[mask].tolist())
    unknown = [(None,) * (len(row.steps) + 1) for row in rows]
    return [
        TreeRow(row.problem, row.question, row.steps, values.get(i, unknown[i]), (0,) * (len(row.steps) + 1), row.label)
        for i, row in enumerate(rows)
    ]
