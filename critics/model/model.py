"""The model behind every trained critic: a language model's backbone with a head on each token's hidden state.

A checkpoint is one folder: the backbone (whole, or a LoRA adapter on a named base) as Hugging Face writes it, the head
in `head.safetensors` beside it, the tokenizer, and `critic.json`, which says what kind of critic it is and in which
prompt format it was trained, so that it is never asked in another. A critic that learns the language as well, or judges by
surprisal, has a language model's head too (`critics.model.language_head`).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from critics.kinds import KINDS, Kind
from critics.model.heads import HeadConfig
from critics.model.language_head import attach_language_head, save_language_head
from critics.model.lora import LoraSpec
from critics.model.surprisal import solution_features, surprisals
from llm_mcts.errors import ConfigError, ModelError, first_line
from llm_mcts.models import apply_umask, load_tokenizer, model_folder
from llm_mcts.prompts import PromptConfig, PromptFormat, chat_template_of

if TYPE_CHECKING:
    from llm_mcts.engines.transformers.adapters import SharedBackbone
    from llm_mcts.engines.transformers.batching import BatchedModel


FORMAT_VERSION = 1
"""Of a checkpoint's critic.json."""


@dataclass(frozen=True)
class Trunk:
    """A policy that lends a critic its hidden states; a `BatchedModel` is one too."""

    model: Any
    """The causal language model."""
    backbone: Any
    """The same without its language-model head."""


