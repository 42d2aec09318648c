"""The prefix tree against a plain dictionary, its byte count, its evictions; the batch memory's positions and masks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from llm_mcts.engines.transformers.kv_cache import PrefixTree, SlotCache, _Edge, pad_right, shared_length
from llm_mcts.errors import ModelError

Tokens = tuple[int, ...]

# Keys and values [layers=1, 2, heads=1, len, dim=2] float32: 1 * 2 * 1 * 2 numbers of 4 bytes a token.
TOKEN_BYTES = 16

sequences = st.lists(st.integers(0, 2), max_size=8).map(tuple)
operations = st.lists(st.tuples(st.sampled_from(["insert", "match"]), sequences), max_size=25)


def code(prefix: Tokens) -> float:
    """A number of its own for each prefix: its tokens + 1 as digits to the base 4, below 2^24 and so exact."""
    number = 0
    for token in prefix:
        number = 4 * number + token + 1
    return float(number)


def kv_of(tokens: Tokens) -> Tensor:
    """Keys and values that depend on the whole prefix, as a model's do; the values are the negated keys."""
    keys = torch.tensor([[code(tokens[: i + 1])] * 2 for i in range(len(tokens))]).reshape(len(tokens), 2)
    return torch.stack([keys, -keys])[None, :, None]


def joined(found: list[tuple[Tensor, int]]) -> Tensor:
    return torch.cat([kv[..., :n, :] for kv, n in found], dim=-2) if found else kv_of(())


def edges(tree: PrefixTree) -> list[_Edge]:
    stack, seen = list(tree._root.children.values()), []
    while stack:
        edge = stack.pop()
        seen.append(edge)
        stack.extend(edge.children.values())
    return seen


def prefixes(tokens: Tokens) -> list[Tokens]:
    return [tokens[: i + 1] for i in range(len(tokens))]


def matched(tree: PrefixTree, tokens: Tokens) -> int:
    return sum(n for _, n in tree.match(tokens))


@settings(max_examples=200)
@given(operations)
def test_without_a_limit_the_tree_is_a_dictionary_of_prefixes(script: list[tuple[str, Tokens]]) -> None:
    tree, model = PrefixTree(10**9), dict[Tokens, float]()
    for what, tokens in script:
        if what == "insert":
            tree.insert(tokens, kv_of(tokens))
            model |= {prefix: code(prefix) for prefix in prefixes(tokens)}
        known = sum(prefix in model for prefix in prefixes(tokens))  # stored prefixes are closed under shortening
        found = tree.match(tokens)
        assert sum(n for _, n in found) == known
        assert torch.equal(joined(found), kv_of(tokens[:known]))
        assert tree.bytes == TOKEN_BYTES * len(model)


@settings(max_examples=200)
@given(operations, st.integers(0, 20))
def test_with_a_limit_bytes_stay_exact_and_below_and_nothing_wrong_is_found(
    script: list[tuple[str, Tokens]], tokens_allowed: int
) -> None:
    tree, ever = PrefixTree(tokens_allowed * TOKEN_BYTES), set[Tokens]()
    for what, tokens in script:
        if what == "insert":
            tree.insert(tokens, kv_of(tokens))
            ever |= set(prefixes(tokens))
        found = tree.match(tokens)
        length = sum(n for _, n in found)
        assert length <= sum(prefix in ever for prefix in prefixes(tokens))
        assert torch.equal(joined(found), kv_of(tokens[:length]))
        assert tree.bytes <= tree.byte_limit
        assert tree.bytes == sum(len(edge.tokens) for edge in edges(tree)) * TOKEN_BYTES
        assert tree.bytes == sum(edge.kv.nbytes for edge in edges(tree))


@settings(max_examples=100)
@given(operations)
def test_the_radix_form_holds(script: list[tuple[str, Tokens]]) -> None:
    """Edges are not empty, hold as many positions as tokens, hang under their first token, and know their parent."""
    tree = PrefixTree(12 * TOKEN_BYTES)
    for _, tokens in script:
        tree.insert(tokens, kv_of(tokens))
    for edge in edges(tree):
        assert len(edge.tokens) == edge.kv.shape[3]
        assert edge.parent is not None
        assert edge.parent.children[edge.tokens[0]] is edge
        if edge.parent is not tree._root:
            assert edge.used <= edge.parent.used


