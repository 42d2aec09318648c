"""Solver: a policy, its critics and a search behind one call. The only place that joins all parts.

from llm_mcts import Solver
print(Solver().solve("Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?").answer)
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llm_mcts.concurrency import gather_bounded
from llm_mcts.config import load_config
from llm_mcts.engines import build_engine
from llm_mcts.engines.base import Engine
from llm_mcts.errors import ConfigError, LLMMCTSError, ModelError, QuestionError, exhausted
from llm_mcts.models import EMBEDDED
from llm_mcts.packages import refuse_shadows
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptFormat
from llm_mcts.result import SearchResult
from llm_mcts.search import SEARCHES
from llm_mcts.settings import RANK_AVERAGE, CriticsConfig, SolverConfig, build_search
from llm_mcts.tree import Tree
from llm_mcts.types import Critic, metered

if TYPE_CHECKING:
    from llm_mcts.engines.transformers.adapters import SharedBackbone

T = TypeVar("T")


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
        refuse_shadows()
        from critics.assemble.configured import configured_critic

        return configured_critic(self.config.critics, self.policy, shared, self.config.seed)

    def _load(self, model: str, shared: "SharedBackbone | None" = None) -> Engine:
        config = replace(self.config.engine, model=model)
        if shared is None:
            return build_engine(config)
        from llm_mcts.engines.transformers.engine import TransformersEngine
        from llm_mcts.models import adapter_base, load_tokenizer

        view = shared.as_lm(shared.add(model) if adapter_base(model) else None)
        return TransformersEngine(config, model=view, tokenizer=load_tokenizer(model))

    def _share(self) -> "SharedBackbone":
        """The policy's base model, for adapters to be loaded on."""
        from llm_mcts.engines.transformers.adapters import SharedBackbone
        from llm_mcts.models import adapter_base, load_causal_lm, resolve_device, resolve_dtype

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

    def solve(
        self,
        question: str,
        search: str | Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        tree: Tree | None = None,
    ) -> SearchResult:
        """Search for the answer to one question; `search`, `seed` and `temperature` replace the configured ones.

        A `tree` from an earlier search of the question is continued in place, until the budgets are spent in all: with
        the same search, seed and a greater budget it becomes the tree that the greater budget would have grown at once.
        `tree.subtree(node)` starts from a chosen step (not for gumbel, whose plan begins at the question). A search that is
        interrupted leaves the tree whole.

        Raises:
            QuestionError: the question is empty or too long.
            DataError: the tree is another question's.
        """
        return self._run(self.asolve(question, search, seed=seed, temperature=temperature, tree=tree))

    def solve_batch(
        self,
        questions: Sequence[str],
        search: str | Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        trees: Sequence[Tree | None] | None = None,
        concurrency: int = 64,
    ) -> list[SearchResult | LLMMCTSError]:
        """`solve` for many questions, `concurrency` at a time; results in order, for a question that fails its error.

        Raises:
            ConfigError, ModelError: they would hit every question; or there are not as many `trees` as questions.
        """
        if trees is not None and len(trees) != len(questions):
            raise ConfigError(f"{len(trees)} trees for {len(questions)} questions; expected one each, or None in its place")

        async def solve(asked: tuple[str, Tree | None]) -> SearchResult | LLMMCTSError:
            question, tree = asked
            try:
                return await self.asolve(question, search, seed=seed, temperature=temperature, tree=tree)
            except LLMMCTSError as error:
                if isinstance(error, ConfigError | ModelError) or exhausted(error):
                    raise  # it would hit every question
                return error

        asked = list(zip(questions, trees or [None] * len(questions), strict=True))
        return self._run(gather_bounded(solve, asked, concurrency))

    async def asolve(
        self,
        question: str,
        search: str | Mapping[str, Any] | None = None,
        *,
        seed: int | None = None,
        temperature: float | None = None,
        tree: Tree | None = None,
    ) -> SearchResult:
        """`solve` for callers with an event loop of their own."""
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
