"""The default engine: any causal language model of transformers, on a CPU or one GPU, batched continuously.

Tokens in, tokens out is `batching`; here are text, and where a text ends. Each continuation draws one uniform number a token
from a random stream of its own, so no result depends on its neighbours.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.endings import Endings, Row
from llm_mcts.engines.transformers.batching import BatchedModel, Continuation, Count
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import QuestionError
from llm_mcts.models import load_causal_lm, load_tokenizer, resolve_device, resolve_dtype
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.types import Usage, meter


class TransformersEngine:
    """One model, batched continuously. Create it and await it within one event loop at a time."""

    def __init__(self, config: EngineConfig | None = None, model: Any = None, tokenizer: Any = None) -> None:
        """Load `config.model`, or take a loaded `model` and `tokenizer` as they are."""
        self.config = config = config or EngineConfig()
        device = resolve_device(config.device)
        self.tokenizer = tokenizer or load_tokenizer(config.model)
        if model is None:
            model = pack_linears(load_causal_lm(config.model, resolve_dtype(config.dtype, device), device))
        self.model = model
        self.batch = BatchedModel(model, config.max_batch, config.cache_mb)
        self._encode = Encoder(self.tokenizer)
        self.endings = Endings(self.tokenizer, self._eos_ids(), self.batch.context)
        """What ends a text; a benchmark of a set length may empty its `eos`."""

    def _eos_ids(self) -> set[int]:
        ids = getattr(self.model.generation_config, "eos_token_id", None)
        ids = ids if isinstance(ids, list) else [ids]
        return {i for i in [*ids, self.tokenizer.eos_token_id] if i is not None}

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages with the tokenizer's template up to the assistant's turn."""
        return chat_template_of(self.tokenizer)

    async def generate(self, request: Request) -> list[Completion]:
        """Continue the prompt `request.n` times.

        Raises:
            QuestionError: the prompt is empty or leaves no room in the model's context. A continuation that reaches the
                context's end before `max_tokens` finishes with reason "length".
        """
        prompt = self._encode(request.prompt)
        self._check_length(prompt, room=1)
        usage, loop = meter(), asyncio.get_running_loop()
        usage.lm_calls += 1
        rows = [Row(request, i, tuple(prompt), usage, loop.create_future()) for i in range(request.n)]
        count = _prefill_meter(usage)
        work = [
            Continuation(prompt, request, random.Random(f"{request.seed}/{row.index}"), count, self._accept(row), row.done)
            for row in rows
        ]
        return await self.batch.continue_all(work)

    def _accept(self, row: Row) -> Callable[[int, float], bool]:
        """Adds a token to the row, and gives its caller the completion when that ends it."""

        def accept(token: int, logprob: float) -> bool:
            completion = self.endings.append(row, token, logprob)
            if completion is not None and not row.done.done():
                row.done.set_result(completion)
            return completion is not None

        return accept

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each continuation the log-probability of each of its tokens behind the prompt.

        Raises:
            QuestionError: prompt or a continuation is empty, or both are longer than the model's context.
        """
        start, usage = len(self._encode(prompt)), meter()
        usage.lm_calls += 1
        wholes = [self._encode([*prompt, *continuation]) for continuation in continuations]
        for whole in wholes:
            self._check_length(whole)
            if not 0 < start < len(whole):
                raise QuestionError("prompt or continuation is empty; expected at least one token in each")
        return await gather_all([self.batch.logprobs(whole, start, _prefill_meter(usage)) for whole in wholes])

    async def aclose(self) -> None:
        """Nothing but memory is held."""

    def _check_length(self, tokens: Sequence[int], room: int = 0) -> None:
        if not tokens:
            raise QuestionError("the prompt is empty; expected at least one token")
        if len(tokens) + room > self.batch.context:
            raise QuestionError(
                f"prompt of {len(tokens)} tokens; expected fewer than the model's context of {self.batch.context}: "
                "shorten the question or use fewer shots"
            )


def _prefill_meter(usage: Usage) -> Count:
    def count(computed: int, reused: int) -> None:
        usage.prefilled_tokens += computed
        usage.reused_tokens += reused

    return count
