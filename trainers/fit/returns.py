"""Value targets and advantages from rewards and estimates: TD(lambda) returns, generalised advantages, baselines of samples.

    G_t = r_t + gamma ((1 - lambda) V_{t+1} + lambda G_{t+1})          G, V and A are 0 behind the end
    A_t = delta_t + gamma lambda A_{t+1},   delta_t = r_t + gamma V_{t+1} - V_t
    A_t + V_t = G_t                                                    (Schulman et al. 2015, arXiv 1506.02438)

A solution of T steps has T + 1 prefixes, the bare question first; reading off the answer behind the last one earns the
outcome, and nothing else earns anything. lambda 1 is the discounted outcome itself, lambda 0 one-step bootstrapping.
"""

from collections.abc import Sequence
from statistics import fmean


def lambda_returns(rewards: Sequence[float], values: Sequence[float | None], gamma: float, lam: float) -> list[float]:
    """G_t for every t.

    Args:
        rewards: r_t, earned between prefix t and the next.
        values: V_t, of the same length; None where unknown, and the return G_t itself stands in.
        gamma: discount in [0, 1].
        lam: lambda in [0, 1].
    """
    returns: list[float] = []
    following = 0.0  # (1 - lambda) V_{t+1} + lambda G_{t+1}
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        returns.append(reward + gamma * following)
        following = returns[-1] if value is None else (1 - lam) * value + lam * returns[-1]
    return returns[::-1]


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float, lam: float) -> list[float]:
    """Generalised advantage estimates A_t for every t; arguments as in `lambda_returns`, every value known."""
    advantages: list[float] = []
    advantage, following = 0.0, 0.0  # A_{t+1} and V_{t+1}
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        advantage = reward + gamma * following - value + gamma * lam * advantage
        advantages.append(advantage)
        following = value
    return advantages[::-1]


def outcome_rewards(outcome: float, num_prefixes: int) -> list[float]:
    """0 for every prefix but the last, which earns the outcome."""
    return [0.0] * (num_prefixes - 1) + [outcome]


def mean_baselines(returns: Sequence[float]) -> list[float]:
    """For each of a question's samples the mean return of all, its own included (GRPO, arXiv 2402.03300)."""
    return [fmean(returns)] * len(returns)


def leave_one_out_baselines(returns: Sequence[float]) -> list[float]:
    """For each of a question's samples, at least two, the mean return of the others (RLOO, arXiv 2402.14740)."""
    total, others = sum(returns), len(returns) - 1
    return [(total - own) / others for own in returns]
