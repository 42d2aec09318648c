"""How rows become token ids with masks and named columns, exactly as policy and critics encode them, and their batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llm_mcts.prompts import Encoder, PromptFormat
from trainers.data.rows import PairRow, SolutionRow, StepRow, TreeRow

IGNORE = -100
"""Label of a token that does not count (the convention of torch and transformers)."""
SolutionBased = SolutionRow | StepRow | TreeRow
"""Rows of one path of steps."""


@dataclass(frozen=True)
class Encoded:
    """One row: token ids [T], the mask [T] of positions that count, and what else a loss reads of each position."""

    ids: list[int]
    mask: list[bool]
    columns: Mapping[str, list[Any]] = field(default_factory=dict)
    """By name, [T] each; all rows of a training have the same ones.

    target     critics: the score that is wanted, in [0, 1]
    weight     critics: how much a position that counts does so, above 0 there; weighted imitation: its solution's weight
    written    critics: whether the policy wrote the token, for a language-model loss beside the score's
    segment    critics by surprisal: the step that the token belongs to, from 1; 0 outside the solution
    solving    generative verifiers: whether the row teaches solving, not verifying
    share      distill, joint: the target policy's pi of the action that the token belongs to
    outcome    joint: z, at the one position of a row where `known` holds
    known      joint: whether the position has an outcome
    reference  dpo: the first policy's log-probability of the side, at its first counted token
    advantage  policy gradient: that of the token's step
    """

    @property
    def parts(self) -> "tuple[Encoded, ...]":
        """The row itself."""
        return (self,)

    @property
    def counts(self) -> bool:
        """Whether any position counts, for one loss or another."""
        return any(self.mask) or any(self.columns.get("known", ()))

    def with_columns(self, **columns: list[Any]) -> "Encoded":
        """The row with these columns besides its own."""
        return replace(self, columns={**self.columns, **columns})

    def to_length(self, n: int) -> "Encoded":
        """The row cut off, or extended by positions that count nothing and whose columns are 0."""

        def fit(values: list[Any]) -> list[Any]:
            return [*values[:n], *[type(values[0])()] * (n - len(values))]

        return Encoded(fit(self.ids), fit(self.mask), {name: fit(values) for name, values in self.columns.items()})


@dataclass(frozen=True)
class EncodedPair:
    """Two rows that are compared, the better one first."""

    chosen: Encoded
    rejected: Encoded

    @property
    def parts(self) -> tuple[Encoded, ...]:
        """Both rows, in the order in which the loss wants them."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True)
class EncodedGroup:
    """Rows that one loss looks at together, such as the steps behind one prefix: a batch holds all of them or none."""

    parts: tuple[Encoded, ...]


