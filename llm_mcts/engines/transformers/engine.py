"""The default engine: any causal language model of transformers, on a CPU or one GPU, batched continuously.

Tokens in, tokens out is `batching`; here are text, and where a text ends. Each continuation draws one uniform number a token
from a random stream of its own, so no result depends on its neighbours.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import QuestionError
from llm_mcts.models import end_tokens, load_causal_lm, load_tokenizer, resolve_device, resolve_dtype
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.types import meter


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
        self.endings = Endings(self.tokenizer, end_tokens(model, self.tokenizer), self.batch.context)
        """What ends a text; a benchmark of a set length may empty its `eos`."""

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
        prompt = self.endings.checked(self._encode(request.prompt))
        usage, loop = meter(), asyncio.get_running_loop()
        usage.lm_calls += 1
        return await self.batch.continue_all(
            [Continuation(request, i, prompt, self.endings, usage, loop.create_future()) for i in range(request.n)]
        )

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each continuation the log-probability of each of its tokens behind the prompt.

        Raises:
            QuestionError: prompt or a continuation is empty, or both are longer than the model's context.
        """
        start, usage = len(self._encode(prompt)), meter()
        usage.lm_calls += 1
        wholes = [self._encode([*prompt, *continuation]) for continuation in continuations]
        for whole in wholes:
            if not 0 < start < len(self.endings.checked(whole, room=0)):
                raise QuestionError("prompt or continuation is empty; expected at least one token in each")
        return await gather_all([self.batch.logprobs(whole, start, usage.count_prompt) for whole in wholes])

    async def aclose(self) -> None:
        """Nothing but memory is held."""
