"""When two steps count as one (AlphaLLM's state merge, arXiv 2404.12253).

Equal texts always do. With `merge` also texts at a small edit distance do, or those that a judge finds equivalent; another step
is then sampled in their place. Steps that state different answers never merge.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

from llm_mcts.errors import ConfigError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.types import Policy, State, Step


@dataclass(frozen=True)
class MergeConfig(Settings, section="merge"):
    """When two steps count as one."""

    kind: Literal["exact", "edit", "judge"] = "exact"
    """exact: equal texts. edit: a small edit distance. judge: the policy's model is asked whether they are equivalent."""
    distance: Annotated[int, AtLeast(1)] = 20
    """edit: steps nearer than this many insertions, deletions and substitutions of characters merge. AlphaLLM: 20 or 50."""
    retries: Annotated[int, AtLeast(0)] = 0
    """How often another step is sampled in place of merged ones. AlphaLLM: 5."""


Same = Callable[[State, Step, Step], Awaitable[bool]]
"""Whether two next steps of a state, of different texts, count as one."""
Propose = Callable[[int, int], Awaitable[Sequence[Step]]]
"""(number of steps, index of the draw) -> steps."""


@runtime_checkable
class JudgesSteps(Protocol):
    """A policy that can be asked whether two steps say the same."""

    async def equivalent(self, state: State, a: Step, b: Step) -> bool:
        """Whether `a` and `b` are equivalent as next steps of `state`."""
        ...


def same_step(config: MergeConfig, policy: Policy) -> Same | None:
    """The comparison that `config` asks for; None: equal texts alone.

    Raises:
        ConfigError: the policy is to judge steps and cannot.
    """

    async def near(state: State, a: Step, b: Step) -> bool:
        return edit_distance(a.text, b.text, config.distance) < config.distance

    if config.kind == "judge":
        if not isinstance(policy, JudgesSteps):
            raise ConfigError("merge.kind is 'judge' and the policy cannot judge; expected it to have `equivalent`")
        return policy.equivalent
    return near if config.kind == "edit" else None


def edit_distance(a: str, b: str, limit: int) -> int:
    """Levenshtein's distance of two texts, or `limit` where it is at least that: rows stop once they cannot come below."""
    if abs(len(a) - len(b)) >= limit:
        return limit
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (x != y)))
        if min(row) >= limit:
            return limit
        previous = row
    return min(previous[-1], limit)


async def distinct_steps(
    propose: Propose, state: State, siblings: Sequence[Step], n: int, draws: Sequence[int], same: Same | None
) -> list[Step]:
    """Up to `n` new next steps of `state`, none the same as another or as a sibling.

    Args:
        draws: indices of the draws that may be made; each after the first asks for what is still missing.
    """
    known = list(siblings)
    for draw in draws:
        for step in await propose(n + len(siblings) - len(known), draw):
            if step not in known and not (same and await _merges(state, step, known, same)):
                known.append(step)
        if len(known) >= n + len(siblings):
            break
    return known[len(siblings) :]


async def _merges(state: State, step: Step, known: Sequence[Step], same: Same) -> bool:
    """Whether a step says the same as one of those known; the first that does is enough."""
    for other in known:
        if step.answer == other.answer and await same(state, step, other):
            return True
    return False
