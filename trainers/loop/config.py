"""What a self-improvement run is: its questions, its search, what is trained and how, and when a round counts."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from critics.kinds import KINDS, Kind
from critics.model.heads import HeadConfig
from llm_mcts.errors import ConfigError
from llm_mcts.evaluate import check_methods
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.settings import SolverConfig, build_search
from llm_mcts.tasks import TaskConfig
from trainers.data.config import RowsConfig
from trainers.data.objectives import CriticLossConfig
from trainers.data.rows import TargetRow
from trainers.fit.fit import CriticTrainConfig, TrainConfig
from trainers.loop.gate import GateConfig
from trainers.loop.replay import ReplayConfig
from trainers.policy.registry import PolicyLossConfig
from trainers.questions.agreement import AgreementConfig
from trainers.questions.curriculum import CurriculumConfig
from trainers.questions.imagine.imagine import ImagineConfig


@dataclass(frozen=True)
class SelfImproveConfig(Settings):
    """A self-improvement run."""

    task: TaskConfig = field(default_factory=TaskConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    """The policy to start from, and the search that gathers trajectories."""
    num_rounds: Annotated[int, AtLeast(1)] = 2
    """Rounds of search and training."""
    train_questions: Annotated[int, AtLeast(1)] = 200
    """Training questions searched per round, new ones each round while there are any."""
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    """Which of them are questions of earlier rounds."""
    imagined_questions: Annotated[int, AtLeast(0)] = 0
    """Candidates made of this round's training questions; those that are kept are searched with them. 0: none."""
    imagine: ImagineConfig = field(default_factory=ImagineConfig)
    """How they are made."""
    unlabelled: str | None = None
    """A file of your own questions without answers ({"question": …} lines), searched in addition to the others."""
    unlabelled_questions: Annotated[int, AtLeast(1)] = 200
    """How many of them per round, the next ones each round."""
    agreement: AgreementConfig = field(default_factory=AgreementConfig)
    """When vote and critics are trusted with the answer of a question that has none: imagined or unlabelled."""
    eval_questions: Annotated[int, AtLeast(1)] = 200
    """Held-out training questions (split `dev`) that every method answers before and after each round."""
    test_questions: Annotated[int, AtLeast(0)] = 0
    """Test questions that every method answers with every round's models, for the final report alone; 0: none."""
    methods: dict[str, Any] = field(default_factory=lambda: {"greedy": "greedy", "mcts": "mcts"})
    """What is evaluated: a label for each search with its settings."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    """Rows of earlier rounds that policy and critics are trained on again."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The new critics' heads."""
    critic_loss: CriticLossConfig = field(default_factory=CriticLossConfig)
    """What the critics learn, and so which rows are made of the trees."""
    policy_loss: PolicyLossConfig = field(default_factory=PolicyLossConfig)
    """How the policy is trained."""
    value: CriticTrainConfig = field(default_factory=CriticTrainConfig)
    prm: CriticTrainConfig = field(default_factory=CriticTrainConfig)
    orm: CriticTrainConfig = field(default_factory=CriticTrainConfig)
    policy: TrainConfig = field(default_factory=TrainConfig)
    critics: tuple[Kind, ...] = KINDS
    """Which critics are trained: any of value, prm, orm."""
    gate: GateConfig = field(default_factory=GateConfig)
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Questions searched at once."""
    seed: int = 0
    """Of every draw in the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods:
            raise ConfigError("methods is empty; expected a label for each search, such as greedy: greedy")
        check_methods(self.methods)
        if self.solver.engine.name == "openai":
            raise ConfigError(
                "solver.engine.name is 'openai', whose servers do not get the weights that are trained; "
                "expected transformers, vllm or openvino"
            )
        self._check_critics()
        self._check_targets()

    def _check_targets(self) -> None:
        """The policy's targets and rewards against what the run has."""
        trainer, settings = self.policy_loss.trainer, self.policy_loss.settings
        targets, search = self.rows.targets, build_search(self.solver.search)[1]
        noise = getattr(search, "root_noise", 0.0)
        if trainer.row is TargetRow and targets.target != "visits" and noise:
            raise ConfigError(
                f"rows.targets.target is '{targets.target}', which is made from the priors, and solver.search.root_noise "
                f"{noise} puts noise on them that the policy would learn; expected root_noise 0, or target visits"
            )
        by_value = getattr(settings, "baseline", None) == "value"
        if by_value and "value" not in self.critics and not self.solver.critics.value:
            raise ConfigError(
                f"{self.policy_loss.method}.baseline is 'value' and there is no value model; take value into "
                "critics, or name one in solver.critics.value"
            )

    def _check_critics(self) -> None:
        fixed, trains_value = self.solver.critics, self.policy_loss.trainer.trains_value
        if self.critics and fixed.calibration:
            raise ConfigError(
                f"solver.critics.calibration is {fixed.calibration} and the critics ({', '.join(self.critics)}) are "
                "retrained each round; drop it, and calibrate the last round's"
            )
        if ("value" in self.critics or trains_value) and fixed.rollouts:
            raise ConfigError(
                f"solver.critics.rollouts is {fixed.rollouts} and a value model, whose place they take, is trained; drop one"
            )
        if trains_value and "value" in self.critics:
            raise ConfigError(
                f"policy_loss.method is '{self.policy_loss.method}', which trains the value model too, and critics has value; "
                "take it out of critics"
            )
        if "value" in self.critics and self.critic_loss.value.asks_the_model and not fixed.value:
            raise ConfigError(
                "critic_loss.value.estimate is 'model', and the run starts without a value model; name one in "
                "solver.critics.value, or use estimate: tree"
            )
