"""vLLM in this process: continuous batching, prefix caching, several GPUs, and new weights between rounds.

Prompts are token ids, tokenised segment by segment, so that whole blocks of a state are found again in vLLM's prefix
cache. Each continuation is a sequence of its own with a seed of its own. Stop strings are looked for here and not by
vLLM, which would also stop at one in front of the first visible character; either way a stop costs the tokens that are
sampled until vLLM hears of it, which no usage counts. A script that builds this engine needs `if __name__ == "__main__":`,
because vLLM starts processes of its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.vllm.backend import VLLMBackend
from llm_mcts.errors import ModelError, QuestionError
from llm_mcts.models import Checkpoint, check_rank, check_same_shape, end_tokens, load_tokenizer, read_checkpoint
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.seeding import derive_seed
from llm_mcts.types import Usage, meter


@dataclass(eq=False)
class _Sequence:
    """One continuation under way; written on vLLM's loop, counted by the caller once it has ended or was cancelled."""

    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    cached: int | None = None
    """Prompt tokens found in the prefix cache; None before the prompt is computed."""


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
        self._unusable: str | None = None

    def _use_tokenizer(self, checkpoint: Checkpoint) -> None:
        self.tokenizer = load_tokenizer(checkpoint.name)
        self._encode = Encoder(self.tokenizer)
        self._eos = end_tokens(checkpoint.base, self.tokenizer)

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
        prompt, usage = self._checked(self._encode(request.prompt)), meter()
        usage.lm_calls += 1
        sequences = [_Sequence() for _ in range(request.n)]
        try:
            return await self._backend.run(gather_all([self._continue(request, prompt, i, s) for i, s in enumerate(sequences)]))
        finally:
            for sequence in sequences:
                _count(usage, sequence.cached, len(prompt), len(sequence.tokens))

    async def _continue(self, request: Request, prompt: list[int], i: int, sequence: _Sequence) -> Completion:
        """Take tokens until one ends the text; leaving the stream tells vLLM to end the sequence."""
        async with aclosing(self._backend.stream(prompt, sampling(request, i, self._eos))) as chunks:
            async for chunk in chunks:
                sequence.cached = chunk.cached if sequence.cached is None else sequence.cached
                for token, logprob in zip(chunk.tokens, chunk.logprobs, strict=True):
                    sequence.tokens.append(token)
                    sequence.logprob += logprob
                    if token in self._eos:
                        return Completion(self._text(sequence.tokens[:-1]), sequence.logprob, len(sequence.tokens), "eos")
                    text = self._stopped(sequence.tokens, request.stop)
                    if text is not None:
                        return Completion(text, sequence.logprob, len(sequence.tokens), "stop")
        return Completion(self._text(sequence.tokens), sequence.logprob, len(sequence.tokens), "length")

    def _stopped(self, tokens: list[int], stops: tuple[str, ...]) -> str | None:
        """The text up to the first stop string behind the first visible character; None where there is none.

        The last tokens are looked through first: a character takes at most four of them, and one more keeps the decoder
        from taking the first one's space away.
        """
        if not stops:
            return None
        tail = str(self.tokenizer.decode(tokens[-(4 * max(map(len, stops)) + 1) :]))
        if not any(stop in tail for stop in stops):
            return None
        whole = str(self.tokenizer.decode(tokens)).lstrip()
        cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
        return whole[: min(cuts)] if cuts else None

    def _text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """The log-probabilities of each continuation's tokens.

        A continuation of one token finds its prompt in the prefix cache; a longer one is computed from its first prompt
        token on, and in an engine for LoRA adapters token by token (see `VLLMBackend.score`).

        Raises:
            QuestionError: the prompt is empty, or a continuation leaves no room for one token more in the context.
            ModelError: vLLM failed.
        """
        start, usage = len(self._checked(self._encode(prompt))), meter()
        texts = [self._checked(self._encode([*prompt, *continuation])) for continuation in continuations]
        usage.lm_calls += 1

        scores = await self._backend.run(gather_all([self._backend.score(text, start) for text in texts]))
        for text, score in zip(texts, scores, strict=True):
            _count(usage, score.cached, len(text), 0)
        return [score.logprobs for score in scores]

    def _checked(self, tokens: list[int]) -> list[int]:
        if self._unusable:
            raise ModelError(self._unusable)
        if not tokens:
            raise QuestionError("the prompt is empty; expected at least one token")
        if len(tokens) + 1 > self._backend.context:
            raise QuestionError(
                f"prompt of {len(tokens)} tokens; expected fewer than the context of {self._backend.context}: "
                "shorten the question, use fewer shots, or give vLLM more memory for keys and values"
            )
        return tokens

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
        self._use_tokenizer(new)
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


def _count(usage: Usage, cached: int | None, prompt: int, generated: int) -> None:
    if cached is not None:
        usage.reused_tokens += cached
        usage.prefilled_tokens += prompt - cached
    usage.generated_tokens += generated
