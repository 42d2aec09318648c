"""Outcome reward models published as sequence classifiers (AutoModelForSequenceClassification) as critics.

    one label     sigmoid(logit)
    two labels    sigmoid(logit 1 - logit 0), which is softmax(logits)[1]

Many one-label models are trained on preferences alone (Bradley and Terry): their logits order solutions, but sigmoid(logit) is
no probability until it is calibrated (`diagnose --calibrate`). The text is the tokenizer's chat template with the question as
the user's turn and the solution as the assistant's, else the plain prompt. Decoders are read through a `BatchedModel`, other
models by plain forwards.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from critics.kinds import Kind
from critics.published.formats import NEUTRAL, check_plain, reserved_tokens
from critics.published.loading import keep_within_window
from critics.scoring.memo import Memo
from critics.scoring.trained import AGGREGATES
from llm_mcts.concurrency import gather_all
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.errors import ModelError, QuestionError
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State, Usage, meter

Key = tuple[str, ...]


class ClassifierCritic:
    """A sequence classifier as ORM. Await it within one event loop at a time."""

    kind: Kind = "orm"

    def __init__(self, model: Any, tokenizer: Any, max_batch: int = 16, cache_mb: int = 512) -> None:
        if model.config.num_labels not in (1, 2):
            raise ModelError(f"the classifier has {model.config.num_labels} labels; expected 1 (a reward) or 2 (wrong, right)")
        self.aggregate: Callable[[Sequence[float]], float] = AGGREGATES["last"]
        self.model, self.tokenizer, self.max_batch = model.eval(), tokenizer, max_batch
        keep_within_window(model.config)
        self.batch = BatchedModel(model, max_batch, cache_mb) if is_decoder(model) else None
        self._reserved = reserved_tokens(tokenizer)
        self._plain = PromptFormat(PromptConfig())
        self._memo: Memo[Key, float] = Memo()

    @property
    def context(self) -> int:
        """Longest text, in tokens."""
        own = self.batch.context if self.batch else getattr(self.model.config, "max_position_embeddings", inf)
        return int(min(own, self.tokenizer.model_max_length))

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] per state, finished or not; 0.5 for a bare question, for which the model is not asked.

        Raises:
            QuestionError: a state is longer than the model's context, or its text holds a special token.
        """
        keys = [(state.question, *(step.text for step in state.steps)) for state in states]
        usage = meter()
        usage.critic_calls += len(keys)
        return await self._memo.fetch(keys, partial(self._judge, usage))

    async def _judge(self, usage: Usage, keys: list[Key]) -> list[float]:
        asked = [key for key in keys if len(key) > 1]
        logits = await self._logits([self._ids(key) for key in asked], usage)
        scores = dict(zip(asked, torch.sigmoid(logits).tolist(), strict=True))
        return [scores.get(key, NEUTRAL) for key in keys]

    async def step_scores(self, states: Sequence[State]) -> list[list[float]]:
        """For each state the scores of its question alone and of every prefix of its steps, each read as a solution."""
        prefixes = [[State(state.question, state.steps[:k]) for k in range(len(state.steps) + 1)] for state in states]
        scores = iter(await self.score([prefix for group in prefixes for prefix in group]))
        return [[next(scores) for _ in group] for group in prefixes]

    def _ids(self, key: Key) -> list[int]:
        """The tokens of a question and its steps, as the model was trained on."""
        question, *steps = key
        check_plain(self._reserved, question, steps)
        if getattr(self.tokenizer, "chat_template", None):
            solution = "\n".join(steps)
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False)
            ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = self.tokenizer(self._plain.question(question) + "".join(map(self._plain.step, steps))).input_ids
        if len(ids) > self.context:
            raise QuestionError(f"a solution of {len(ids)} tokens; expected at most the critic's context of {self.context}")
        return ids

    async def _logits(self, rows: list[list[int]], usage: Usage) -> Tensor:
        """One logit a row [n], in float32."""
        if not rows:
            return torch.empty(0)
        if self.batch:
            logits = torch.stack(await gather_all([self._read(self.batch, row, usage) for row in rows]))
        else:
            logits = self._read_whole(rows, usage)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]

    async def _read(self, batch: BatchedModel, row: list[int], usage: Usage) -> Tensor:
        """A decoder's logits [labels], at the last token that is no padding: as transformers pools."""
        pad = self.model.config.get_text_config().pad_token_id
        last = max((i for i, token in enumerate(row) if token != pad), default=0)

        def count(computed: int, _: int) -> None:
            usage.critic_tokens += computed

        hidden = await batch.hidden(row, [last], count)
        with torch.inference_mode():
            logits: Tensor = self.model.score(hidden)
        return logits[0].float().cpu()

    @torch.inference_mode()
    def _read_whole(self, rows: list[list[int]], usage: Usage) -> Tensor:
        """Logits [n, labels] by plain forwards over rows of similar length."""
        size = 1 if self.tokenizer.pad_token_id is None else self.max_batch
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            inputs = self.tokenizer.pad({"input_ids": [rows[i] for i in chosen]}, return_tensors="pt").to(self.model.device)
            logits = self.model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
            found.update(zip(chosen, logits.float().cpu(), strict=True))
            usage.critic_tokens += sum(len(rows[i]) for i in chosen)
        return torch.stack([found[i] for i in range(len(rows))])


def is_decoder(model: Any) -> bool:
    """Whether a classifier is a causal language model's backbone with a linear `score` head at the last token."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return isinstance(getattr(model, "score", None), nn.Linear) and model.config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
