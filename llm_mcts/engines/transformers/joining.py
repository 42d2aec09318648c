"""Which waiting work is computed together: waves, and the forwards that a wave is cut into."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from llm_mcts.engines.endings import Continuation
from llm_mcts.engines.transformers.kv_cache import PrefixTree

# A sequence waits for another one that is about to be computed when the two share this many tokens more than the tree holds.
_WORTH_WAITING_FOR = 4
# Tokens of one prefill forward, padding included: bounds its memory, and how long decoding rows wait.
_PREFILL_TOKENS = 2048
# The same where logits are needed: one takes as many numbers as there are words in the vocabulary.
_LOGITS_TOKENS = 512

Count = Callable[[int, int], None]
"""Called with how many tokens of a sequence were computed, and how many were in the cache already."""


@dataclass(eq=False)
class Reading:
    """A token sequence to be read; what is asked for is known at some of its positions."""

    known: tuple[int, ...]
    wanted: Sequence[int]
    """Ascending positions; the last is that of the last token."""
    targets: Sequence[int] | None
    """For log-probabilities: the token that follows at each wanted position. None: hidden states."""
    count: Count
    done: "asyncio.Future[Any]"


Work = Continuation | Reading


@dataclass(eq=False)
class Joining:
    """Work that a wave computes."""

    work: Work
    stored: list[tuple[Tensor, int]]
    """What the tree holds of its tokens."""
    have: int
    slot: int = -1

    @property
    def wanted(self) -> Sequence[int]:
        """Positions at which something is asked for."""
        return self.work.wanted if isinstance(self.work, Reading) else ()

    @property
    def wants_logits(self) -> bool:
        """Whether the language-model head is needed."""
        return isinstance(self.work, Reading) and self.work.targets is not None

    @cached_property
    def fresh(self) -> list[int]:
        """Positions to compute: those the tree lacks, and those asked for, whose keys are known but not their hidden states."""
        return [*(at for at in self.wanted if at < self.have), *range(self.have, len(self.work.known))]


def next_wave(waiting: deque[Work], tree: PrefixTree, active: int, max_batch: int) -> list[Joining]:
    """Take from the queue what can join now; what shares an unknown prefix with an earlier one stays for the next wave."""
    leaders: list[tuple[int, ...]] = []
    chosen: list[Joining] = []
    later: list[Work] = []
    room = max_batch - active
    while waiting and len(chosen) < max_batch:
        work = waiting.popleft()
        decodes = isinstance(work, Continuation)
        if decodes and not room:
            later.append(work)
            continue
        stored = tree.match(work.known)
        have = sum(n for _, n in stored)
        if tree.byte_limit and _worth_waiting(work.known, have, leaders):
            later.append(work)
            continue
        room -= decodes
        leaders.append(work.known)
        chosen.append(Joining(work, stored, have))
    waiting.extendleft(reversed(later))
    # Rows of one forward have adjacent slots and similar lengths. Those that decode keep their slots, so they come first.
    chosen.sort(key=lambda entry: (isinstance(entry.work, Reading), entry.wants_logits, len(entry.fresh)))
    for slot, entry in enumerate(chosen, active):
        entry.slot = slot
    return chosen


def _worth_waiting(tokens: tuple[int, ...], have: int, leaders: list[tuple[int, ...]]) -> bool:
    enough = have + _WORTH_WAITING_FOR
    return len(tokens) >= enough and any(tokens[:enough] == leader[:enough] for leader in leaders)


def forwards(entries: list[Joining]) -> list[list[Joining]]:
    """Cut a wave into forwards: neighbours of one kind, not too many tokens, little padding. Entries come shortest first."""
    groups: list[list[Joining]] = []
    for entry in entries:
        if groups:
            group, width = groups[-1], len(entry.fresh)
            small = (len(group) + 1) * width <= (_LOGITS_TOKENS if entry.wants_logits else _PREFILL_TOKENS)
            alike = entry.wants_logits == group[0].wants_logits and width <= 2 * len(group[0].fresh) + 16
            if small and alike and entry.slot == group[-1].slot + 1:
                group.append(entry)
                continue
        groups.append([entry])
    return groups
