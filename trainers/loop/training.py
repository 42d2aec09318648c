"""The stages that train: each critic, then the policy, on this round's rows and replayed ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from critics.kinds import KINDS, Kind
from llm_mcts.errors import DataError
from llm_mcts.runs.directory import RoundDirectory, RunDirectory
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import SolverConfig
from llm_mcts.tasks.base import Task
from trainers.critic.registry import CRITIC_TRAINERS
from trainers.data.rows import Row, row_from_dict
from trainers.fit.fit import TrainCall
from trainers.loop.config import SelfImproveConfig
from trainers.loop.questions import chosen_questions
from trainers.loop.replay import replayed
from trainers.loop.stages import Facts, Round
from trainers.policy.registry import train_policy
from trainers.policy.trainer import PolicyCall


class Training:
    """What a run trains, and the models that come of it."""

    def __init__(self, config: SelfImproveConfig, directory: RunDirectory, task: Task) -> None:
        self.config, self.directory, self.task = config, directory, task
        self.critics: list[Kind] = [kind for kind in KINDS if kind in config.critics]

    def critic(self, kind: Kind, current: Round) -> Facts:
        """A critic, from the current best one or else from the policy; no checkpoint where there is nothing to learn from."""
        rows, facts = self._rows(current, kind)
        if rows:
            start = getattr(current.start.critics, kind) or current.start.engine.model
            call = TrainCall(rows, start, settings=self.config.critic_loss, **self._common(current, kind))
            facts |= CRITIC_TRAINERS[kind].train(call)
        return facts

    def policy(self, current: Round) -> Facts:
        """The policy, and with joint training the value model along."""
        rows, facts = self._rows(current, "policy")
        models, loss = self._with_critics(current), self.config.policy_loss
        engine = (self.config.solver if loss.start == "base" else models).engine
        call = PolicyCall(
            rows,
            engine.model,
            settings=loss.settings,
            problems=[chosen.problem for chosen in chosen_questions(current.files) if chosen.problem.gold is not None],
            task=self.task,
            solver=replace(models, engine=engine),
            value_out=current.files.checkpoint("value"),
            value_start=models.critics.value,
            **self._common(current, "policy"),
        )
        return facts | train_policy(loss.method, call)

    def models(self, current: Round) -> SolverConfig:
        """The models that a round ends with: those it starts from, with all that it has trained."""
        models = self._with_critics(current)
        if (policy := _checkpoint(current.files, "policy", "policy")) is None:
            return models
        if self.config.policy_loss.trainer.trains_value and (value := _checkpoint(current.files, "policy", "value")):
            models = replace(models, critics=replace(models.critics, value=str(value)))
        return replace(models, engine=replace(models.engine, model=str(policy)))

    def _with_critics(self, current: Round) -> SolverConfig:
        trained: dict[str, Any] = {
            kind: str(place) for kind in self.critics if (place := _checkpoint(current.files, kind, kind))
        }
        return replace(current.start, critics=replace(current.start.critics, **trained))

    def _rows(self, current: Round, name: str) -> tuple[list[Row], Facts]:
        """A trainer's rows, this round's and replayed ones; and how many."""
        fresh = current.files.rows(name).whole()
        oldest = max(1, current.number - self.config.replay.rounds)
        earlier = [self.directory.round(i).rows(name).whole() for i in range(current.number - 1, oldest - 1, -1)]
        seed = derive_seed(self.config.seed, "replay", name, current.number)
        old = replayed(fresh, earlier, self.config.replay, seed)
        rows = [row_from_dict(dict(row)) for row in (*fresh, *old)]
        return rows, {"rows": len(rows), "replayed": len(old)}

    def _common(self, current: Round, name: str) -> dict[str, Any]:
        """What every trainer is given."""
        return {
            "out": current.files.checkpoint(name),
            "config": getattr(self.config, name),
            "prompt": current.start.prompt,
            "seed": derive_seed(self.config.seed, name, current.number) % 2**31,
            "logs": current.files.logs(name),
            "head": self.config.head,
        }


def training_message(name: str, facts: Mapping[str, Any]) -> str:
    """What a training came to, in one line."""
    result = f"loss {facts['loss']:.4f}, {facts['seconds']:.0f} s" if "loss" in facts else "nothing to learn from"
    return f"train {name}: {facts['rows']} rows, {result}"


def _checkpoint(files: RoundDirectory, stage: str, name: str) -> Path | None:
    """The checkpoint that a finished stage left; None where it had nothing to learn from.

    Raises:
        DataError: it left one, which is gone.
    """
    folder = files.checkpoint(name)
    if not folder.exists() and "loss" in (files.metric(stage) or {}):
        raise DataError(
            f"{folder} is gone, and stage {stage} trained it; put it back, or delete the stage's line and all after it in "
            f"{files.metrics_file}, and --resume"
        )
    return folder if folder.exists() else None
