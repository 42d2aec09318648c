"""A policy and a critic, held to their contracts: what they return is checked before a search uses it."""

from collections.abc import Sequence
from numbers import Real

from llm_mcts.errors import CriticError, PolicyError, blame
from llm_mcts.types import Critic, Policy, State, Step


async def proposals(policy: Policy, state: State, n: int, seed: int) -> list[Step]:
    """Up to `n` next steps of `state` by the policy, held to its contract.

    Raises:
        PolicyError: the policy fails, or proposes more than `n`; the message names the question.
    """
    try:
        steps = list(await policy.propose(state, n, seed))
    except Exception as error:
        blame(error, PolicyError, "policy", state.question)
    if len(steps) > n:
        raise PolicyError(f"policy proposed {len(steps)} steps of question {state.question!r}; expected at most {n}")
    return steps


async def completions(policy: Policy, state: State, n: int, seed: int, temperature: float | None = None) -> list[State]:
    """`n` completions of `state` by the policy, held to its contract.

    Raises:
        PolicyError: another number of completions, or an unfinished one; the message names the question.
    """
    try:
        ends = list(await policy.rollout(state, n, seed, temperature))
    except Exception as error:
        blame(error, PolicyError, "policy", state.question)
    if len(ends) != n:
        raise PolicyError(f"policy returned {len(ends)} completions of question {state.question!r}; expected {n}")
    if any(end.question != state.question or end.steps[: len(state.steps)] != state.steps for end in ends):
        raise PolicyError(f"policy's completion of question {state.question!r} does not begin with the steps it was given")
    if not all(end.terminal for end in ends):
        raise PolicyError(f"policy returned an unfinished completion of question {state.question!r}; expected whole solutions")
    return ends


async def critic_scores(critic: Critic, states: Sequence[State]) -> list[float]:
    """The critic's scores, held to its contract; finished solutions without an answer score 0 and cost nothing.

    Raises:
        CriticError: wrong number of scores, NaN, or a score outside [0, 1]; the message names the question.
    """
    asked = [s for s in states if not (s.terminal and s.answer is None)]
    try:
        found = await critic.score(asked) if asked else []
        scores = [] if found is None else list(found)
    except Exception as error:
        blame(error, CriticError, "critic", asked[0].question)
    if len(scores) != len(asked):
        raise CriticError(f"critic returned {len(scores)} scores for {len(asked)} states of question {asked[0].question!r}")
    for state, score in zip(asked, scores, strict=True):
        if not isinstance(score, Real) or not 0.0 <= score <= 1.0:
            raise CriticError(f"critic returned {score} for question {state.question!r}; expected a number in [0, 1]")
    if len(asked) == len(states):
        return scores
    left = iter(scores)
    return [0.0 if s.terminal and s.answer is None else next(left) for s in states]
