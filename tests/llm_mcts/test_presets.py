"""The configuration files that come with the project: each loads, and there is one for every search."""

from pathlib import Path

import pytest

from llm_mcts.config import load_config
from llm_mcts.evaluate import EvaluateConfig
from llm_mcts.search import SEARCHES
from llm_mcts.search.presets import OVERRIDES
from llm_mcts.settings import SolverConfig, build_search

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted((CONFIGS / "search").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_loads_and_is_named_after_its_search(path: Path) -> None:
    name, _ = build_search(load_config(SolverConfig, path).search)
    assert path.stem in (name, f"{name}_uct")


def test_every_search_has_a_preset() -> None:
    assert {path.stem for path in PRESETS} == set(SEARCHES) | {"mcts_uct"}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_papers_file_leaves_its_settings_to_the_table(name: str) -> None:
    search = load_config(SolverConfig, CONFIGS / "search" / f"{name}.yaml").search
    assert isinstance(search, dict)
    assert set(search) & set(OVERRIDES[name]) == set()


def test_the_comparison_of_all_searches_holds_all_searches() -> None:
    config = load_config(EvaluateConfig, CONFIGS / "evaluate" / "searches.yaml")
    searched = [build_search(method) for method in config.methods.values()]
    assert {name for name, _ in searched} == set(SEARCHES)
    limits = [settings.max_tokens for name, settings in searched if name != "greedy"]
    assert sorted(set(limits)) == [250, 500, 1000, 2000]
    assert len({limits.count(limit) for limit in (250, 500, 1000, 2000)}) == 1
