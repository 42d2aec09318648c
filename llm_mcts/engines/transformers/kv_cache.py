"""The key/value cache shared along the search tree, on plain transformers models.

`PrefixTree` is a radix tree over token ids whose edges hold the keys and values of their tokens, so a prefix is computed
once, whoever needs it: siblings, rollouts, later simulations. `SlotCache` is the working memory of a batch: one row a
sequence, written in place, handed to the model as its cache. Rows may have different lengths; a row's tokens
stand at positions 0, 1, … and a mask by position hides whatever lies beyond.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_mcts.errors import ModelError
from llm_mcts.models import cache_shape


class _Edge:
    """A run of tokens with its keys and values, below a parent edge."""

    __slots__ = ("children", "kv", "parent", "tokens", "used")

    def __init__(self, tokens: tuple[int, ...], kv: Tensor, parent: "_Edge | None", used: int) -> None:
        self.tokens, self.kv, self.parent, self.used = tokens, kv, parent, used  # kv [layers, 2, heads, len, dim]
        self.children: dict[int, _Edge] = {}


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class PrefixTree:
    """Keys and values by token prefix; the least recently used leaves go when `byte_limit` is passed."""

    def __init__(self, byte_limit: int) -> None:
        self.byte_limit, self.bytes = byte_limit, 0
        self._root = _Edge((), torch.empty(0), None, 0)
        self._clock = itertools.count(1)

    def match(self, tokens: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The longest stored prefix, as (keys and values, how many of its tokens match) from the root down."""
        matched: list[tuple[Tensor, int]] = []
        edge, at, now = self._root, 0, next(self._clock)
        while at < len(tokens) and (child := edge.children.get(tokens[at])) is not None:
            child.used = now
            n = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
            matched.append((child.kv, n))
            at += n
            if n < len(child.tokens):
                break
            edge = child
        return matched

    def insert(self, tokens: Sequence[int], kv: Tensor) -> None:
        """Store the keys and values [layers, 2, heads, len(tokens), dim] of a whole sequence; known parts are kept."""
        edge, at, now = self._root, 0, next(self._clock)
        while at < len(tokens):
            child = edge.children.get(tokens[at])
            if child is None:
                rest = tuple(tokens[at:])
                edge.children[rest[0]] = new = _Edge(rest, kv[..., at : at + len(rest), :].clone(), edge, now)
                self.bytes += new.kv.nbytes
                break
            n = shared_length(child.tokens, tokens[at : at + len(child.tokens)])
            at += n
            edge = child if n == len(child.tokens) else self._split(child, n)
            edge.used = now
        self._evict()

    def _split(self, edge: _Edge, n: int) -> _Edge:
        """Cut an edge after `n` tokens; return its upper half."""
        assert edge.parent is not None
        upper = _Edge(edge.tokens[:n], edge.kv[..., :n, :].clone(), edge.parent, edge.used)
        edge.parent.children[upper.tokens[0]] = upper
        edge.tokens, edge.kv, edge.parent = edge.tokens[n:], edge.kv[..., n:, :].clone(), upper
        upper.children[edge.tokens[0]] = edge
        return upper

    def _evict(self) -> None:
        """Drop least recently used leaves until a tenth of the limit is free again."""
        if self.bytes <= self.byte_limit:
            return
        while self.bytes > 0.9 * self.byte_limit and (leaves := sorted(self._leaves(), key=lambda e: e.used)):
            for leaf in leaves:
                if self.bytes <= 0.9 * self.byte_limit:
                    break
                assert leaf.parent is not None
                del leaf.parent.children[leaf.tokens[0]]
                self.bytes -= leaf.kv.nbytes

    def _leaves(self) -> list[_Edge]:
        stack, leaves = list(self._root.children.values()), []
        while stack:
            edge = stack.pop()
            if edge.children:
                stack.extend(edge.children.values())
            else:
                leaves.append(edge)
        return leaves


