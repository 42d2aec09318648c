"""How rows become token ids with labels and masks, exactly as the policy and the critics encode them, and batches of these."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    """One row: token ids [T], labels in [0, 1] [T] and the mask [T] of positions that count."""

    ids: list[int]
    labels: list[float]
    mask: list[bool]
    weights: list[float] | None = None
    """How much a position that counts does so [T], above 0 there; None: all alike."""
    written: list[bool] | None = None
    """Which tokens the policy wrote [T], for a language-model loss beside the score's; None: there is none."""
    segments: list[int] | None = None
    """The step that each token belongs to [T], from 1, and 0 outside the solution; None: the critic's head does not ask."""

    @property
    def parts(self) -> "tuple[Encoded, ...]":
        """The row itself."""
        return (self,)

    @property
    def counts(self) -> bool:
        """Whether any position counts, for one loss or another."""
        return any(self.mask) or any(self.weights or ())


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
    """For the policy: the steps' tokens and the closing end-of-text count; the token ids are their own labels."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    ids = [*ids, eos]
    return Encoded(ids, [row.label] * len(ids), [i > ends[0] for i in range(len(ids))])


def encode_outcome_everywhere(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the value model (OVM): the outcome labels every solution token, and the question's last: the empty prefix."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [row.label] * len(ids), [i >= ends[0] for i in range(len(ids))])


def encode_outcome_at_end(row: SolutionRow, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """For the ORM: the outcome labels the last token."""
    ids, ends = _ids_and_ends(row, fmt, encode)
    return Encoded(ids, [row.label] * len(ids), [i == ends[-1] for i in range(len(ids))])


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
    labels, mask, weighing = [0.0] * len(ids), [False] * len(ids), [0.0] * len(ids)
    for end, target, weight in zip(ends, targets, weights or [1.0] * len(ends), strict=True):
        if target is not None and weight > 0:
            labels[end], mask[end], weighing[end] = target, True, weight
    return Encoded(ids, labels, mask, None if weights is None else weighing)


def encode_next(
    question: str, prefix: Sequence[str], steps: Sequence[str], fmt: PromptFormat, encode: Encoder, eos: int
) -> Encoded:
    """For the policy, what comes behind a prefix: the tokens of `steps` count, newlines included.

    Behind a line that states the answer the end-of-text counts too, as in `encode_solution`.
    """
    ids, ends = _ids_and_ends(SolutionRow("", question, (*prefix, *steps)), fmt, encode)
    ids = [*ids, eos] if fmt.states_answer(steps[-1]) else ids
    return Encoded(ids, [0.0] * len(ids), [i > ends[len(prefix)] for i in range(len(ids))])


def encode_pair(row: PairRow, fmt: PromptFormat, encode: Encoder) -> EncodedPair:
    """For critics that learn from comparisons: the last tokens of both sides are compared."""
    sides = (SolutionRow(row.problem, row.question, steps, label) for steps, label in ((row.chosen, 1.0), (row.rejected, 0.0)))
    chosen, rejected = (encode_outcome_at_end(side, fmt, encode) for side in sides)
    return EncodedPair(chosen, rejected)


def with_language_labels(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """The row with the closing end-of-text, which no score is asked for, and the tokens of the language-model loss marked."""
    start = _ids_and_ends(row, fmt, encode)[1][0] + 1
    return Encoded(
        [*encoded.ids, eos],
        [*encoded.labels, 0.0],
        [*encoded.mask, False],
        None if encoded.weights is None else [*encoded.weights, 0.0],
        [i >= start for i in range(len(encoded.ids) + 1)],
    )


def with_segments(encoded: Encoded, row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> Encoded:
    """The row with the number of each token's step, for a head that judges by surprisal."""
    ends = _ids_and_ends(row, fmt, encode)[1]
    steps = [0] * (ends[0] + 1) + [i for i in range(1, len(ends)) for _ in range(ends[i] - ends[i - 1])]
    return replace(encoded, segments=[*steps, *([0] * (len(encoded.ids) - len(steps)))])


def _ids_and_ends(row: SolutionBased, fmt: PromptFormat, encode: Encoder) -> tuple[list[int], list[int]]:
    segments = [fmt.question(row.question), *(fmt.step(text) for text in row.steps)]
    return encode(segments), encode.ends(segments)


def collate(batch: Sequence[Encoded | EncodedPair | EncodedGroup]) -> dict[str, Tensor]:
    """Pad on the right: input_ids, attention_mask [B, T] long; labels [B, T] float; mask [B, T] boolean.

    Where the rows have them also weights [B, T] float, written [B, T] boolean and segments [B, T] long. A pair makes two rows,
    a group several, and item [B] long says which of the batch's items a row is of.
    """
    rows = [part for item in batch for part in item.parts]
    width = max(len(row.ids) for row in rows)

    def padded(values: Callable[[Encoded], list[Any]], fill: Any) -> Tensor:
        return torch.tensor([[*values(r), *([fill] * (width - len(r.ids)))] for r in rows])

    tensors = {
        "input_ids": padded(lambda r: r.ids, 0),
        "attention_mask": padded(lambda r: [1] * len(r.ids), 0),
        "labels": padded(lambda r: r.labels, 0.0),
        "mask": padded(lambda r: r.mask, False),
    }
    if not isinstance(batch[0], Encoded):
        tensors["item"] = torch.tensor([i for i, item in enumerate(batch) for _ in item.parts])
    if rows[0].weights is not None:
        tensors["weights"] = padded(lambda r: r.weights or [], 0.0)
    if rows[0].written is not None:
        tensors["written"] = padded(lambda r: r.written or [], False)
    if rows[0].segments is not None:
        tensors["segments"] = padded(lambda r: r.segments or [], 0)
    return tensors


def token_labels(batch: dict[str, Tensor], which: str = "mask") -> Tensor:
    """The token ids of a batch as labels [B, T], IGNORE where they do not count; `which` mask says so."""
    return torch.where(batch[which], batch["input_ids"], IGNORE)
