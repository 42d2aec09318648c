"""Settings of policy gradient: what is sampled, what a sample is worth, how far an update may go."""

from dataclasses import dataclass
from typing import Annotated, Literal

from llm_mcts.errors import ConfigError
from llm_mcts.fields import Above, AtLeast, Settings, Within

Baseline = Literal["none", "mean", "leave_one_out", "value"]


@dataclass(frozen=True)
class PolicyGradientConfig(Settings, section="policy_gradient"):
    """What is sampled, what a sample is worth, and how far an update may go."""

    iterations: Annotated[int, AtLeast(1)] = 50
    """Times that solutions are sampled and the weights updated."""
    questions_per_iteration: Annotated[int, AtLeast(1)] = 32
    """Questions per iteration; all of them where there are fewer. They come again once less than an iteration's
    are left."""
    samples_per_question: Annotated[int, AtLeast(1)] = 8
    """Solutions per question; at least 2 for the baselines mean and leave_one_out. RLOO: 2 or 4; GRPO: 64."""
    temperature: Annotated[float, Above(0)] = 1.0
    """Sampling temperature; what learns is the policy at this temperature. The solver's own, and its truncations
    (top_k, top_p, min_p), do not apply: a sample of another distribution is off-policy."""
    baseline: Baseline = "leave_one_out"
    """What a return is compared with: none (REINFORCE), mean or leave_one_out of the question's samples, or a value model."""
    normalise_advantage: Literal["off", "question", "batch"] = "off"
    """Divide advantages by the standard deviation, over the question's samples (GRPO) or the iteration's, of those of the first
    steps; where that is 0 they stay."""
    gamma: Annotated[float, Within(0, 1)] = 1.0
    """Discount per step. 1: the outcome counts alike for every step."""
    lam: Annotated[float, Within(0, 1)] = 0.95
    """For baseline value: lambda of the generalised advantages; 1 is u_t - V(s_t). Schulman et al.: 0.95 to 0.99."""
    kl_weight: Annotated[float, AtLeast(0)] = 0.0
    """Weight of the mean KL(pi || pi_start) per token, in nats; 0: none. GRPO: 0.04."""
    ppo_clip: Annotated[float, Within(0, 1, open_high=True)] = 0.0
    """PPO's epsilon; 0: no clipping, plain policy gradient. PPO: 0.2."""
    ppo_epochs: Annotated[int, AtLeast(1)] = 1
    """Passes over an iteration's samples; more than 1 with ppo_clip alone. PPO: 3 to 15."""

    def __post_init__(self) -> None:
        super().__post_init__()
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
