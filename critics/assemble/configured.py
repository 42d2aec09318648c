"""The critics that a configuration names, as one critic for a search."""

from typing import TYPE_CHECKING, Any

from critics.assemble.loading import load_critic, weights_folder
from critics.published.prm import PublicPRM
from critics.scoring.calibration import calibrated, load_calibrations
from critics.scoring.combine import Combination, CriticWeights, LogisticCritic, RankAverageCritic, WeightedCritic
from critics.scoring.likelihood import LikelihoodCritic
from critics.scoring.rollout import RolloutCritic
from llm_mcts.policy import LMPolicy
from llm_mcts.settings import RANK_AVERAGE, CriticsConfig
from llm_mcts.types import Critic

if TYPE_CHECKING:
    from llm_mcts.engines.transformers.adapters import SharedBackbone

ASKED_AS: dict[str, tuple[str, ...]] = {"value": ("value",), "prm": ("prm",), "orm": ("orm", "genrm")}
"""Setting -> the kinds of critic it takes."""


def configured_critic(
    config: CriticsConfig, policy: LMPolicy, shared: "SharedBackbone | None" = None, seed: int = 0
) -> Critic | None:
    """The configured critics as one, or None where none is configured.

    Args:
        config: which critics.
        policy: writes rollouts; its engine gives a learned sum the policy's likelihood.
        shared: the base model that all critics are adapters on, if it is to be shared.
        seed: of the rollout critic.
    """
    places = {"value": config.value, "prm": config.prm, "orm": config.orm}
    plain: dict[str, Critic] = {
        kind: load_critic(place, ASKED_AS[kind], config.prm_aggregate, shared, policy.engine)
        for kind, place in places.items()
        if place
    }
    if not (plain or config.finished or config.rollouts):
        return None
    critics = dict(plain)
    if config.calibration:
        fitted = load_calibrations(config.calibration)
        for kind, critic in plain.items():
            place: Any = places[kind]
            folder, file = weights_folder(place), config.calibration
            critics[kind] = calibrated(critic, kind, folder, file, fitted, config.prm_aggregate)  # type: ignore[arg-type]
    judge = _finished(config, plain, policy, shared) if config.finished else critics.get("orm")
    if config.rollouts:
        critics["value"] = RolloutCritic(policy, judge, num_rollouts=config.rollouts, seed=seed)
    weights = CriticWeights(config.value_weight, config.prm_weight)
    return WeightedCritic(critics.get("value"), critics.get("prm"), judge, weights)


def _finished(config: CriticsConfig, plain: dict[str, Critic], policy: LMPolicy, shared: "SharedBackbone | None") -> Critic:
    """What judges finished solutions in the ORM's place, from critics as they are, not calibrated."""
    parts = {**plain, "likelihood": LikelihoodCritic(policy.engine, policy.prompt)}
    if config.finished == RANK_AVERAGE:
        return RankAverageCritic(list(parts.values()))
    learned = Combination.load(str(config.finished))
    if "prm" in learned.weights and config.prm and learned.prm_aggregate != config.prm_aggregate:
        prm = plain["prm"]
        # large: a published model is not loaded twice for another aggregate
        parts["prm"] = (
            prm.aggregated(learned.prm_aggregate)
            if isinstance(prm, PublicPRM)
            else load_critic(config.prm, ASKED_AS["prm"], learned.prm_aggregate, shared, policy.engine)
        )
    return LogisticCritic(parts, learned)
