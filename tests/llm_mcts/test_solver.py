"""The solver joins the parts: trees that are searched on, rollouts by another model."""

import asyncio
import inspect
from pathlib import Path

import pytest

from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, DataError, LLMMCTSError, ModelError, PolicyError, QuestionError
from llm_mcts.policy import LMPolicy
from llm_mcts.result import SearchResult
from llm_mcts.settings import SolverConfig, build_search
from llm_mcts.solver import Solver
from tests.search_cases import noise_script

SMALL = {"name": "mcts", "num_simulations": 6, "num_parallel": 2}


def solver() -> Solver:
    return Solver(SolverConfig(), engine=ScriptedEngine(noise_script(width=4, depth=4)))


def test_a_tree_is_searched_on() -> None:
    one = solver()
    first = one.solve("Which way?", SMALL)
    assert first.tree is not None
    visits = first.tree.root.visit_count
    more = one.solve("Which way?", {**SMALL, "num_simulations": 20}, tree=first.tree)
    whole = one.solve("Which way?", {**SMALL, "num_simulations": 20})
    assert more.tree is first.tree
    assert more.tree.root.visit_count > visits
    assert whole.tree is not None
    assert more.tree.to_dict() == whole.tree.to_dict()
    assert more.usage.generated_tokens + first.usage.generated_tokens == whole.usage.generated_tokens
    with pytest.raises(DataError, match="of question 'Which way"):
        one.solve("Another?", SMALL, tree=first.tree)


def test_a_search_goes_on_below_a_chosen_step() -> None:
    one = solver()
    first = one.solve("Which way?", SMALL)
    assert first.tree is not None
    step = first.tree.find("0")
    result = one.solve("Which way?", {**SMALL, "num_simulations": 20}, tree=first.tree.subtree(step))
    assert result.steps[0] == step.step.text


def test_a_smaller_model_writes_the_roll_outs(tiny_model: Path) -> None:
    config = {
        "rollout_model": str(tiny_model),
        "policy": {"max_step_tokens": 8, "max_solution_tokens": 8},
        "search": {**SMALL, "num_simulations": 2},
    }
    one = Solver.from_config(config)
    assert one.policy.fast is not None
    fast = one.policy.fast.engine  # type: ignore[attr-defined]
    assert fast is not one.engine
    asked: list[int] = []
    generate = fast.generate

    async def counted(request: object) -> object:
        asked.append(1)
        return await generate(request)

    fast.generate = counted
    result = one.solve("Mia has 3 boxes with 4 shells each. How many shells does Mia have now?")
    assert result.tree is not None
    assert len(asked) == len(result.tree.rollouts) == sum(n.value is not None and not n.terminal for n in result.tree.nodes())


def test_a_roll_out_model_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LLMMCTSError, match="nowhere"):
        Solver.from_config({"rollout_model": str(tmp_path / "nowhere")})


def test_an_unknown_search_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gumbel'"):
        solver().solve("Which way?", "gumble")


@pytest.mark.parametrize("search", [3, {"name": ["mcts"]}, {"name": "mcts", "num_simulations": {4}}, {"name": None}])
def test_a_search_that_is_no_search(search: object) -> None:
    with pytest.raises(ConfigError, match="search"):
        build_search(search)  # type: ignore[arg-type]


def test_a_search_is_built_from_what_it_is_given_each_time() -> None:
    settings: dict[str, object] = {"name": "mcts", "widening": {"max_children": 7}}
    _, first = build_search(settings)
    settings["widening"] = {"max_children": 8}
    _, second = build_search(settings)
    assert (first.widening.max_children, second.widening.max_children) == (7, 8)
    assert build_search(settings)[1] == second


