"""The bookkeeping of the cache and the errors that need no OpenVINO."""

import pytest

from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.openvino.export import require
from llm_mcts.engines.openvino.pool import Pool, precisions
from llm_mcts.errors import ConfigError


def pool(blocks: int) -> Pool:
    """A pool of so many blocks: at 2**20 bytes a block of 32 tokens, 4 bytes a number, 8192 numbers a token."""
    return Pool(EngineConfig("openvino", dtype="float32", cache_mb=blocks), 8192)


def test_capacity_by_hand() -> None:
    assert (pool(7).capacity, pool(7).room) == (7, 224)
    assert Pool(EngineConfig("openvino", cache_mb=7), 8192).capacity == 14  # half the bytes a number
    assert (pool(0).capacity, pool(0).room) == (0, None)


def test_whole_blocks_are_reused_but_never_the_last_token() -> None:
    held = pool(100)
    text = list(range(100))
    assert held.take(text) == 0
    assert held.take(text) == 96
    assert held.take(text[:96]) == 64
    assert held.take([*text[:64], 7, 7, *text[66:]]) == 64
    assert held.take([7, *text[1:]]) == 0
    assert held.take(text[:31]) == 0


def test_a_finished_text_is_held() -> None:
    held = pool(100)
    held.take(list(range(40)))
    held.keep(list(range(70)))
    assert held.take(list(range(80))) == 64


def test_the_least_recently_used_goes_first() -> None:
    held = pool(4)
    a, b, c = ([n, *range(64)] for n in range(3))
    for text in (a, b, a, c):
        held.take(text)
    assert held.take(a) == 64
    assert held.take(b) == 0


def test_without_a_cache_nothing_is_reused() -> None:
    held = pool(0)
    assert held.take(list(range(100))) == held.take(list(range(100))) == 0


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="float16'; expected auto, float32, bfloat16"):
        precisions(EngineConfig("openvino", dtype="float16"))
    with pytest.raises(ConfigError, match="cache_mb is 1; expected at least 2, one block"):
        Pool(EngineConfig("openvino", dtype="float32", cache_mb=1), 8193)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot import no_such_package .*pip install 'llm-mcts\[openvino\]'"):
        require("no_such_package")
