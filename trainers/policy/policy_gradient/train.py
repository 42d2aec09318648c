"""Policy gradient on the policy's own samples: REINFORCE, with a baseline, a clip and a KL penalty as options.

    grad J = E[ A grad log pi(a|s) ],   A = u_t - b
    b      none: 0; mean: of the question's samples (GRPO without its division); leave_one_out: of the others (RLOO, arXiv
           2402.14740); value: generalised advantages of a value model at step ends (Schulman et al. 2015, arXiv 1506.02438)
    loss   -E[A log pi], or PPO's clipped ratio (arXiv 1707.06347), plus kl_weight KL(pi || pi_start), exact at each token

An action is a step; the reward is 0 until the end, and there 1 if the answer is right. Each iteration samples with the
weights as they are (`on_policy.py`), then updates them. Differences: PPO's value model stays as it is and is not trained
along; the mean goes over tokens of a batch, so no solution counts less for being long; dropout is off, for the policy that
samples is the one that learns. An iteration of several optimiser steps is strictly on-policy in its first alone: without a
clip let batch_size x accumulation hold all its samples. Stateless: whoever is interrupted starts again.

    train_policy_gradient(PolicyCall([], "embedded", Path("out"), TrainConfig(), problems=problems, task=task))
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from statistics import fmean, pstdev

from critics.assemble.loading import StepCritic, load_critic
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import SolverConfig
from llm_mcts.tasks.base import require_answers
from llm_mcts.types import Problem, State, Usage, metered
from trainers.data.encoding import Encoded
from trainers.fit.fit import Metrics
from trainers.fit.language_model import TrainablePolicy
from trainers.fit.returns import gae, lambda_returns, leave_one_out_baselines, mean_baselines, outcome_rewards
from trainers.policy.policy_gradient.config import Baseline, PolicyGradientConfig
from trainers.policy.policy_gradient.sampler import Sample, Sampler, encode_sample
from trainers.policy.policy_gradient.update import PolicyUpdate
from trainers.policy.trainer import PolicyCall, PolicyTrainer

COUNTED = ("generated_tokens", "prefilled_tokens", "reused_tokens", "lm_calls")
"""What is returned of the samples' cost."""
Advantages = list[list[float]]
"""Of one question: for each sample, one a step."""


def train_policy_gradient(call: PolicyCall) -> Metrics:
    """Train the policy on its own solutions of `problems` and write it whole to `out`.

    `config` gives the learning rate (rising over `warmup`, then constant), rows per forward, forwards per step, and LoRA;
    `epochs` has no effect. Without ppo_clip, batch_size * accumulation of at least an iteration's samples is strictly
    on-policy. The solver's engine, prompt and `policy.max_solution_tokens` write the samples; `value_start` is the value model
    of baseline value.

    Returns:
        rows and left_out (samples trained on, and those too long for `max_length` or of questions that could not be read),
        steps, loss (mean of the last tenth), reward_first and reward_last (mean of the first and last iteration's samples),
        and usage: what the samples cost.

    Raises:
        ConfigError: the settings contradict each other.
        DataError: no question, or one without an answer.
    """
    pg = call.settings or PolicyGradientConfig()
    value = call.value_start if pg.baseline == "value" else None
    assert call.task is not None
    _check(call.problems, pg, call.solver, value)
    update = PolicyUpdate(call.start, call.config, pg, call.solver.prompt, call.seed)
    longest = update.policy.fitting(call.config).max_length
    critic = load_critic(value, ("value",)) if value else None
    rewards: list[float] = []
    rows = left_out = 0
    with closing(Sampler(call.solver, call.start, update.policy.tokenizer, pg.temperature)) as sampler:
        for iteration in range(pg.iterations):
            sampler.refresh(update.policy.model)
            asked = update.share(questions_of(call.problems, iteration, pg.questions_per_iteration, call.seed))
            groups = sampler.sample(asked, pg.samples_per_question, call.task, derive_seed(call.seed, "samples", iteration))
            used = _encoded(groups, _advantages(groups, pg, critic, update), update.policy, longest)
            wanted = len(asked) * pg.samples_per_question
            rows, left_out = rows + update.total(len(used)), left_out + update.total(wanted - len(used))
            update.learn(used, wanted, iteration)
            rewards.append(fmean(update.everywhere([s.reward for group in groups for s in group]) or [0.0]))
    if not rows:
        raise DataError(f"none of {left_out} samples can be trained on; expected some of at most {longest} tokens")
    update.save(call.out)
    usage = Usage(**{name: update.total(getattr(sampler.usage, name)) for name in COUNTED})
    reward = {"reward_first": rewards[0], "reward_last": rewards[-1]}
    return {"rows": rows, "left_out": left_out, **update.metrics(), **reward, "usage": asdict(usage)}


