"""Any critic checkpoint as a critic: a backbone with a head, or a language model that judges in words."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError

from critics.kinds import Kind
from critics.model.model import FORMAT_VERSION, CriticModel
from critics.published.loading import checkpoint_folder
from critics.published.prm import PUBLIC_FORMATS, load_public
from critics.scoring.generative import VERDICTS, GenerativeVerifier, VerdictKind, VerifierConfig
from critics.scoring.trained import ModelCritic
from llm_mcts.engines.base import Engine, EngineConfig
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import ModelError, first_line
from llm_mcts.models import load_tokenizer, resolve_device, same_model
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State

if TYPE_CHECKING:
    from llm_mcts.engines.transformers.adapters import SharedBackbone

VERIFIER_FILE = "verifier.json"
"""What makes a language model's folder a verifier's."""


@dataclass(frozen=True)
class VerifierFile:
    """What a verifier's checkpoint says of itself."""

    kind: VerdictKind
    base: str
    prompt: dict[str, Any]
    verifier: dict[str, Any]
    version: int | None


ROLES: dict[str, Kind] = {"value": "value", "prm": "prm", "orm": "orm", "genrm": "orm"}
"""Kind of a critic -> what it is asked about; a verifier, as an ORM, about whole solutions."""


class StepCritic(Protocol):
    """A critic that also tells what it thinks of every prefix."""

    @property
    def kind(self) -> str:
        """A key of ROLES."""
        ...

    @property
    def aggregate(self) -> Callable[[Sequence[float]], float]:
        """Makes one score of the steps'."""
        ...

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] a state."""
        ...

    async def step_scores(self, states: Sequence[State]) -> list[list[float]]:
        """The scores of prefixes, the whole state's last."""
        ...


def load_critic(
    place: str | Path,
    kinds: Sequence[str] = (),
    aggregate: str = "last",
    shared: "SharedBackbone | None" = None,
    policy: Engine | None = None,
) -> StepCritic:
    """Load a critic for scoring.

    Args:
        place: a critic's checkpoint folder, or FORMAT:PLACE for a published model (see `critics.published.prm`).
        kinds: what it may be; empty: anything.
        aggregate: how a PRM's steps become one score.
        shared: the base model to load its adapter onto.
        policy: the policy's engine, whose hidden states a head trained on that model reads.

    Raises:
        ModelError: the folder is not a critic checkpoint, or one of another kind.
    """
    format, public = published(place)
    if format:
        critic = load_public(public, format, aggregate)
        _check_kind(place, critic.kind, kinds)
        return critic
    folder = Path(place)
    if (folder / VERIFIER_FILE).exists():
        return _load_verifier(folder, kinds, aggregate, shared)
    if (trunk := _trunk(folder, policy)) is not None:
        model = CriticModel.from_pretrained(folder, trunk=trunk)
        model.head.to(trunk.device)
        _check_kind(folder, model.kind, kinds)
        return ModelCritic(model, aggregate, batch=trunk)
    model = CriticModel.from_pretrained(folder, shared=shared).to(resolve_device("auto"))
    _check_kind(folder, model.kind, kinds)
    if shared is None:
        pack_linears(model.backbone)
    return ModelCritic(model, aggregate)


def published(place: str | Path) -> tuple[str, str]:
    """(format, folder or hub id) of a published model that is named as FORMAT:PLACE; else ("", place)."""
    format, colon, public = str(place).partition(":")
    return (format, public) if colon and format in PUBLIC_FORMATS else ("", str(place))


def weights_folder(place: str | Path) -> Path:
    """Where a critic's weights are."""
    format, public = published(place)
    return checkpoint_folder(public) if format else Path(place)


def _trunk(folder: Path, policy: Engine | None) -> BatchedModel | None:
    """The policy's batch, where the checkpoint is a head trained on that very model."""
    try:
        about = json.loads((folder / "critic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # CriticModel says what is wrong
    if not (isinstance(about, dict) and about.get("trunk")) or not isinstance(policy, TransformersEngine):
        return None
    return policy.batch if same_model(policy.config.model, str(about.get("base"))) else None


def _load_verifier(folder: Path, kinds: Sequence[str], aggregate: str, shared: "SharedBackbone | None") -> GenerativeVerifier:
    try:
        about = VerifierFile(**{"version": None, **json.loads((folder / VERIFIER_FILE).read_text(encoding="utf-8"))})
        prompt = PromptConfig(**{**about.prompt, "answer_markers": tuple(about.prompt["answer_markers"])})
        config = VerifierConfig(**about.verifier)
        known = about.kind in VERDICTS
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"{folder / VERIFIER_FILE} is damaged ({first_line(error)}); train the verifier again") from error
    if about.version != FORMAT_VERSION:
        raise ModelError(f"{folder} has format version {about.version}; expected {FORMAT_VERSION}: train the verifier again")
    if not known:
        raise ModelError(f"{folder} is a verifier of kind '{about.kind}'; expected one of {', '.join(VERDICTS)}")
    _check_kind(folder, about.kind, kinds)
    config_of_engine = EngineConfig(str(folder))
    if shared:
        view = shared.as_lm(shared.add(folder))
        engine = TransformersEngine(config_of_engine, model=view, tokenizer=load_tokenizer(str(folder)))
    else:
        engine = TransformersEngine(config_of_engine)
    return GenerativeVerifier(engine, PromptFormat(prompt, engine.chat_template), about.kind, config, aggregate)


def _check_kind(folder: str | Path, kind: str, kinds: Sequence[str]) -> None:
    if kinds and kind not in kinds:
        raise ModelError(f"{folder} is a critic of kind '{kind}'; expected '{' or '.join(kinds)}'")
