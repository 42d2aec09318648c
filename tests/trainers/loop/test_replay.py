"""Trajectories with their provenance, and rows of earlier rounds."""

from typing import Any

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.tasks import get_task
from llm_mcts.tree import Tree
from llm_mcts.types import Problem, State, Step
from trainers.data.evidence import Evidence
from trainers.loop.replay import ReplayConfig, pass_rates, replayed, trajectories
from trainers.questions.curriculum import PassRate

FRESH = [{"id": f"f{i}"} for i in range(6)]
LAST = [{"id": f"a{i}"} for i in range(4)]
BEFORE = [{"id": f"b{i}"} for i in range(4)]


def taken(rounds: int, share: float, seed: int = 0) -> list[str]:
    return [row["id"] for row in replayed(FRESH, [LAST, BEFORE], ReplayConfig(rounds, share), seed)]


def test_the_latest_rounds_come_first_and_fill_at_most_their_share() -> None:
    assert taken(0, 0.5) == []
    assert taken(1, 0.5) == ["a0", "a1", "a2", "a3"]
    # Half of the rows may be old: 6 beside 6 fresh ones, so 4 of the last round and 2 of the one before.
    found = taken(2, 0.5)
    assert found[:4] == ["a0", "a1", "a2", "a3"]
    assert len(set(found)) == 6
    assert all(id_.startswith("b") for id_ in found[4:])
    # A quarter: 2 beside 6.
    assert len(taken(2, 0.25)) == 2


def test_the_draw_depends_on_the_seed_alone() -> None:
    assert taken(2, 0.5, 1) == taken(2, 0.5, 1)
    assert len({tuple(taken(2, 0.25, seed)) for seed in range(8)}) > 1


def test_without_fresh_rows_there_are_no_old_ones() -> None:
    assert replayed([], [LAST], ReplayConfig(1), 0) == []


@pytest.mark.parametrize("values", [{"rounds": -1}, {"share": 1.0}, {"share": -0.1}])
def test_settings_out_of_range(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"replay.{next(iter(values))} is .*; expected a"):
        ReplayConfig(**values)


def test_every_solution_found_with_where_it_came_from() -> None:
    problem = Problem("p", "How many?", "3")
    tree = Tree(problem.question)
    end = Step("#### 3", terminal=True, answer="3")
    tree.expand(tree.root, [end, Step("first")], [0.5, 0.5])
    tree.root.children[0].value, tree.root.children[0].visit_count = 0.75, 1
    wrong = State(problem.question, (Step("first"), Step("#### 4", terminal=True, answer="4")))
    unfinished = State(problem.question, (Step("first"), Step("second", terminal=True)))
    tree.rollouts += [(tree.root.children[1], wrong, 0.25), (tree.root.children[1], unfinished, None)]
    found = trajectories(Evidence.of(tree, problem, get_task("arith")), round=2, policy="models/p", source="train")
    assert [(t.steps, t.right) for t in found] == [
        (("#### 3",), True),
        (("first", "#### 4"), False),
        (("first", "second"), False),
    ]
    assert {(t.problem, t.round, t.policy, t.source) for t in found} == {("p", 2, "models/p", "train")}
    assert found[1].score == 0.25


def test_without_critics_no_solution_has_a_score() -> None:
    tree = Tree("2 + 2?")
    tree.rollouts.append((tree.root, tree.state(tree.root).then(Step("#### 4", terminal=True, answer="4")), 0.5))
    problem, task = Problem("p", "2 + 2?", "4"), get_task("arith")
    assert [one.score for one in trajectories(Evidence.of(tree, problem, task), 1, "m", "train")] == [0.5]
    tree.scored_by = "agreement"
    assert [one.score for one in trajectories(Evidence.of(tree, problem, task), 1, "m", "train")] == [None]


def test_the_latest_round_tells_a_questions_pass_rate() -> None:
    def rows(*marks: tuple[str, bool]) -> list[dict[str, Any]]:
        return [{"problem": problem, "right": right} for problem, right in marks]

    first = rows(("p", True), ("p", False), ("q", False))
    second = rows(("p", True), ("p", True), ("p", False))
    assert pass_rates([first, second]) == {"p": PassRate(2, 3), "q": PassRate(0, 1)}