def _encoded(
    groups: Sequence[Sequence[Sample]], advantages: Sequence[Advantages], policy: TrainablePolicy, longest: int
) -> list[Encoded]:
    """The samples that fit, with the advantage of each step."""
    rows = [
        encode_sample(sample, steps, policy.fmt, policy.encode, policy.eos)
        for group, found in zip(groups, advantages, strict=True)
        for sample, steps in zip(group, found, strict=True)
    ]
    return [row for row in rows if len(row.ids) <= longest and any(row.mask)]


def _check(problems: Sequence[Problem], pg: PolicyGradientConfig, solver: SolverConfig, value: str | None) -> None:
    if not problems:
        raise DataError("no question to sample solutions of; expected at least one")
    require_answers(problems, "to sample solutions of", ", to reward by")
    if solver.engine.name == "openai":
        raise ConfigError(
            "solver.engine.name is 'openai', whose servers do not get the weights that are trained; "
            "expected transformers, vllm or openvino"
        )
    if pg.baseline == "value" and value is None:
        raise ConfigError("baseline is value and there is no value model; expected one, or another baseline")


def questions_of(problems: Sequence[Problem], iteration: int, n: int, seed: int) -> list[Problem]:
    """An iteration's questions, all different: the next `n` of an order drawn by the seed, a new one when it is exhausted."""
    n = min(n, len(problems))
    lap, place = divmod(iteration, len(problems) // n)
    order = random.Random(derive_seed(seed, "order", lap)).sample(range(len(problems)), len(problems))
    return [problems[i] for i in order[place * n : (place + 1) * n]]


def _advantages(
    groups: Sequence[Sequence[Sample]], pg: PolicyGradientConfig, critic: StepCritic | None, update: PolicyUpdate
) -> list[Advantages]:
    """For each question's samples the advantages of their steps."""
    if critic is None:
        found = [compared([s.reward for s in g], [s.num_steps for s in g], pg.baseline, pg.gamma) for g in groups]
    else:
        values = _values(critic, groups)
        found = [
            [gae(outcome_rewards(s.reward, s.num_steps), v, pg.gamma, pg.lam) for s, v in zip(group, of_group, strict=True)]
            for group, of_group in zip(groups, values, strict=True)
        ]
    if pg.normalise_advantage == "question":
        return [_scaled(group, [steps[0] for steps in group]) for group in found]
    if pg.normalise_advantage == "batch":
        spread = update.everywhere([steps[0] for group in found for steps in group])
        return [_scaled(group, spread) for group in found]
    return found


def compared(rewards: Sequence[float], num_steps: Sequence[int], baseline: Baseline, gamma: float) -> Advantages:
    """u_t - b of each step of one question's samples; b is made of the samples' returns from the question on."""
    returns = [
        lambda_returns(outcome_rewards(reward, n), [None] * n, gamma, 1.0) for reward, n in zip(rewards, num_steps, strict=True)
    ]
    from_start = [u[0] for u in returns]
    baselines = [0.0] * len(returns)
    if returns and baseline == "mean":
        baselines = mean_baselines(from_start)
    elif returns and baseline == "leave_one_out":
        baselines = leave_one_out_baselines(from_start)
    return [[u_t - b for u_t in u] for u, b in zip(returns, baselines, strict=True)]


def _values(critic: StepCritic, groups: Sequence[Sequence[Sample]]) -> list[list[list[float]]]:
    """V(s_t) in front of each step: of the question, and of each step's end but the last."""
    states = [State(s.state.question, s.state.steps[:-1]) for group in groups for s in group]
    with metered():
        scores = iter(asyncio.run(critic.step_scores(states)))
    return [[next(scores) for _ in group] for group in groups]


def _scaled(advantages: Advantages, sample: Sequence[float]) -> Advantages:
    """Divided by the standard deviation of `sample`, where that is above 0."""
    deviation = pstdev(sample) if sample else 0.0
    return [[a / deviation for a in steps] for steps in advantages] if deviation else advantages


POLICY_GRADIENT = PolicyTrainer(train_policy_gradient, settings=PolicyGradientConfig)
