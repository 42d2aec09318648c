"""Solver: a policy, its critics and a search behind one call. The only place that joins all parts.

from llm_mcts import Solver
print(Solver().solve("Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?").answer)
"""

import asyncio
import contextlib
import json
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

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
    """Folder of an outcome reward model, or of a generative verifier."""
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
    prm_format: Literal["own", "math_shepherd", "rlhflow", "qwen", "skywork"] = "own"
    """What `prm` is: own, or a published model (folder or hub id) that is asked as its authors do: math_shepherd, rlhflow
    (Llama3.1-8B-PRM-*-Data), qwen (Qwen2.5-Math-PRM) or skywork (Skywork-o1-Open-PRM)."""
    orm_format: Literal["own", "classifier"] = "own"
    """What `orm` is: own, or classifier (folder or hub id of a published AutoModelForSequenceClassification)."""
    orm_scale: float = 1.0
    """A classifier's score is sigmoid(orm_scale * logit + orm_bias); above 0. With `finished`, as diagnose had it: 1."""
    orm_bias: float = 0.0
    """See orm_scale. With `finished`: 0."""
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
        self.critic = critic if critic is not None else self._critic(shared)
        if shared:
            shared.pack()
        self._loop: asyncio.AbstractEventLoop | None = None

    def _critic(self, shared: "SharedBackbone | None") -> Critic | None:
        if self.config.critics == CriticsConfig():
            return None
        from critics.configured import configured_critic

        return configured_critic(self.config.critics, self.policy, shared, self.config.seed)

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
        temperature: float | None = None,
    ) -> SearchResult:
        """`solve` for callers with an event loop of their own; `seed` and `temperature` replace the configured ones."""
        if not question.strip():
            raise QuestionError("the question is empty; expected some text")
        name, config = build_search(self.config.search if search is None else search)
        if self.config.critics.finished == RANK_AVERAGE:
            _check_ranks(name, config)
        with metered() as usage:
            seed = self.config.seed if seed is None else seed
            policy = self.policy if temperature is None else self.policy.at(temperature)
            result = await SEARCHES[name][0](question, policy, self.critic, config, seed, tree)
        result.usage = usage
        return result

    async def aclose(self) -> None:
        """Close the engines: their connections and processes. The solver is not used after it."""
        for policy in (self.policy, self.policy.fast):
            if isinstance(policy, LMPolicy):
                await policy.engine.aclose()

    def close(self) -> None:
        """`aclose` for callers without an event loop; `with Solver(…) as solver` does it at the block's end."""
        self._run(self.aclose())
        if self._loop is not None:
            if left := asyncio.all_tasks(self._loop):
                for task in left:
                    task.cancel()
                self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            self._loop.close()
            self._loop = None

    def __enter__(self) -> "Solver":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run on the solver's own event loop, so that models are always awaited on the same one."""
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            work.close()
            raise ConfigError("the solver was called inside a running event loop; expected: await solver.asolve(question)")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(work)
        try:
            return self._loop.run_until_complete(task)
        except BaseException:  # such as Ctrl-C: the search takes back what is under way
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
            raise