def encode_solution(row: SolutionRow, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """For the policy: the steps' tokens and the closing end-of-text count."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    ids = [*ids, eos]
    return Encoded(ids, [i > ends[0] for i in range(len(ids))])


def encode_outcome_everywhere(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the value model (OVM): the outcome is the target of every solution token, and of the question's last one."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [i >= ends[0] for i in range(len(ids))], {"target": [float(row.label)] * len(ids)})


def encode_outcome_at_end(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the ORM: the outcome is the target of the last token."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [i == ends[-1] for i in range(len(ids))], {"target": [float(row.label)] * len(ids)})


def encode_steps(row: StepRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the PRM: each labelled step's label stands on the step's last token."""
    return encode_prefixes(row, (None, *row.labels), None, fmt, encode)


def encode_prefixes(
    row: SolutionBased,
    targets: Sequence[float | None],
    weights: Sequence[float] | None,
    fmt: PromptFormat,
    encode: Encoder,
) -> Encoded:
    """For anything that judges prefixes: each target stands on the last token of its prefix, the bare question's first.

    Args:
        row: what the steps are taken from.
        targets: one a prefix, in [0, 1]; None where it does not count.
        weights: one a prefix, or None; a prefix of weight 0 does not count.
    """
    ids, ends = _ids_and_ends(row, fmt, encode)
    placed, mask, weighing = [0.0] * len(ids), [False] * len(ids), [0.0] * len(ids)
    for end, target, weight in zip(ends, targets, weights or [1.0] * len(ends), strict=True):
        if target is not None and weight > 0:
            placed[end], mask[end], weighing[end] = float(target), True, float(weight)
    return Encoded(ids, mask, {"target": placed} | ({} if weights is None else {"weight": weighing}))


def encode_next(
    question: str, prefix: Sequence[str], steps: Sequence[str], fmt: PromptFormat, encode: Encoder, eos: int
) -> Encoded:
    """For the policy, what comes behind a prefix: the tokens of `steps` count, newlines included.

    Behind a line that states the answer the end-of-text counts too, as in `encode_solution`.
    """
    ids, ends = _ids_and_ends(SolutionRow("", question, (*prefix, *steps)), fmt, encode)
    ids = [*ids, eos] if fmt.states_answer(steps[-1]) else ids
    return Encoded(ids, [i > ends[len(prefix)] for i in range(len(ids))])


def encode_pair(row: PairRow, fmt: PromptFormat, encode: Encoder) -> EncodedPair:
    """For critics that learn from comparisons: the last tokens of both sides are compared."""
    sides = (SolutionRow(row.problem, row.question, steps, label) for steps, label in ((row.chosen, 1.0), (row.rejected, 0.0)))
    chosen, rejected = (encode_outcome_at_end(side, fmt, encode) for side in sides)
    return EncodedPair(chosen, rejected)


def with_language_labels(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """The row with the closing end-of-text, which no score is asked for, and the tokens of the language-model loss marked."""
    start = _ids_and_ends(row, fmt, encode)[1][0] + 1
    n = len(encoded.ids)
    longer = encoded.to_length(n + 1).with_columns(written=[i >= start for i in range(n + 1)])
    return replace(longer, ids=[*encoded.ids, eos])


def with_segments(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """The row with the number of each token's step, for a head that judges by surprisal."""
    ends = _ids_and_ends(row, fmt, encode)[1]
    steps = [0] * (ends[0] + 1) + [i for i in range(1, len(ends)) for _ in range(ends[i] - ends[i - 1])]
    return encoded.with_columns(segment=[*steps, *([0] * (len(encoded.ids) - len(steps)))])


def _ids_and_ends(row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> tuple[list[int], list[int]]:
    segments = [fmt.question(row.question), *(fmt.step(text) for text in row.steps)]
    return encode(segments), encode.ends(segments)


def collate(batch: Sequence[Encoded | EncodedPair | EncodedGroup]) -> dict[str, Tensor]:
    """Pad on the right: input_ids, attention_mask [B, T] long, mask [B, T] boolean, and the rows' columns [B, T] by name.

    A pair makes two rows, a group several, and item [B] long says which of the batch's items a row is of.
    """
    rows = [part for item in batch for part in item.parts]
    width = max(len(row.ids) for row in rows)
    padded = [row.to_length(width) for row in rows]
    tensors = {
        "input_ids": torch.tensor([row.ids for row in padded]),
        "attention_mask": torch.tensor([[int(i < len(row.ids)) for i in range(width)] for row in rows]),
        "mask": torch.tensor([row.mask for row in padded]),
        **{name: torch.tensor([row.columns[name] for row in padded]) for name in rows[0].columns},
    }
    if not isinstance(batch[0], Encoded):
        tensors["item"] = torch.tensor([i for i, item in enumerate(batch) for _ in item.parts])
    return tensors


def token_labels(batch: dict[str, Tensor], which: str = "mask") -> Tensor:
    """The token ids of a batch as labels [B, T], IGNORE where they do not count; `which` mask says so."""
    return torch.where(batch[which], batch["input_ids"], IGNORE)
