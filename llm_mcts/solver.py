"""Solver: a policy, its critics and a search behind one call. The only place that joins all parts.

from llm_mcts import Solver
print(Solver().solve("Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?").answer)
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm_mcts.config import load_config
from llm_mcts.engines import build_engine
from llm_mcts.engines.base import EMBEDDED, Engine, EngineConfig
from llm_mcts.errors import ConfigError, LLMMCTSError, QuestionError, suggest
from llm_mcts.policy import LMPolicy, PolicyConfig
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.search import SEARCHES
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, SearchResult, metered

if TYPE_CHECKING:
    from llm_mcts.engines.adapters import SharedBackbone

T = TypeVar("T")

RANK_AVERAGE = "rank_average"


@dataclass(frozen=True)
class CriticsConfig:
    """Checkpoints of trained critics, and how they are combined."""

    value: str | None = None
    """Folder of a value model."""
    prm: str | None = None
    """Folder of a process reward model."""
    orm: str | None = None
    """Folder of an outcome reward model."""
    value_weight: float = 1.0
    """Weight of the value model on unfinished solutions, at least 0. AlphaLLM: 1."""
    prm_weight: float = 1.0
    """Weight of the PRM on unfinished solutions, at least 0. AlphaLLM: 1."""
    finished: str | None = None
    """What judges finished solutions in the ORM's place: the file of a learned sum that `llm-mcts diagnose --fit FILE` wrote,
    or rank_average: the mean of all critics' ranks, the policy's likelihood among them (for best_of_n)."""
    rollouts: int = 0
    """Completions of an unfinished solution whose mean worth takes a value model's place; 0: none. They are judged as finished
    solutions are, or by agreement with the majority of 16 completions of the question. Math-Shepherd: 8."""
    prm_aggregate: str = "last"
    """How the PRM's step scores become one: last (AlphaLLM), min (Math-Shepherd), mean or prod."""
    calibration: str | None = None
    """File of the critics' calibrations: what `llm-mcts diagnose --calibrate FILE` wrote. A learned sum reads plain scores."""

    def __post_init__(self) -> None:
        if self.rollouts < 0:
            raise ConfigError(f"critics.rollouts is {self.rollouts}; expected at least 0")
        if self.rollouts and self.value:
            raise ConfigError(
                f"critics.rollouts is {self.rollouts} with a value model ({self.value}), whose place they take; drop one"
            )


