"""Which waiting sequences are computed together, by hand; the forwards themselves are in test_batching."""

import asyncio
from collections import deque

import pytest
import torch

from llm_mcts.engines.base import Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.engines.transformers.joining import Joining, Reading, Work, forwards, next_wave
from llm_mcts.engines.transformers.kv_cache import PrefixTree
from llm_mcts.types import Usage


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop


def reading(loop: asyncio.AbstractEventLoop, *tokens: int, wanted: tuple[int, ...] = (), logits: bool = False) -> Reading:
    """A reading of these tokens, of the last position where none is named."""
    wanted = wanted or (len(tokens) - 1,)
    return Reading(tokens, wanted, tokens[: len(wanted)] if logits else None, lambda *_: None, loop.create_future())


def continuation(loop: asyncio.AbstractEventLoop, *prompt: int) -> Continuation:
    return Continuation(Request(("?",)), 0, prompt, Endings(None, (), 100), Usage(), loop.create_future())


def stored(*tokens: int) -> PrefixTree:
    """A tree that holds these tokens, with numbers for keys and values."""
    tree = PrefixTree(2**20)
    if tokens:
        tree.insert(tokens, torch.zeros(1, 2, 1, len(tokens), 1))
    return tree


def chosen(waiting: deque[Work], tree: PrefixTree, active: int = 0, max_batch: int = 8) -> list[tuple[int, ...]]:
    return [entry.work.known for entry in next_wave(waiting, tree, active, max_batch)]


def test_a_shared_prefix_of_four_unknown_tokens_is_computed_once(loop: asyncio.AbstractEventLoop) -> None:
    first, three, four = (reading(loop, *t) for t in [(1, 2, 3, 4, 5), (1, 2, 3, 9, 9), (1, 2, 3, 4, 9)])
    waiting: deque[Work] = deque([first, three, four])
    assert chosen(waiting, stored()) == [first.known, three.known]  # three tokens shared are not worth a wave of waiting
    assert list(waiting) == [four]


def test_tokens_that_the_tree_holds_do_not_count_as_shared(loop: asyncio.AbstractEventLoop) -> None:
    """With tokens 1 and 2 known, the first five tokens share three more; six share four more, so that one waits."""
    first, five, six = (reading(loop, *t) for t in [(1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 9), (1, 2, 3, 4, 5, 6, 7)])
    waiting: deque[Work] = deque([first, five, six])
    assert chosen(waiting, stored(1, 2)) == [first.known, five.known]
    assert list(waiting) == [six]


def test_a_sequence_shorter_than_four_unknown_tokens_never_waits(loop: asyncio.AbstractEventLoop) -> None:
    waiting: deque[Work] = deque([reading(loop, 1, 2, 3), reading(loop, 1, 2, 3)])
    assert len(chosen(waiting, stored())) == 2


def test_without_a_cache_nothing_waits(loop: asyncio.AbstractEventLoop) -> None:
    waiting: deque[Work] = deque([reading(loop, 1, 2, 3, 4, 5)] * 2)
    assert len(chosen(waiting, PrefixTree(0))) == 2


def test_continuations_wait_for_room_and_keep_their_order(loop: asyncio.AbstractEventLoop) -> None:
    """Three of four rows decode: one continuation joins, the next two wait in order, the reading does not."""
    rows = [continuation(loop, i, i) for i in range(3)]
    read = reading(loop, 7, 8)
    waiting: deque[Work] = deque([*rows, read])
    wave = next_wave(waiting, stored(), 3, 4)
    assert [entry.work for entry in wave] == [rows[0], read]
    assert [entry.slot for entry in wave] == [3, 4]
    assert list(waiting) == rows[1:]


def test_decoding_rows_come_first_then_hidden_states_then_logits_shortest_first(loop: asyncio.AbstractEventLoop) -> None:
    logits, long, short = reading(loop, 5, logits=True), reading(loop, 1, 2, 3), reading(loop, 4, 5)
    row = continuation(loop, 9, 9, 9, 9, 9)
    wave = next_wave(deque([logits, long, short, row]), stored(), 0, 8)
    assert [entry.work for entry in wave] == [row, short, long, logits]


def test_a_position_asked_for_is_computed_also_where_its_keys_are_known(loop: asyncio.AbstractEventLoop) -> None:
    [entry] = next_wave(deque([reading(loop, 1, 2, 3, 4, wanted=(0, 2, 3))]), stored(1, 2, 3), 0, 8)
    assert entry.have == 3
    assert entry.fresh == [0, 2, 3]
    [entry] = next_wave(deque([continuation(loop, 1, 2, 3, 4, 5)]), stored(1, 2, 3), 0, 8)
    assert entry.fresh == [3]  # the prompt's last token is the first decode input


def sizes(groups: list[list[Joining]]) -> list[list[int]]:
    return [[len(entry.fresh) for entry in group] for group in groups]


def wave(loop: asyncio.AbstractEventLoop, *lengths: int, logits: bool = False) -> list[Joining]:
    """Readings of distinct tokens in adjacent slots."""
    return [
        Joining(reading(loop, *range(1000 * slot, 1000 * slot + length), logits=logits), [], 0, slot)
        for slot, length in enumerate(lengths)
    ]


def test_forwards_hold_similar_lengths(loop: asyncio.AbstractEventLoop) -> None:
    """Up to twice the shortest and 16 more: 26 goes with 5, 27 does not."""
    assert sizes(forwards(wave(loop, 5, 26, 27, 28))) == [[5, 26], [27, 28]]


def test_forwards_are_bounded_in_tokens(loop: asyncio.AbstractEventLoop) -> None:
    """2048 tokens, padding included, is four times 512; with logits 512 is all."""
    assert sizes(forwards(wave(loop, 512, 512, 512, 512, 512))) == [[512] * 4, [512]]
    assert sizes(forwards(wave(loop, 256, 256, 256, logits=True))) == [[256, 256], [256]]


def test_forwards_hold_adjacent_slots_and_one_kind(loop: asyncio.AbstractEventLoop) -> None:
    entries = wave(loop, 5, 5, 5)
    assert sizes(forwards([entries[0], entries[2]])) == [[5], [5]]
    mixed = [wave(loop, 5)[0], wave(loop, 5, 5, logits=True)[1]]
    assert sizes(forwards(mixed)) == [[5], [5]]