def test_split_by_hand() -> None:
    tree = PrefixTree(10**6)
    tree.insert((1, 2, 0, 1), kv_of((1, 2, 0, 1)))
    tree.insert((1, 2, 2), kv_of((1, 2, 2)))
    # [1 2] splits off; below it stand [0 1] and [2]: 5 tokens in 3 edges.
    assert sorted(edge.tokens for edge in edges(tree)) == [(0, 1), (1, 2), (2,)]
    assert tree.bytes == 5 * TOKEN_BYTES
    assert [n for _, n in tree.match((1, 2, 0, 1))] == [2, 2]
    assert [n for _, n in tree.match((1, 2, 2, 2))] == [2, 1]
    assert [n for _, n in tree.match((1, 0))] == [1]
    assert tree.match((2,)) == []
    assert tree.match(()) == []


def test_inserted_memory_is_a_copy() -> None:
    tree, kv = PrefixTree(10**6), kv_of((1, 2))
    tree.insert((1, 2), kv)
    kv.zero_()
    assert torch.equal(joined(tree.match((1, 2))), kv_of((1, 2)))


def test_a_known_part_is_kept_as_it_was_first_stored() -> None:
    tree = PrefixTree(10**6)
    tree.insert((1, 2), kv_of((1, 2)))
    tree.insert((1, 2, 0), torch.zeros(1, 2, 1, 3, 2))
    assert torch.equal(joined(tree.match((1, 2, 0)))[..., :2, :], kv_of((1, 2)))
    assert torch.equal(joined(tree.match((1, 2, 0)))[..., 2:, :], torch.zeros(1, 2, 1, 1, 2))


def test_the_least_recently_used_leaf_goes_first() -> None:
    tree = PrefixTree(10 * TOKEN_BYTES)
    for first in (0, 1, 2):
        tree.insert((first, 0, 0), kv_of((first, 0, 0)))
    assert tree.bytes == 9 * TOKEN_BYTES
    assert matched(tree, (0, 0, 0)) == 3  # used again: now (1, 0, 0) is the oldest
    tree.insert((2, 1, 1), kv_of((2, 1, 1)))  # 2 new tokens: 11 > 10, so down to at most 9; 3 go
    assert matched(tree, (1, 0, 0)) == 0
    assert matched(tree, (0, 0, 0)) == 3
    assert matched(tree, (2, 0, 0)) == 3
    assert matched(tree, (2, 1, 1)) == 3
    assert tree.bytes == 8 * TOKEN_BYTES


def test_a_prefix_outlives_its_evicted_suffix() -> None:
    tree = PrefixTree(5 * TOKEN_BYTES)
    tree.insert((0, 1, 1), kv_of((0, 1, 1)))
    tree.insert((0, 2, 2, 2), kv_of((0, 2, 2, 2)))  # 1 + 2 + 3 = 6 > 5: the older suffix (1, 1) goes, 4 stay
    assert matched(tree, (0, 1, 1)) == 1
    assert matched(tree, (0, 2, 2, 2)) == 4
    assert tree.bytes == 4 * TOKEN_BYTES


def test_limit_zero_keeps_nothing() -> None:
    tree = PrefixTree(0)
    tree.insert((1, 2), kv_of((1, 2)))
    assert tree.match((1, 2)) == []
    assert tree.bytes == 0


@given(sequences, sequences)
def test_shared_length(a: Tokens, b: Tokens) -> None:
    assert shared_length(a, b) == max(n for n in range(min(len(a), len(b)) + 1) if a[:n] == b[:n])


def test_pad_right() -> None:
    assert pad_right([[5, 6], [], [7]], 3, torch.device("cpu")).tolist() == [[5, 6, 0], [0, 0, 0], [7, 0, 0]]


def slots(rows: int = 3, attention: str = "sdpa") -> SlotCache:
    config = LlamaConfig(
        hidden_size=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        max_position_embeddings=64,
        attn_implementation=attention,
    )
    return SlotCache(config, rows, torch.float32, torch.device("cpu"))


def test_the_memory_has_the_models_shape() -> None:
    memory = slots()
    assert memory.context == 64
    # layers, keys and values, rows, key-value heads, positions, head dimension 8 / 4
    assert (*memory.kv.shape[:4], memory.kv.shape[5]) == (2, 2, 3, 2, 2)


def test_window_positions_and_mask_by_hand() -> None:
    inputs = slots().window(slice(0, 2), [3, 0], 2)
    assert inputs["position_ids"].tolist() == [[3, 4], [0, 1]]
    # Five keys: the longest row needs 3 + 2. A query sees the keys at or before its own position.
    assert inputs["attention_mask"].shape == (2, 1, 2, 5)
    assert inputs["attention_mask"][:, 0].int().tolist() == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
    ]


