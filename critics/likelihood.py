"""The policy's own opinion: how likely it finds the solution, a token on average.

A trained outcome model of a small backbone learns what good solutions look like, and can overlook a slip in the arithmetic
that the policy itself finds improbable: sampled at temperature 1, it wrote it nevertheless. The two make different mistakes, so
their combination (`critics.combine.LogisticCritic`) ranks better than either.
"""

from collections.abc import Sequence
from math import exp

import torch

from llm_mcts.engines.kv_cache import pad_right
from llm_mcts.engines.transformers import load_causal_lm, load_tokenizer, resolve_device
from llm_mcts.errors import QuestionError
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat, chat_template_of
from llm_mcts.types import State, meter


class LikelihoodCritic:
    """Scores a state by exp(mean log-probability of its steps' tokens) under a language model, at temperature 1, in (0, 1]."""

    def __init__(self, model: str, prompt: PromptConfig | None = None, max_batch: int = 64) -> None:
        """`model`: `embedded`, a folder or a hub id, as a rule the policy; `max_batch`: states in one forward."""
        self._device = resolve_device("auto")
        self._model = load_causal_lm(model, torch.float32, self._device).eval()
        tokenizer = load_tokenizer(model)
        self._format = PromptFormat(prompt or PromptConfig(), chat_template_of(tokenizer))
        self._encode = Encoder(tokenizer)
        self._context = self._model.config.get_text_config().max_position_embeddings
        self._max_batch = max_batch
        self._known: dict[tuple[str, ...], float] = {}

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score a state; 1 for a bare question, of which the policy wrote nothing.

        Raises:
            QuestionError: a state is longer than the model's context.
        """
        meter().critic_calls += len(states)
        keys = [self._format.segments(state) for state in states]
        new = list(dict.fromkeys(key for key in keys if key not in self._known))
        for i in range(0, len(new), self._max_batch):
            self._compute(new[i : i + self._max_batch])
        return [self._known[key] for key in keys]

    def _compute(self, keys: list[tuple[str, ...]]) -> None:
        rows = [self._encode(key) for key in keys]
        starts = [self._encode.ends(key)[0] + 1 for key in keys]
        if (longest := max(map(len, rows))) > self._context:
            raise QuestionError(f"a solution of {longest} tokens; expected at most the model's context of {self._context}")
        meter().critic_tokens += sum(map(len, rows))
        ids = pad_right(rows, longest, self._device)
        lengths = torch.tensor([len(row) for row in rows], device=self._device)
        mask = torch.arange(longest, device=self._device) < lengths[:, None]
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits[:, :-1].float()
            logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1).tolist()
        for key, row, start, found in zip(keys, rows, starts, logprobs, strict=True):
            own = found[start - 1 : len(row) - 1]  # entry t - 1 is token t given those before it
            self._known[key] = exp(sum(own) / len(own)) if own else 1.0