def test_another_seed_and_temperature() -> None:
    first, second = solver(), solver()
    asyncio.run(first.asolve("Which way?", SMALL, seed=5, temperature=0.25))
    asyncio.run(second.asolve("Which way?", SMALL, seed=6, temperature=0.25))
    assert isinstance(first.engine, ScriptedEngine)
    assert isinstance(second.engine, ScriptedEngine)
    assert {request.temperature for request in first.engine.requests} == {0.25}
    assert first.policy.config.temperature == 0.8
    # Every request's seed derives from the search's, so that two seeds have none in common.
    assert not {r.seed for r in first.engine.requests} & {r.seed for r in second.engine.requests}


def test_closing_closes_every_engine() -> None:
    closed: list[str] = []

    class Closing(ScriptedEngine):
        async def aclose(self) -> None:
            closed.append(self.script.__name__)

    one = solver()
    one.policy = LMPolicy(Closing(main), one.policy.prompt, fast=LMPolicy(Closing(fast), one.policy.prompt))
    asyncio.run(one.aclose())
    assert closed == ["main", "fast"]


def main(prompt: str) -> list[tuple[str, float]]:
    return []


def fast(prompt: str) -> list[tuple[str, float]]:
    return []


class Closing(ScriptedEngine):
    """Knows whether it was closed, and which checkpoints it took over."""

    closed = 0

    def __init__(self) -> None:
        super().__init__(lambda _: [("#### 4", 1.0)])
        self.swapped: list[str] = []

    async def aclose(self) -> None:
        self.closed += 1

    async def swap(self, model: str) -> None:
        self.swapped.append(model)


def test_a_solver_closes_its_engine() -> None:
    engine = Closing()
    with Solver(SolverConfig(search="greedy"), engine=engine) as solver:
        assert solver.solve("2 + 2?").answer == "4"
        assert engine.closed == 0
    assert engine.closed == 1
    unused = Closing()
    Solver(SolverConfig(search="greedy"), engine=unused).close()
    assert unused.closed == 1


def test_one_question_and_many_take_the_same_arguments() -> None:
    named = {name: set(inspect.signature(getattr(Solver, name)).parameters) for name in ("solve", "asolve", "solve_batch")}
    assert named["solve"] == named["asolve"] == {"self", "question", "search", "seed", "temperature", "tree"}
    assert named["solve_batch"] - {"concurrency"} == {"self", "questions", "search", "seed", "temperature", "trees"}


def test_many_questions_give_what_each_gives_alone() -> None:
    alone = [solver().solve(q, SMALL, seed=5, temperature=0.25) for q in ("Which way?", "Where to?")]
    batch = solver().solve_batch(["Which way?", "", "Where to?"], SMALL, seed=5, temperature=0.25)
    assert isinstance(batch[1], QuestionError)
    for one, result in zip(alone, batch[::2], strict=True):
        assert isinstance(result, SearchResult)
        assert one.tree is not None
        assert result.tree is not None
        assert result.tree.to_dict() == one.tree.to_dict()
    more = solver().solve_batch(
        ["Which way?", "Where to?"], {**SMALL, "num_simulations": 9}, seed=5, trees=[alone[0].tree, None]
    )
    assert [r.tree is alone[0].tree for r in more] == [True, False]  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="1 trees for 2 questions"):
        solver().solve_batch(["a", "b"], trees=[None])


def test_many_questions_run_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    running: list[int] = [0, 0]

    async def counted(self: Solver, question: str, *_: object, **__: object) -> None:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0)
        running[0] -= 1

    monkeypatch.setattr(Solver, "asolve", counted)
    solver().solve_batch([str(i) for i in range(20)], concurrency=3)
    assert running == [0, 3]


@pytest.mark.parametrize("error", [ModelError("no weights"), PolicyError("the policy failed")])
def test_what_hits_every_question_ends_the_batch(error: LLMMCTSError, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(self: Solver, *_: object, **__: object) -> None:
        raise error from (MemoryError() if isinstance(error, PolicyError) else None)

    monkeypatch.setattr(Solver, "asolve", failing)
    with pytest.raises(type(error)):
        solver().solve_batch(["Which way?", "Where to?"])
