"""Value-guided beam search and diverse verifier tree search, traced by hand, and their degeneracies."""

from math import log
from typing import Any

import pytest

from llm_mcts.errors import ConfigError
from llm_mcts.search.beam import BeamConfig, DVTSConfig, beam, dvts
from llm_mcts.search.sampling import GreedyConfig, greedy
from llm_mcts.types import State, Step
from tests.search_cases import QUESTION, ListedPolicy, NoiseCritic, TableCritic, noise_script, run, scripted


def end(text: str, answer: str, p: float = 0.5) -> Step:
    return Step(text, log(p), 1, True, answer)


STEPS = {
    "": [Step("a", log(0.5)), Step("b", log(0.3)), end("c", "3", 0.2)],
    "a": [Step("d", log(0.5)), Step("e", log(0.5))],
    "b": [end("f", "6"), Step("g", log(0.5))],
    "a\nd": [end("h", "8")],
    "b\ng": [end("i", "9")],
    "a\ne": [end("j", "10")],
}
SCORES = {
    "a": 0.5,
    "b": 0.6,
    "c": 0.4,
    "a\nd": 0.3,
    "a\ne": 0.1,
    "b\nf": 0.55,
    "b\ng": 0.7,
    "a\nd\nh": 0.9,
    "b\ng\ni": 0.65,
    "a\ne\nj": 0.95,
}


def test_beam_by_hand() -> None:
    # Depth 1, K = 4 from the root: a 0.5, b 0.6, c 0.4; the best two: b, a.
    # Depth 2, two each: b -> f 0.55 (an end), g 0.7; a -> d 0.3, e 0.1; the best two: g, f. So a's 0.95 is never seen.
    # Depth 3: g -> i 0.65; f stays at 0.55. Both are ends. Best: i.
    policy, critic = ListedPolicy(STEPS), TableCritic(SCORES)
    result = run(beam(QUESTION, policy, critic, BeamConfig(num_candidates=4, beam_width=2), 0))
    assert (result.steps, result.answer, result.confidence) == (["b", "g", "i"], "9", 0.65)
    assert policy.proposed == ["", "b", "a", "b\ng"]
    assert critic.asked == [["a", "b", "c"], ["b\nf", "b\ng", "a\nd", "a\ne"], ["b\ng\ni"]]
    assert sorted((t.state.text, t.score) for t in result.traces) == [("b\nf", 0.55), ("b\ng\ni", 0.65), ("c", 0.4)]


def test_dvts_by_hand() -> None:
    # Two subtrees of two candidates. The policy lists three steps whatever is asked for, so both start at b, and grow alike:
    # b -> f 0.55, g 0.7: g -> i.
    policy = ListedPolicy(STEPS)
    result = run(dvts(QUESTION, policy, TableCritic(SCORES), DVTSConfig(num_candidates=4, subtree_width=2), 0))
    assert (result.steps, result.answer, result.confidence) == (["b", "g", "i"], "9", 0.65)
    assert policy.proposed == ["", "", "b", "b", "b\ng", "b\ng"]


def test_the_subtrees_of_dvts_are_independent() -> None:
    # The first subtree draws a alone, the second b alone: beam's better b does not displace a, whose end is the best of all.
    class Turns(ListedPolicy):
        async def propose(self, state: State, n: int, seed: int) -> list[Step]:
            steps = await super().propose(state, n, seed)
            return [steps[self.proposed.count("") - 1]] if not state.steps else steps

    scores = {**SCORES, "a\nd": 0.3, "a\ne": 0.35}
    result = run(dvts(QUESTION, Turns(STEPS), TableCritic(scores), DVTSConfig(num_candidates=4, subtree_width=2), 0))
    assert (result.steps, result.confidence) == (["a", "e", "j"], 0.95)
    one_beam = BeamConfig(num_candidates=4, beam_width=1)
    assert run(beam(QUESTION, ListedPolicy(STEPS), TableCritic(scores), one_beam, 0)).steps == ["b", "g", "i"]


@pytest.mark.parametrize("search", [beam, dvts])
def test_one_beam_and_one_candidate_is_one_chain_of_single_steps(search: Any) -> None:
    config = BeamConfig(num_candidates=1, beam_width=1) if search is beam else DVTSConfig(num_candidates=1, subtree_width=1)
    for seed in range(8):
        policy, engine = scripted(noise_script())
        result = run(search(QUESTION, policy, NoiseCritic(), config, seed))
        assert [request.n for request in engine.requests] == [1] * len(result.steps)
        assert len(result.tree.root.children) == 1
        assert len(result.traces) == 1


@pytest.mark.parametrize("search", [beam, dvts])
def test_one_beam_and_one_candidate_of_a_sure_policy_is_greedy_decoding(search: Any) -> None:
    lines = {"": "a", "a\n": "b", "a\nb\n": "#### 4"}
    config = BeamConfig(num_candidates=1, beam_width=1) if search is beam else DVTSConfig(num_candidates=1, subtree_width=1)
    policy, _ = scripted(lambda prompt: [(text, 1.0) for text in [lines.get(prompt.partition("Answer:\n")[2])] if text])
    one = run(search(QUESTION, policy, NoiseCritic(), config, 0))
    assert one.steps == run(greedy(QUESTION, policy, None, GreedyConfig(), 0)).steps == ["a", "b", "#### 4"]


def test_a_beam_never_keeps_more_than_its_width() -> None:
    for seed in range(5):
        policy, engine = scripted(noise_script(width=6, depth=4))
        run(beam(QUESTION, policy, NoiseCritic(), BeamConfig(num_candidates=12, beam_width=3), seed))
        asked = [(len(request.prompt) - 1, request.n) for request in engine.requests]
        assert asked[0] == (0, 12)
        assert {n for depth, n in asked if depth} == {4}
        for depth in range(1, 5):
            assert sum(d == depth for d, _ in asked) <= 3


def test_what_is_unfinished_at_the_maximum_depth_has_no_answer() -> None:
    config = BeamConfig(num_candidates=2, beam_width=1, max_depth=1)
    result = run(beam(QUESTION, ListedPolicy({"": [Step("a", log(0.9))]}), TableCritic(SCORES), config, 0))
    assert (result.answer, result.confidence, result.traces) == (None, 0.0, [])


@pytest.mark.parametrize(
    ("cls", "values", "named"),
    [
        (BeamConfig, {"num_candidates": 2, "beam_width": 3}, "num_candidates is 2 with beam_width 3"),
        (BeamConfig, {"num_candidates": 0}, "num_candidates is 0"),
        (BeamConfig, {"beam_width": 0}, "beam_width is 0"),
        (BeamConfig, {"answer": "visits"}, "'visits'"),
        (DVTSConfig, {"num_candidates": 6, "subtree_width": 4}, "num_candidates is 6 with subtree_width 4"),
        (DVTSConfig, {"subtree_width": 0}, "subtree_width is 0"),
    ],
)
def test_invalid_settings_are_named(cls: Any, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        cls(**values)