@dataclass(frozen=True)
class SolverConfig:
    """Everything a solver is made of."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    critics: CriticsConfig = field(default_factory=CriticsConfig)
    rollout_model: str | None = None
    """A smaller model that completes solutions in roll-outs (AlphaLLM's fast roll-out); none: the policy does."""
    share_backbone: bool = False
    """Keep one copy of the base model for policy and critics that are LoRA adapters on it. Saves memory; adapters that are
    not merged compute a little slower."""
    search: str | dict[str, Any] = "mcts"
    """greedy, self_consistency, best_of_n, beam, dvts, mcts, alphago, alphazero, alphallm, gumbel or rest_mcts; or a mapping
    with that `name` and the search's own settings."""
    seed: int = 0
    """Same seed, same answers."""

    def __post_init__(self) -> None:
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
    if name not in SEARCHES:
        raise ConfigError(f"no search '{name}'{suggest(str(name), SEARCHES)}")
    try:
        return name, load_config(SEARCHES[name][1], settings)
    except ConfigError as error:
        raise ConfigError(f"search {name}: {error}") from error


def load_critics(
    config: CriticsConfig, policy: LMPolicy, shared: "SharedBackbone | None" = None, seed: int = 0
) -> Critic | None:
    """The configured critics as one, or None where none is configured.

    Args:
        config: which critics.
        policy: writes roll-outs; its engine tells a learned sum the policy's likelihood.
        shared: the base model that all critics are adapters on, if it is to be shared.
        seed: of the roll-out critic.
    """
    if not (config.value or config.prm or config.orm or config.finished or config.rollouts):
        return None
    from critics import CriticWeights, RolloutCritic, WeightedCritic
    from critics.calibration import calibrated, load_calibrations

    folders = {"value": config.value, "prm": config.prm, "orm": config.orm}
    plain = {k: _load_critic(f, k, config.prm_aggregate, shared) for k, f in folders.items() if f is not None}
    critics = dict(plain)
    if config.calibration:
        fitted = load_calibrations(config.calibration)
        for kind, critic in plain.items():
            folder = str(folders[kind])
            critics[kind] = calibrated(critic, kind, folder, config.calibration, fitted, config.prm_aggregate)  # type: ignore[arg-type]
    judge = _finished(config, plain, policy, shared) if config.finished else critics.get("orm")
    if config.rollouts:
        critics["value"] = RolloutCritic(policy, judge, num_rollouts=config.rollouts, seed=seed)
    weights = CriticWeights(config.value_weight, config.prm_weight)
    return WeightedCritic(critics.get("value"), critics.get("prm"), judge, weights)


def _load_critic(folder: str, kind: Any, aggregate: str, shared: "SharedBackbone | None") -> Critic:
    from critics import CriticModel, ModelCritic
    from llm_mcts.engines.packing import pack_linears
    from llm_mcts.engines.transformers import resolve_device

    model = CriticModel.from_pretrained(folder, kind, shared=shared).to(resolve_device("auto"))
    if shared is None:
        pack_linears(model.backbone)
    return ModelCritic(model, aggregate)


def _finished(config: CriticsConfig, plain: Mapping[str, Critic], policy: LMPolicy, shared: "SharedBackbone | None") -> Critic:
    """What judges finished solutions in the ORM's place, from critics as they are, not calibrated."""
    from critics import Combination, LikelihoodCritic, LogisticCritic, RankAverageCritic

    parts = {**plain, "likelihood": LikelihoodCritic(policy.engine, policy.prompt)}
    if config.finished == RANK_AVERAGE:
        return RankAverageCritic(list(parts.values()))
    learned = Combination.load(str(config.finished))
    if "prm" in learned.weights and config.prm and learned.prm_aggregate != config.prm_aggregate:
        parts["prm"] = _load_critic(config.prm, "prm", learned.prm_aggregate, shared)
    return LogisticCritic(parts, learned)


def _check_ranks(name: str, search: Any) -> None:
    """Ranks compare what is asked together: refuse a search that asks a few at a time."""
    if name not in ("greedy", "self_consistency", "best_of_n"):
        raise ConfigError(f"critics.finished is {RANK_AVERAGE} with search {name}; expected best_of_n, which asks all at once")
    if name == "best_of_n" and search.num_parallel < search.num_samples:
        raise ConfigError(
            f"critics.finished is {RANK_AVERAGE} with num_parallel={search.num_parallel} of {search.num_samples} samples; "
            "expected all at once, so that their ranks can be compared"
        )


class Solver:
    """Answers questions by search. Cheap to keep, expensive to make: it holds the models."""

    def __init__(self, config: SolverConfig | None = None, engine: Engine | None = None, critic: Critic | None = None) -> None:
        """Load what `config` names; `engine` and `critic` take the place of what it would load.

        Raises:
            ConfigError, ModelError: something named in the configuration cannot be used.
        """
        self.config = config = config or SolverConfig()
        shared = self._share() if config.share_backbone and engine is None else None
        self.engine = engine = engine or self._load(config.engine.model, shared)
        fast = self._policy(self._load(config.rollout_model)) if config.rollout_model else None
        self.policy = self._policy(engine, fast)
        self.critic = critic if critic is not None else load_critics(config.critics, self.policy, shared, config.seed)
        if shared:
            shared.pack()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _load(self, model: str, shared: "SharedBackbone | None" = None) -> Engine:
        config = replace(self.config.engine, model=model)
        if shared is None:
            return build_engine(config)
        from llm_mcts.engines.adapters import adapter_base
        from llm_mcts.engines.transformers import TransformersEngine, load_tokenizer

        view = shared.as_lm(shared.add(model) if adapter_base(model) else None)
        return TransformersEngine(config, model=view, tokenizer=load_tokenizer(model))

    def _share(self) -> "SharedBackbone":
        """The policy's base model, for adapters to be loaded on."""
        from llm_mcts.engines.adapters import SharedBackbone, adapter_base
        from llm_mcts.engines.transformers import load_causal_lm, resolve_device, resolve_dtype

        config = self.config.engine
        if config.name != "transformers":
            raise ConfigError(f"share_backbone is on with engine '{config.name}'; expected the transformers engine")
        base, device = adapter_base(config.model) or config.model, resolve_device(config.device)
        return SharedBackbone(load_causal_lm(base, resolve_dtype(config.dtype, device), device), base)

    def _policy(self, engine: Engine, fast: LMPolicy | None = None) -> LMPolicy:
        return LMPolicy(engine, PromptFormat(self.config.prompt, engine.chat_template), self.config.policy, fast)

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any] | None = None, **overrides: Any) -> "Solver":
        """A solver from a YAML file or a mapping with SolverConfig's fields; `overrides` replace top-level fields."""
        return cls(load_config(SolverConfig, source, overrides))

    @classmethod
    def from_pretrained(
        cls,
        policy: str = EMBEDDED,
        value: str | None = None,
        prm: str | None = None,
        orm: str | None = None,
        search: str | Mapping[str, Any] = "mcts",
        **overrides: Any,
    ) -> "Solver":
        """A solver from model folders or hub ids; `search` is a name, or a mapping with its settings."""
        source = {
            "engine": {"model": policy},
            "critics": {"value": value, "prm": prm, "orm": orm},
            "search": search if isinstance(search, str) else dict(search),
        }
        return cls(load_config(SolverConfig, source, overrides))

    def solve(self, question: str, search: str | Mapping[str, Any] | None = None, tree: Tree | None = None) -> SearchResult:
        """Search for the answer to one question; `search` replaces the configured one.

        A `tree` from an earlier search of the question is searched on, in place, until its budgets are used up in all: with
        the same search, seed and a greater budget it becomes the tree that the greater budget would have grown at once.
        `tree.subtree(node)` starts from a chosen step (not for gumbel, whose plan begins at the question). A search that is
        interrupted leaves the tree whole.

        Raises:
            QuestionError: the question is empty or too long.
            DataError: the tree is another question's.
        """
        return self._run(self.asolve(question, search, tree=tree))

    def solve_batch(
        self, questions: Sequence[str], search: str | Mapping[str, Any] | None = None
    ) -> list[SearchResult | LLMMCTSError]:
        """Solve many questions at once, in order; a question that fails yields its error in its place."""

        async def one(question: str) -> SearchResult | LLMMCTSError:
            try:
                return await self.asolve(question, search)
            except ConfigError:
                raise
            except LLMMCTSError as error:
                return error

        async def every() -> list[SearchResult | LLMMCTSError]:
            return list(await asyncio.gather(*map(one, questions)))

        return self._run(every())

    async def asolve(
        self,
        question: str,
        search: str | Mapping[str, Any] | None = None,
        seed: int | None = None,
        tree: Tree | None = None,
    ) -> SearchResult:
        """`solve` for callers with an event loop of their own; `seed` replaces the configured one."""
        if not question.strip():
            raise QuestionError("the question is empty; expected some text")
        name, config = build_search(self.config.search if search is None else search)
        if self.config.critics.finished == RANK_AVERAGE:
            _check_ranks(name, config)
        with metered() as usage:
            seed = self.config.seed if seed is None else seed
            result = await SEARCHES[name][0](question, self.policy, self.critic, config, seed, tree)
        result.usage = usage
        return result

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the solver's own event loop, so that models are always awaited on the same one."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:  # such as Ctrl-C: the search takes back what is under way
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise
