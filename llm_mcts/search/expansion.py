"""What a node's children are, and how likely the policy finds each."""

from collections.abc import Sequence
from math import exp

from llm_mcts.types import Step


def priors(steps: Sequence[Step], temperature: float) -> list[float]:
    """Softmax over the siblings' log-probability per token, at `temperature`; sums to 1.

    Dividing by the number of tokens keeps long steps from vanishing beside short ones.
    """
    logits = [step.logprob / step.num_tokens / temperature for step in steps]
    top = max(logits)
    weights = [exp(x - top) for x in logits]
    total = sum(weights)
    return [w / total for w in weights]