def test_eager_attention_gets_a_mask_to_add() -> None:
    mask = slots(attention="eager").window(slice(0, 1), [1], 1)["attention_mask"]
    assert mask.dtype == torch.float32
    assert mask.flatten().tolist() == [0.0, 0.0]
    mask = slots(attention="eager").window(slice(0, 2), [0, 2], 1)["attention_mask"]
    lowest = torch.finfo(torch.float32).min
    assert mask[:, 0, 0].tolist() == [[0.0, lowest, lowest], [0.0, 0.0, 0.0]]


def test_attention_without_masks_is_refused() -> None:
    with pytest.raises(ModelError, match="flash_attention_2"):
        slots(attention="flash_attention_2")


def test_padding_stays_within_the_context() -> None:
    """A row at position 62 of 64 gets 2 tokens of padding behind its first: one on the last place, one on the spare."""
    memory = slots()
    inputs = memory.window(slice(0, 2), [62, 0], 3)
    assert inputs["position_ids"].tolist() == [[62, 63, 63], [0, 1, 2]]
    assert inputs["attention_mask"].shape == (2, 1, 3, 65)


def test_update_writes_at_the_windows_positions_and_nowhere_else() -> None:
    memory = slots()
    memory.window(slice(1, 3), [0, 2], 1)
    keys = torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand(2, 2, 1, 2)
    got_keys, got_values = memory.update(keys, keys + 10, 1)
    assert got_keys.shape == got_values.shape == (2, 2, 3, 2)
    expected = torch.zeros_like(memory.kv)
    expected[1, 0, 1, :, 0], expected[1, 1, 1, :, 0] = 1.0, 11.0
    expected[1, 0, 2, :, 2], expected[1, 1, 2, :, 2] = 2.0, 12.0
    assert torch.equal(memory.kv, expected)
    assert torch.equal(got_keys, expected[1, 0, 1:3, :, :3])
    assert torch.equal(got_values, expected[1, 1, 1:3, :, :3])


def test_each_token_and_head_lands_in_its_place() -> None:
    memory = slots()
    memory.window(slice(0, 1), [4], 3)
    keys = torch.arange(12.0).reshape(1, 2, 3, 2)  # [B, heads, width, dim]
    memory.update(keys, -keys, 0)
    assert torch.equal(memory.kv[0, 0, 0, :, 4:7], keys[0])
    assert torch.equal(memory.kv[0, 1, 0, :, 4:7], -keys[0])


def test_load_read_and_copy_a_row() -> None:
    memory = slots()
    first, second = torch.randn(2, 2, 2, 4, 2), torch.randn(2, 2, 2, 3, 2)
    assert memory.load(1, [(first, 4), (second, 2)]) == 6
    assert torch.equal(memory.read(1, 6), torch.cat([first, second[..., :2, :]], dim=3))
    memory.copy_row(1, 0, 5)
    assert torch.equal(memory.read(0, 5), memory.read(1, 5))
    assert memory.read(0, 6)[..., 5, :].abs().sum() == 0
    assert memory.load(2, []) == 0


def test_growing_keeps_what_is_stored() -> None:
    memory = slots()
    kv = torch.randn(2, 2, 2, 10, 2)
    memory.load(2, [(kv, 10)])
    memory.ensure_room(3, 1281)
    assert torch.equal(memory.read(2, 10), kv)
    assert memory.window(slice(0, 1), [40], 24)["attention_mask"].shape == (1, 1, 24, 64)
    assert memory.kv.shape[4] >= 1281


def test_rows_come_as_they_are_needed() -> None:
    memory = slots(rows=100)
    kv = torch.randn(2, 2, 2, 10, 2)
    memory.load(3, [(kv, 10)])
    sizes = []
    for rows in (4, 5, 9, 100):
        memory.ensure_room(rows, 10)
        sizes.append(memory.kv.shape[2])
    assert sizes == [4, 8, 16, 100]
    assert torch.equal(memory.read(3, 10), kv)


def test_mixed_attention_is_refused() -> None:
    config = Qwen2Config(
        hidden_size=8,
        num_attention_heads=4,
        num_hidden_layers=2,
        use_sliding_window=True,
        max_window_layers=1,
        sliding_window=4,
    )
    with pytest.raises(ModelError, match="qwen2"):
        SlotCache(config, 1, torch.float32, torch.device("cpu"))


def test_a_sliding_window_shorter_than_the_context_is_refused() -> None:
    config = MistralConfig(
        hidden_size=8, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, sliding_window=4, head_dim=2
    )
    with pytest.raises(ModelError):
        SlotCache(config, 1, torch.float32, torch.device("cpu"))
