"""The cache of openvino-genai: how many blocks it has, and which prefixes it should hold.

The library shares whole blocks of 32 tokens between texts but does not tell which it reused, so the same bookkeeping is
kept here: a block is known by the hash of the text up to its end, and the least recently used ones go first.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from llm_mcts.engines.base import EngineConfig
from llm_mcts.errors import ConfigError

BLOCK = 32
"""Tokens a block on a CPU."""

# Precision of the arithmetic, precision of the cache, bytes a number of the cache.
_PRECISIONS = {"auto": ("f32", "f16", 2), "float32": ("f32", "f32", 4), "bfloat16": ("bf16", "bf16", 2)}


def precisions(config: EngineConfig) -> tuple[str, str, int]:
    """Precision of the arithmetic and of the cache, and the bytes of one number in the cache."""
    if config.dtype not in _PRECISIONS:
        known = ", ".join(_PRECISIONS)
        raise ConfigError(f"engine.dtype is '{config.dtype}'; expected {known} for engine 'openvino'")
    return _PRECISIONS[config.dtype]


class Pool:
    """The blocks that `cache_mb` has room for; without any, the library takes what it needs and keeps nothing."""

    def __init__(self, config: EngineConfig, values: int) -> None:
        """`values`: numbers that the cache holds of one token."""
        size = precisions(config)[2] * values * BLOCK
        self.capacity = config.cache_mb * 2**20 // size
        """Blocks."""
        if config.cache_mb and not self.capacity:
            raise ConfigError(f"engine.cache_mb is {config.cache_mb}; expected at least {-(-size // 2**20)}, one block, or 0")
        self._held: OrderedDict[int, None] = OrderedDict()

    @property
    def room(self) -> int | None:
        """Tokens, None: without limit."""
        return self.capacity * BLOCK if self.capacity else None

    def take(self, tokens: Sequence[int]) -> int:
        """How many leading tokens of a prompt are held; from now on all its whole blocks are."""
        held = 0
        # The last token is always computed: its logits are what is sampled from.
        for i, known in enumerate([block in self._held for block in _chain(tokens[:-1])]):
            if not known:
                break
            held = (i + 1) * BLOCK
        self.keep(tokens)
        return held

    def keep(self, tokens: Sequence[int]) -> None:
        """Note that the whole blocks of a text have been computed."""
        for block in reversed(list(_chain(tokens)) if self.capacity else []):
            self._held[block] = None
            self._held.move_to_end(block)
        while len(self._held) > self.capacity:
            self._held.popitem(last=False)


def _chain(tokens: Sequence[int]) -> Iterator[int]:
    """For each whole block, a hash of the text up to its end."""
    before = 0
    for end in range(BLOCK, len(tokens) + 1, BLOCK):
        before = hash((before, *tokens[end - BLOCK : end]))
        yield before
