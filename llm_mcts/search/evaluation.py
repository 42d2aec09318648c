"""The value of a leaf: a critic's, rollouts to the end, or a mix of both.

AlphaGo's mix is V = (1 - lambda) v + lambda z. AlphaLLM's sum b_v v + b_prm PRM + b_orm E[ORM], divided by the sum of its
weights, is the same with lambda = b_orm / (b_v + b_prm + b_orm): the critic mixes v and PRM, the search adds the rollouts.
The value of a finished solution is its critic's score. ReST-MCTS* adds up step by step instead (`quality_value`), finished
solutions included. One that states no answer has value 0 by definition. Where no critic is given, solutions are judged by
agreement with the others.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
                "or rollouts alone (rollouts >= 1)"
            )
        self._votes.update(s.answer for s in states if s.answer is not None)
        total = max(1, self._votes.total())
        return [0.0 if s.answer is None else self._votes[s.answer] / total for s in states]


@dataclass
class _Evaluation:
    """What the kinds of evaluation share: completions of the leaves, judged by the critic."""

    tree: Tree
    policy: Policy
    critic: Critic
    rollouts: int
    """Completions of each unfinished leaf, >= 0."""
    seed: int

    async def _complete(self, leaves: Sequence[Node]) -> list[list[State]]:
        """The completions of each leaf, by the policy's faster companion where it has one."""
        if self.rollouts == 0:
            return [[] for _ in leaves]
        writer: Policy = getattr(self.policy, "fast", None) or self.policy

        async def complete(leaf: Node) -> list[State]:
            if leaf.terminal:
                return []
            seed = derive_seed(self.seed, self.tree.question, self.tree.place(leaf), "rollout")
            return await completions(writer, self.tree.state(leaf), self.rollouts, seed)

        return await gather_all([complete(leaf) for leaf in leaves])

    async def _judge(
        self, leaves: Sequence[Node], judged: Sequence[Node], ends: Sequence[Sequence[State]]
    ) -> tuple[dict[Node, float], list[list[float]]]:
        """The critic's scores of the `judged` leaves, and of each leaf's completions; the critic is asked once for everything.

        The completions are kept in `tree.rollouts`: they were paid for and can vote and train.
        """
        states = [self.tree.state(leaf) for leaf in judged] + [end for group in ends for end in group]
        scores = iter(await critic_scores(self.critic, states))
        own = {leaf: next(scores) for leaf in judged}
        end_scores = [[next(scores) for _ in group] for group in ends]
        for leaf, group, group_scores in zip(leaves, ends, end_scores, strict=True):
            self.tree.rollouts.extend((leaf, end, score) for end, score in zip(group, group_scores, strict=True))
        return own, end_scores


@dataclass
class MixedValue(_Evaluation):
    """Sets each leaf's value to V = (1 - lambda) v + lambda z, z the mean score of its completions."""

    rollout_weight: float
    """lambda, in [0, 1]."""

    async def __call__(self, leaves: Sequence[Node]) -> None:
        """Evaluate the leaves, all at once."""
        weight = self.rollout_weight
        if self.rollouts == 0 or weight == 0:
            values = await critic_scores(self.critic, [self.tree.state(leaf) for leaf in leaves])
            for leaf, value in zip(leaves, values, strict=True):
                leaf.value = value
            return
        ends = await self._complete(leaves)
        own, end_scores = await self._judge(leaves, [leaf for leaf in leaves if leaf.terminal or weight < 1], ends)
        for leaf, scores in zip(leaves, end_scores, strict=True):
            if scores:
                leaf.value = (1 - weight) * own.get(leaf, 0.0) + weight * sum(scores) / len(scores)
            else:
                leaf.value = own[leaf]


@dataclass
class StepQuality(_Evaluation):
    """Sets each leaf's value to ReST-MCTS*'s quality v_k, from its parent's v_{k-1} and the critic's judgement of its step.

    The critic's score stands for 1 - r; m_k, the steps still missing, are those of the leaf's shortest completion.
    """

    async def __call__(self, leaves: Sequence[Node]) -> None:
        """Evaluate the leaves, all at once."""
        ends = await self._complete(leaves)
        own, _ = await self._judge(leaves, [leaf for leaf in leaves if leaf.parent], ends)
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
