"""What a solver is made of, as settings: engine, prompt, policy, critics and search."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, Literal

from llm_mcts.config import load_config
from llm_mcts.engines.base import EngineConfig
from llm_mcts.errors import ConfigError, suggest
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.policy import PolicyConfig
from llm_mcts.prompts import PromptConfig
from llm_mcts.search import SEARCHES

RANK_AVERAGE = "rank_average"


Aggregate = Literal["last", "min", "mean", "prod"]
"""How step scores become one."""


@dataclass(frozen=True)
class CriticsConfig(Settings, section="critics"):
    """Checkpoints of trained critics, and how they are combined."""

    value: str | None = None
    """Folder of a value model."""
    prm: str | None = None
    """Folder of a process reward model, or FORMAT:PLACE of a published one (folder or hub id), asked as its authors do:
    math_shepherd, rlhflow (Llama3.1-8B-PRM-*-Data), qwen (Qwen2.5-Math-PRM) or skywork (Skywork-o1-Open-PRM)."""
    orm: str | None = None
    """Folder of an outcome reward model or of a generative verifier, or classifier:PLACE (folder or hub id of a published
    AutoModelForSequenceClassification)."""
    value_weight: Annotated[float, AtLeast(0)] = 1.0
    """Weight of the value model on unfinished solutions. AlphaLLM: 1."""
    prm_weight: Annotated[float, AtLeast(0)] = 1.0
    """Weight of the PRM on unfinished solutions. AlphaLLM: 1."""
    finished: str | None = None
    """What judges finished solutions in the ORM's place: the file of a learned sum that `llm-mcts diagnose --fit FILE` wrote,
    or rank_average: the mean of all critics' ranks, the policy's likelihood among them (for best_of_n)."""
    rollouts: Annotated[int, AtLeast(0)] = 0
    """Completions of an unfinished solution whose mean worth takes a value model's place; 0: none. They are judged as finished
    solutions are, or by agreement with the majority of 16 completions of the question. Math-Shepherd: 8."""
    prm_aggregate: Aggregate = "last"
    """How the PRM's step scores become one: last (AlphaLLM), min (Math-Shepherd), mean or prod."""
    calibration: str | None = None
    """File of the critics' calibrations: what `llm-mcts diagnose --calibrate FILE` wrote. A learned sum reads plain scores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollouts and self.value:
            raise ConfigError(
                f"critics.rollouts is {self.rollouts} with a value model ({self.value}), whose place they take; drop one"
            )


@dataclass(frozen=True)
class SolverConfig(Settings):
    """Everything a solver is made of."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critics: CriticsConfig = field(default_factory=CriticsConfig)
    rollout_model: str | None = None
    """A smaller model that completes solutions in rollouts (AlphaLLM's fast rollout); none: the policy does."""
    share_backbone: bool = False
    """Keep one copy of the base model for policy and critics that are LoRA adapters on it. Saves memory; adapters that are
    not merged compute a little slower."""
    search: str | dict[str, Any] = "mcts"
    """greedy, self_consistency, best_of_n, beam, dvts, mcts, alphago, alphazero, alphallm, gumbel or rest_mcts; or a mapping
    with that `name` and the search's own settings."""
    seed: int = 0
    """Same seed, same answers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        build_search(self.search)


def build_search(search: str | Mapping[str, Any]) -> tuple[str, Any]:
    """The name and checked configuration of a search given by name or as {"name": …, setting: value, …}.

    Raises:
        ConfigError: no such search or setting, or a value it refuses.
    """
    if not isinstance(search, str | Mapping):
        raise ConfigError(f"search is {search!r}; expected a name, or a mapping with a name and settings")
    settings = {"name": search} if isinstance(search, str) else dict(search)
    name = settings.pop("name", "mcts")
    if not isinstance(name, str) or name not in SEARCHES:
        raise ConfigError(f"no search '{name}'{suggest(str(name), SEARCHES)}")
    try:
        plain = json.dumps(settings)
    except TypeError as error:
        raise ConfigError(f"search {name} has a setting that is no plain value: {error}; expected numbers and texts") from error
    try:
        return name, _search_config(name, plain)
    except ConfigError as error:
        raise ConfigError(f"search {name}: {error}") from error


@lru_cache(maxsize=256)
def _search_config(name: str, settings: str) -> Any:
    """The configuration with the settings, in JSON: built once, for that takes longer than a small model's step."""
    return load_config(SEARCHES[name][1], json.loads(settings))
