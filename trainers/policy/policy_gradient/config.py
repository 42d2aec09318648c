"""Settings of policy gradient: what is sampled, what a sample is worth, how far an update may go."""

from dataclasses import dataclass
from math import inf
from typing import Literal

from llm_mcts.errors import ConfigError

Baseline = Literal["none", "mean", "leave_one_out", "value"]


@dataclass(frozen=True)
class PolicyGradientConfig:
    """What is sampled, what a sample is worth, and how far an update may go."""

    iterations: int = 50
    """Times that solutions are sampled and the weights updated, at least 1."""
    questions_per_iteration: int = 32
    """Questions of an iteration, at least 1; all of them where there are fewer. They come again once less than an iteration's
    are left."""
    samples_per_question: int = 8
    """Solutions a question, at least 1; at least 2 for the baselines mean and leave_one_out. RLOO: 2 or 4; GRPO: 64."""
    temperature: float = 1.0
    """Sampling temperature, above 0; what learns is the policy at this temperature. The solver's own, and its truncations
    (top_k, top_p, min_p), do not apply: a sample of another distribution is off-policy."""
    baseline: Baseline = "leave_one_out"
    """What a return is compared with: none (REINFORCE), mean or leave_one_out of the question's samples, or a value model."""
    normalise_advantage: Literal["off", "question", "batch"] = "off"
    """Divide advantages by the standard deviation, over the question's samples (GRPO) or the iteration's, of those of the first
    steps; where that is 0 they stay."""
    gamma: float = 1.0
    """Discount a step, in [0, 1]. 1: the outcome counts alike for every step."""
    lam: float = 0.95
    """For baseline value: lambda of the generalised advantages, in [0, 1]; 1 is u_t - V(s_t). Schulman et al.: 0.95 to 0.99."""
    kl_weight: float = 0.0
    """Weight of the mean KL(pi || pi_start) a token, in nats, at least 0; 0: none. GRPO: 0.04."""
    ppo_clip: float = 0.0
    """PPO's epsilon, in [0, 1); 0: no clipping, plain policy gradient. PPO: 0.2."""
    ppo_epochs: int = 1
    """Passes over an iteration's samples, at least 1; more than 1 with ppo_clip alone. PPO: 3 to 15."""

    def __post_init__(self) -> None:
        for name in ("iterations", "questions_per_iteration", "samples_per_question", "ppo_epochs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"policy gradient with {name}={getattr(self, name)}; expected at least 1")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"policy gradient with {name}={getattr(self, name)}; expected within [0, 1]")
        if not 0 < self.temperature < inf or not 0 <= self.kl_weight < inf or not 0 <= self.ppo_clip < 1:
            raise ConfigError(
                f"policy gradient with temperature={self.temperature}, kl_weight={self.kl_weight}, ppo_clip={self.ppo_clip}; "
                "expected temperature > 0, kl_weight >= 0, ppo_clip in [0, 1)"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        if self.baseline not in ("none", "mean", "leave_one_out", "value"):
            raise ConfigError(f"baseline is '{self.baseline}'; expected none, mean, leave_one_out or value")
        if self.normalise_advantage not in ("off", "question", "batch"):
            raise ConfigError(f"normalise_advantage is '{self.normalise_advantage}'; expected off, question or batch")
        compares = self.baseline in ("mean", "leave_one_out") or self.normalise_advantage == "question"
        if compares and self.samples_per_question < 2:
            raise ConfigError(
                f"samples_per_question is 1 with baseline {self.baseline}, normalise_advantage {self.normalise_advantage}; "
                "expected at least 2 to compare a question's samples, or baseline none or value"
            )
        if self.ppo_epochs > 1 and not self.ppo_clip:
            raise ConfigError(
                f"ppo_epochs is {self.ppo_epochs} with ppo_clip 0; expected a clip, such as 0.2: after the first pass the "
                "samples are another policy's"
            )
