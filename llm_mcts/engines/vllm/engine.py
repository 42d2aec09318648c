"""vLLM in this process: continuous batching, prefix caching, several GPUs, and new weights between rounds.

Prompts are token ids, tokenised segment by segment, so that whole blocks of a state are found again in vLLM's prefix
cache. Each continuation is a sequence of its own with a seed of its own. Stop strings are looked for here and not by
vLLM, which would also stop at one in front of the first visible character; either way a stop costs the tokens that are
sampled until vLLM is notified, which no usage counts. A script that builds this engine needs `if __name__ == "__main__":`,
because vLLM starts processes of its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.engines.vllm.backend import VLLMBackend
from llm_mcts.errors import ModelError
from llm_mcts.models import Checkpoint, check_rank, check_same_shape, end_tokens, load_tokenizer, read_checkpoint
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.seeding import derive_seed
from llm_mcts.types import Usage, meter


class VLLMEngine:
    """One model in vLLM. Any event loop may await it, one after another or several at once."""

    def __init__(self, config: EngineConfig, backend: VLLMBackend | None = None) -> None:
        """Start vLLM with `config.model`, or take a `backend` that runs it already.

        Raises:
            ConfigError: vLLM is not installed, or does not run with these settings.
            ModelError: vLLM cannot use the model.
        """
        self.config = config
        self._checkpoint = read_checkpoint(config.model)
        check_rank(self._checkpoint, config.vllm.max_lora_rank)
        self._use_tokenizer(self._checkpoint)
        self._backend: VLLMBackend = backend or VLLMBackend(config, self._checkpoint)
        self.endings.context = self._backend.context  # known once vLLM runs
        self._unusable: str | None = None

    def _use_tokenizer(self, checkpoint: Checkpoint, context: int = 0) -> None:
        self.tokenizer = load_tokenizer(checkpoint.name)
        self._encode = Encoder(self.tokenizer)
        remedy = "use fewer shots, or give vLLM more memory for keys and values"
        self.endings = Endings(self.tokenizer, end_tokens(checkpoint.base, self.tokenizer), context, remedy)

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages with the tokenizer's template up to the assistant's turn."""
        return chat_template_of(self.tokenizer)

    async def generate(self, request: Request) -> list[Completion]:
        """Continue the prompt `request.n` times.

        Raises:
            QuestionError: the prompt is empty or leaves no room in the model's context. A continuation that reaches the
                context's end before `max_tokens` finishes with reason "length".
            ConfigError: vLLM refuses the sampling settings, such as a temperature above 2.
            ModelError: vLLM failed.
        """
        prompt, usage = self._tokens(request.prompt), meter()
        usage.lm_calls += 1
        spent = Usage()  # vLLM's thread counts here, the caller's usage is added to in the caller's
        try:
            return await self._backend.run(gather_all([self._continue(request, prompt, i, spent) for i in range(request.n)]))
        finally:
            usage += spent

    async def _continue(self, request: Request, prompt: tuple[int, ...], i: int, spent: Usage) -> Completion:
        """Take tokens until one ends the text; leaving the stream tells vLLM to end the sequence."""
        row = Continuation(request, i, prompt, self.endings, spent, asyncio.get_running_loop().create_future())
        counted = False
        async with aclosing(self._backend.stream(list(prompt), sampling(request, i, sorted(self.endings.eos)))) as chunks:
            async for chunk in chunks:
                if not counted:
                    row.count(len(prompt) - chunk.cached, chunk.cached)
                    counted = True
                for token, logprob in zip(chunk.tokens, chunk.logprobs, strict=True):
                    if row.append(token, logprob):
                        return row.done.result()
        return Completion(self.endings.decode(row.generated), row.logprob, len(row.generated), "length")

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probabilities of each continuation's tokens.

        A continuation of one token finds its prompt in the prefix cache; a longer one is computed from its first prompt
        token on, and in an engine for LoRA adapters token by token (see `VLLMBackend.score`).

        Raises:
            QuestionError: the prompt is empty, or a continuation leaves no room for one token more in the context.
            ModelError: vLLM failed.
        """
        start, usage = len(self._tokens(prompt)), meter()
        texts = [self._tokens([*prompt, *continuation]) for continuation in continuations]
        usage.lm_calls += 1
        scores = await self._backend.run(gather_all([self._backend.score(list(text), start) for text in texts]))
        for text, score in zip(texts, scores, strict=True):
            usage.count_prompt(len(text) - score.cached, score.cached)
        return [score.logprobs for score in scores]

    def _tokens(self, segments: Sequence[str]) -> tuple[int, ...]:
        if self._unusable:
            raise ModelError(self._unusable)
        return self.endings.checked(self._encode(segments))

    async def swap(self, model: str) -> None:
        """Take over another checkpoint: a LoRA adapter, or whole weights of the same architecture and shape.

        What is under way is finished with the former weights; what comes meanwhile waits for the new ones. The former
        adapter is removed and the prefix cache cleared. A checkpoint that is refused leaves everything as it was.

        Raises:
            ModelError: the checkpoint does not fit (the message says why), or vLLM failed to read it. If it failed while
                whole weights were being read, the engine is no longer usable.
        """
        new = read_checkpoint(model)
        check_rank(new, self.config.vllm.max_lora_rank)
        await self._backend.run_alone(self._swap(new))

    async def _swap(self, new: Checkpoint) -> None:
        # Whole weights are read even from the folder that runs: training may have written others there since.
        reload = new.base != self._checkpoint.base or new.adapter is None
        if reload:
            check_same_shape(self._checkpoint.base, new.base)
            self._unusable = f"the engine's weights are incomplete since a swap to {new.name} failed; start a new engine"
            await self._backend.reload(new.base)
        await self._backend.use_adapter(new)
        await self._backend.clear_cache()
        self._use_tokenizer(new, self._backend.context)
        self._checkpoint, self._unusable = new, None

    async def aclose(self) -> None:
        """End vLLM's processes and give back their memory."""
        await asyncio.get_running_loop().run_in_executor(None, self._backend.close)


def sampling(request: Request, i: int, eos: list[int]) -> dict[str, Any]:
    """vLLM's sampling parameters of a request's continuation i."""
    return {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "min_p": request.min_p,
        "seed": derive_seed(request.seed, i),
        "stop_token_ids": eos,
    }