class SlotCache:
    """Batch memory [layers, 2, rows, heads, length, dim], as a transformers cache for one forward at a time."""

    is_compileable = False

    def __init__(self, config: Any, max_rows: int, dtype: torch.dtype, device: torch.device) -> None:
        config = config.get_text_config()
        kinds = getattr(config, "layer_types", None) or []
        if any(kind != "global" for kind in getattr(config, "attention_layers", None) or []):  # GPT-Neo
            raise ModelError(f"model type '{config.model_type}' has layers of local attention; expected full attention in all")
        window = None if kinds else getattr(config, "sliding_window", None)
        if any(kind != "full_attention" for kind in kinds) or (window and window < config.max_position_embeddings):
            raise ModelError(f"model type '{config.model_type}' has sliding windows; expected full attention in all layers")
        if "flash" in str(config._attn_implementation):
            raise ModelError(f"attention '{config._attn_implementation}' takes no mask; load the model with sdpa or eager")
        self._additive_mask = config._attn_implementation != "sdpa"
        layers, heads, dim = cache_shape(config)
        self.context = int(config.max_position_embeddings)
        self.max_rows = max_rows
        # Memory grows with the rows and lengths that are used.
        self.kv = torch.zeros(layers, 2, min(4, max_rows), heads, 128, dim, dtype=dtype, device=device)
        self._rows = slice(0, 0)
        self._positions = torch.empty(0, 0, dtype=torch.long)
        self._width = 0

    def ensure_room(self, rows: int, length: int) -> None:
        """Make room for `rows` rows, at most the limit, of `length` tokens."""
        assert rows <= self.max_rows
        layers, two, had_rows, heads, had_length, dim = self.kv.shape
        if rows <= had_rows and length <= had_length:
            return
        rows = had_rows if rows <= had_rows else min(max(rows, 2 * had_rows), self.max_rows)
        length = had_length if length <= had_length else max(length, 2 * had_length)
        bigger = self.kv.new_zeros(layers, two, rows, heads, length, dim)
        bigger[:, :, :had_rows, :, :had_length] = self.kv
        self.kv = bigger

    def load(self, row: int, matched: list[tuple[Tensor, int]]) -> int:
        """Copy a matched prefix into a row; return its length."""
        at = 0
        for kv, n in matched:
            self.kv[:, :, row, :, at : at + n] = kv[..., :n, :]
            at += n
        return at

    def read(self, row: int, length: int) -> Tensor:
        """The keys and values [layers, 2, heads, length, dim] of a row."""
        return self.kv[:, :, row, :, :length]

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one row to another."""
        self.kv[:, :, target, :, :length] = self.kv[:, :, source, :, :length]

    def window(self, rows: slice, starts: Sequence[int], width: int) -> dict[str, Tensor]:
        """`window_at` for `width` tokens a row in a row, from each row's start position."""
        return self.window_at(rows, [range(start, start + width) for start in starts])

    def window_at(self, rows: slice, positions: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """Point the cache at `rows` for a forward over tokens at these positions, ascending, one list a row.

        Shorter lists are padded; padding stands behind the row's tokens, or where the context ends in a spare place behind it.

        Returns:
            The model's position_ids [B, width] and attention_mask [B, 1, width, keys]: boolean for sdpa, else additive.
        """
        device, width = self.kv.device, max(map(len, positions))
        padded = [[*row, *range(row[-1] + 1, row[-1] + 1 + width - len(row))] for row in positions]
        self._rows = rows
        self._positions = torch.tensor(padded, device=device).clamp_(max=self.context)
        self._width = min(max(row[-1] for row in padded), self.context) + 1
        self.ensure_room(rows.stop, self._width)
        mask = (torch.arange(self._width, device=device) <= self._positions[..., None])[:, None]
        if self._additive_mask:
            mask = torch.zeros_like(mask, dtype=self.kv.dtype).masked_fill(~mask, torch.finfo(self.kv.dtype).min)
        return {"position_ids": self._positions.clamp(max=self.context - 1), "attention_mask": mask}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, heads, width, dim] at the window's positions; return all those rows' [B, heads, :, dim]."""
        rows = torch.arange(self._rows.start, self._rows.stop, device=self.kv.device)[:, None]
        memory = self.kv[layer]
        memory[0][rows, :, self._positions] = keys.transpose(1, 2)
        memory[1][rows, :, self._positions] = values.transpose(1, 2)
        return memory[0, self._rows, :, : self._width], memory[1, self._rows, :, : self._width]

    def get_seq_length(self, layer: int = 0) -> int:
        """Unused by a model that is given position_ids; there for the interface."""
        return 0


def pad_right(rows: Sequence[Sequence[int]], width: int, device: torch.device) -> Tensor:
    """Token ids [B, width], padded with 0 behind each row (masked by position, so any id would do)."""
    return torch.tensor([[*row, *([0] * (width - len(row)))] for row in rows], device=device)
