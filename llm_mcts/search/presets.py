"""The papers' tree searches: `mcts` with the parts and hyper-parameters of a paper.

    alphago     PUCT, V = (1 - lambda) v + lambda z with z a rollout judged by the critic, most visited step (Silver et al.
                2016); a leaf is expanded at its second visit instead of the 40th
    alphazero   the critic's value alone, growing exploration, Dirichlet noise at the root (Silver et al. 2018); a leaf is
                valued at once and given its children when it is next reached, which is the same tree
    alphallm    UCT, importance-weighted width, merged states, s = (b_v v + b_prm PRM + b_orm E[ORM]) / sum of b
                (arXiv 2404.12253), at its small budget on GSM8K
    rest_mcts   UCT over step qualities, the steps still missing counted on a rollout (ReST-MCTS*, arXiv 2406.03816); needs a
                critic of steps, such as a PRM

Values are in [0, 1] here, so a paper's constant for values in [-1, 1] explores twice as much as it did there. The files in
configs/search say only what they set in addition.
"""

from dataclasses import field, make_dataclass
from typing import Any, get_type_hints

from llm_mcts.search.expansion import WideningConfig
from llm_mcts.search.mcts import MCTSConfig
from llm_mcts.search.merging import MergeConfig

OVERRIDES: dict[str, dict[str, Any]] = {
    "alphago": {
        "selection": "alphago",
        "c_puct": 5.0,
        "first_play": 0.5,  # 0 of [-1, 1]
        "prior_temperature": 0.67,
        "virtual_loss": 3.0,
        "answer": "visits",
    },
    "alphazero": {
        "selection": "alphazero",
        "c_puct": 1.25,  # c_init; the base is 19652
        "first_play": 0.5,
        "root_noise": 0.25,
        "rollouts": 0,
        "rollout_weight": 0.0,
        "answer": "visits",
    },
    "alphallm": {
        "selection": "uct",
        "c_puct": 1.0,
        # alpha is 1 on its scale of values; values in [0, 1] would then never allow a third child
        "widening": WideningConfig(kind="importance", alpha=10.0),
        "merge": MergeConfig(kind="edit", distance=20, retries=5),
        "max_depth": 10,
        "rollouts": 4,
        "rollout_weight": 1 / 3,  # the rollouts' share of the sum with all weights b equal
        "answer": "best",
    },
    "rest_mcts": {"selection": "uct", "leaf_value": "quality", "answer": "best"},
}
"""What differs from the defaults of `mcts`."""

NEEDING_A_CRITIC = ("alphazero", "alphallm", "rest_mcts")


def _preset(name: str) -> type[MCTSConfig]:
    """A configuration class with the preset's defaults."""
    hints = get_type_hints(MCTSConfig, include_extras=True)
    fields = [(key, hints[key], field(default=value)) for key, value in OVERRIDES[name].items()]
    namespace: dict[str, Any] = {"__doc__": f"mcts with the settings of {name}.", "__module__": __name__}
    namespace |= {"section": name, "needs_critic": name in NEEDING_A_CRITIC}
    return make_dataclass(f"{name}_config", fields, bases=(MCTSConfig,), namespace=namespace, frozen=True)


PRESETS: dict[str, type[MCTSConfig]] = {name: _preset(name) for name in OVERRIDES}
"""name -> configuration of that `mcts`"""