class CriticModel(nn.Module):
    """Backbone and head: token ids to one logit a token; the score is its sigmoid."""

    def __init__(self, kind: Kind, base: str, backbone: Any, tokenizer: Any, head: HeadConfig, prompt: PromptConfig) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"critic kind is '{kind}'; expected one of {', '.join(KINDS)}")
        self.kind: Kind = kind
        self.base, self.backbone, self.tokenizer = base, backbone, tokenizer
        self.head_config, self.prompt_config = head, prompt
        self.head = head.build(backbone.config.get_text_config().hidden_size)
        self.trunk = False
        """Whether the backbone is the policy's, as it is, and the head alone the critic's."""
        self.lm_head: nn.Module | None = None
        """The language model's head: where it is trained along, or the critic's head judges by surprisal."""

    @property
    def offset(self) -> nn.Parameter:
        """What shifts all logits alike. Comparisons say nothing of it: its gradient is rounding, which Adam would enlarge."""
        layer = self.head[0] if self.head_config.kind == "ovm" else self.head[-1]
        bias = layer.bias
        assert isinstance(bias, nn.Parameter)
        return bias

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config

    @property
    def _no_split_modules(self) -> Any:
        """The backbone's layers, which FSDP shards one by one."""
        return self.backbone._no_split_modules

    @property
    def prompt_format(self) -> PromptFormat:
        """The format it was trained in."""
        return PromptFormat(self.prompt_config, chat_template_of(self.tokenizer))

    @property
    def by_surprisal(self) -> bool:
        """Whether its head reads the tokens' log-probabilities, and so the whole solution and not its last token alone."""
        return self.head_config.kind == "surprisal"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        with_language: bool = False,
        segments: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, T] of token ids [B, T]; `with_language` also those of the next tokens [B, T, V], by `lm_head`.

        `segments` [B, T]: each token's step, from 1, and 0 for prompt and padding; needed by a head that judges by surprisal.
        """
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        logits = self.logits(hidden, self._features(hidden, input_ids, segments) if self.by_surprisal else None)
        if not with_language:
            return logits
        assert self.lm_head is not None
        return logits, self.lm_head(hidden)

    def _features(self, hidden: Tensor, ids: Tensor, segments: Tensor | None) -> Tensor:
        assert segments is not None
        return solution_features(surprisals(hidden, ids, segments, self.lm_head), segments)[0]

    def logits(self, hidden: Tensor, features: Tensor | None = None) -> Tensor:
        """Logits [...] of hidden states [..., hidden], and of the surprisal head's features [..., FEATURES]."""
        dtype = next(self.head.parameters()).dtype
        read = hidden.to(dtype) if features is None else torch.cat([hidden.to(dtype), features.to(dtype)], dim=-1)
        logits: Tensor = self.head(read)
        return logits.squeeze(-1)

    @classmethod
    def create(
        cls,
        kind: Kind,
        base: str,
        head: HeadConfig | None = None,
        prompt: PromptConfig | None = None,
        lora: LoraSpec | None = None,
        seed: int = 0,
        trunk: bool = False,
    ) -> "CriticModel":
        """A new critic on the backbone of model `base`, its head random by `seed`; with `lora` the backbone is adapted.

        With `trunk` the backbone stays as it is: the head alone is trained and saved, and a policy with the same weights
        lends it its hidden states (AlphaZero's shared trunk).

        Raises:
            ConfigError: both `lora` and `trunk`.
        """
        if trunk and lora and lora.rank > 0:
            raise ConfigError(f"a critic on the policy's trunk with lora.rank {lora.rank}; expected rank 0, or trunk off")
        tokenizer, backbone = load_tokenizer(base), _load_backbone(base)
        backbone.requires_grad_(not trunk)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if lora and lora.rank > 0:
                backbone = lora.adapt(backbone, "FEATURE_EXTRACTION")
            model = cls(kind, base, backbone, tokenizer, head or HeadConfig(), prompt or PromptConfig())
            model.trunk = trunk
        if model.by_surprisal:
            attach_language_head(model)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the checkpoint folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not self.trunk:
            self.backbone.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        save_file({name: p.contiguous() for name, p in self.head.state_dict().items()}, folder / "head.safetensors")
        if self.lm_head is not None:
            save_language_head(self, folder)
        about = {
            "version": FORMAT_VERSION,
            "kind": self.kind,
            "base": self.base,
            "head": asdict(self.head_config),
            "prompt": asdict(self.prompt_config),
            "trunk": self.trunk,
        }
        (folder / "critic.json").write_text(json.dumps(about, indent=2) + "\n")
        apply_umask(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        kind: Kind | None = None,
        trainable: bool = False,
        shared: "SharedBackbone | None" = None,
        trunk: "Trunk | BatchedModel | None" = None,
    ) -> "CriticModel":
        """Load a checkpoint folder in evaluation mode.

        Args:
            folder: what `save_pretrained` wrote.
            kind: refuse a critic of another kind.
            trainable: leave a LoRA adapter trainable.
            shared: load the adapter onto this backbone, which others use as well; for scoring only.
            trunk: the policy, for a head that was trained on its model; None: its base is loaded.

        Raises:
            ModelError: a file is missing, the kind is another, or head and backbone do not fit.
        """
        folder = Path(folder)
        try:
            about = json.loads((folder / "critic.json").read_text())
            version = about.get("version")
            found, base, head = about["kind"], about["base"], HeadConfig(**about["head"])
            on_trunk = bool(about.get("trunk", False))
            prompt = PromptConfig(**{**about["prompt"], "answer_markers": tuple(about["prompt"]["answer_markers"])})
            weights = load_file(folder / "head.safetensors")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} is not a critic checkpoint ({first_line(error)}); expected critic.json and head.safetensors"
            ) from error
        if version != FORMAT_VERSION:
            raise ModelError(f"{folder} has format version {version}; expected {FORMAT_VERSION}: train the critic again")
        if kind is not None and found != kind:
            raise ModelError(f"{folder} is a critic of kind '{found}'; expected '{kind}'")
        if on_trunk:
            backbone = trunk.backbone if trunk else _load_backbone(base).requires_grad_(False)
        else:
            backbone = shared.as_backbone(shared.add(folder)) if shared else _load_backbone(str(folder), trainable)
        model = cls(found, base, backbone, load_tokenizer(base if on_trunk else str(folder)), head, prompt)
        model.trunk = on_trunk
        try:
            model.head.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(f"the head in {folder} does not fit its backbone: {first_line(error)}") from error
        if model.by_surprisal:
            lender: Any = trunk if on_trunk else shared
            attach_language_head(model, folder, lender.model if lender else None)
        return model.eval()


def _load_backbone(base: str, trainable: bool = False) -> Any:
    """The transformer of a model folder without its language-model head, in float32; with its adapter where it has one."""
    from transformers import AutoModel

    folder = model_folder(base)
    try:
        if (Path(folder) / "adapter_config.json").exists():
            from peft import PeftConfig, PeftModel

            inner = _load_backbone(str(PeftConfig.from_pretrained(folder).base_model_name_or_path))
            return PeftModel.from_pretrained(inner, folder, is_trainable=trainable)
        return AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"cannot load the backbone of '{base}': {first_line(error)}") from error
