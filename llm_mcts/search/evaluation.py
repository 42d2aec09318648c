"""What a leaf is worth: a critic's value, roll-outs to the end, or a mix of both.

AlphaGo's mix is V = (1 - lambda) v + lambda z. AlphaLLM's sum b_v v + b_prm PRM + b_orm E[ORM], divided by the sum of its
weights, is the same with lambda = b_orm / (b_v + b_prm + b_orm): the critic mixes v and PRM, the search adds the roll-outs.
A finished solution is worth what the critic says of it. ReST-MCTS* adds up step by step instead (`quality_value`), finished
solutions included. One that states no answer is worth 0 by definition. Where no critic is given, solutions are judged by
agreement with the others.
"""

from collections import Counter
from collections.abc import Sequence

from llm_mcts.concurrency import gather_all
from llm_mcts.errors import ConfigError
from llm_mcts.search.contracts import completions, critic_scores
from llm_mcts.seeding import derive_seed
from llm_mcts.tree import Node, Tree
from llm_mcts.types import Critic, Policy, State, Trace


class Agreement:
    """Self-consistency as a critic: a solution scores its answer's share of all answers seen so far.

    One instance serves one question. It knows nothing of unfinished solutions, and none without an answer is shown to it.
    """

    def __init__(self, seen: Sequence[Trace] = ()) -> None:
        """`seen`: solutions that count already, such as those of a tree that is searched further."""
        self._votes = Counter(trace.state.answer for trace in seen if trace.state.answer is not None)

    async def score(self, states: Sequence[State]) -> list[float]:
        """Count the answers of `states`, then score each by its answer's share of all counted."""
        if unfinished := [s for s in states if not s.terminal]:
            raise ConfigError(
                f"agreement cannot value an unfinished solution ({len(unfinished[0].steps)} steps); expected a critic, "
                "or roll-outs alone (rollouts >= 1)"
            )
        self._votes.update(s.answer for s in states if s.answer is not None)
        total = max(1, self._votes.total())
        return [0.0 if s.answer is None else self._votes[s.answer] / total for s in states]


async def evaluate_leaves(
    tree: Tree, leaves: Sequence[Node], policy: Policy, critic: Critic, rollouts: int, rollout_weight: float, seed: int
) -> None:
    """Set each leaf's value to V = (1 - rollout_weight) v + rollout_weight z, z the mean score of its completions.

    All completions run at once and the critic is asked once for everything.
    """
    if rollouts == 0 or rollout_weight == 0:
        values = await critic_scores(critic, [tree.state(leaf) for leaf in leaves])
        for leaf, value in zip(leaves, values, strict=True):
            leaf.value = value
        return
    ends = await _completed(tree, leaves, policy, rollouts, seed)
    judged = [leaf for leaf in leaves if leaf.terminal or rollout_weight < 1]
    own, end_scores = await _judged(tree, leaves, judged, ends, critic)
    for leaf, scores in zip(leaves, end_scores, strict=True):
        if scores:
            leaf.value = (1 - rollout_weight) * own.get(leaf, 0.0) + rollout_weight * sum(scores) / len(scores)
        else:
            leaf.value = own[leaf]


async def evaluate_quality(
    tree: Tree, leaves: Sequence[Node], policy: Policy, critic: Critic, rollouts: int, seed: int
) -> None:
    """Set each leaf's value to ReST-MCTS*'s quality v_k, from its parent's v_{k-1} and the critic's judgement of its step.

    The critic's score stands for 1 - r; m_k, the steps still missing, are those of the leaf's shortest completion.
    """
    ends = await _completed(tree, leaves, policy, rollouts, seed)
    own, _ = await _judged(tree, leaves, [leaf for leaf in leaves if leaf.parent], ends, critic)
    for leaf, group in zip(leaves, ends, strict=True):
        missing = min((len(end.steps) - leaf.depth for end in group), default=0)
        before = leaf.parent.value if leaf.parent and leaf.parent.value is not None else 0.0
        answered = leaf.parent and not (leaf.terminal and leaf.step.answer is None)
        leaf.value = quality_value(before, 1.0 - own[leaf], missing) if answered else 0.0


def quality_value(before: float, r: float, missing: int) -> float:
    """ReST-MCTS* (arXiv 2406.03816): v_k = max(v_{k-1} + w_k, 0), w_k = (1 - v_{k-1}) / (m_k + 1) (1 - 2 r).

    Args:
        before: v_{k-1} in [0, 1]; 0 before the first step.
        r: 0 if the step can reach the right answer, 1 if not, in [0, 1].
        missing: m_k, steps from here to the answer.
    """
    return max(before + (1 - before) / (missing + 1) * (1 - 2 * r), 0.0)


async def _completed(tree: Tree, leaves: Sequence[Node], policy: Policy, rollouts: int, seed: int) -> list[list[State]]:
    """`rollouts` completions of each unfinished leaf, by the policy's faster companion where it has one."""
    if rollouts == 0:
        return [[] for _ in leaves]
    writer: Policy = getattr(policy, "fast", None) or policy

    async def complete(leaf: Node) -> list[State]:
        if leaf.terminal:
            return []
        leaf_seed = derive_seed(seed, tree.question, tree.place(leaf), "rollout")
        return await completions(writer, tree.state(leaf), rollouts, leaf_seed)

    return await gather_all([complete(leaf) for leaf in leaves])


async def _judged(
    tree: Tree, leaves: Sequence[Node], judged: Sequence[Node], ends: Sequence[Sequence[State]], critic: Critic
) -> tuple[dict[Node, float], list[list[float]]]:
    """The critic's scores of the `judged` leaves, and of each leaf's completions.

    The completions are kept in `tree.rollouts`: they were paid for and can vote and train.
    """
    states = [tree.state(leaf) for leaf in judged] + [end for group in ends for end in group]
    scores = await critic_scores(critic, states)
    own = dict(zip(judged, scores, strict=False))
    if len(scores) == len(judged):
        return own, [[] for _ in leaves]
    left = iter(scores[len(judged) :])
    end_scores = [[next(left) for _ in group] for group in ends]
    for leaf, group, found in zip(leaves, ends, end_scores, strict=True):
        tree.rollouts.extend((leaf, end, score) for end, score in zip(group, found, strict=True))
    return own, end_scores
