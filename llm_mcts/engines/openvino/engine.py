"""Fast decoding on a CPU: openvino-genai's continuous batching over a model with int8 weights.

The library decodes, samples and keeps the paged cache; this engine feeds it token ids, one request a continuation, and
reads every token as it comes. Ends (end-of-text tokens, stop strings, the context's end) are decided here, by the same
rules as in the transformers engine, and a text that has ended is taken out before the next step.
"""

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from llm_mcts.engines.base import Completion, EngineConfig, Request
from llm_mcts.engines.endings import Continuation, Endings
from llm_mcts.engines.openvino.export import export_model, require
from llm_mcts.engines.openvino.pool import BLOCK, Pool, precisions
from llm_mcts.errors import ConfigError, ModelError, QuestionError
from llm_mcts.models import load_tokenizer
from llm_mcts.prompts import Encoder, chat_template_of
from llm_mcts.seeding import derive_seed
from llm_mcts.types import meter

# How often the event loop turns before a step, so that searches that just got a reply can send their next request.
_TURNS = 4


class OpenVINOEngine:
    """Any decoder that transformers can export, on a CPU. Create it and await it within one event loop at a time.

    Each continuation is a request of its own with a random generator of its own (a Mersenne twister seeded with the hash
    of the request's seed and the continuation's number), so neighbours do not change what is drawn. They change the
    numbers drawn from in their last bits, as in every batched engine: with weights "float32" by about 1e-6; with int8 and
    int4 the library also rounds activations to 8 bits, token by token. Log-probabilities are those of the exported model.

    `cache_mb` is the memory for the keys and values of all texts, running ones included; a text waits until there is room
    for it at its longest. With 0 the memory grows as needed and nothing is kept. `Usage.reused_tokens` counts the whole
    blocks of 32 tokens that were sent before and that the pool has room for: the library does not report what it reused.

    `logprobs` recomputes each text in a second instance of the model, loaded on first use, since the library
    gives no log-probabilities of tokens it finds in its cache.
    """

    def __init__(self, config: EngineConfig | None = None) -> None:
        """Load the model, exported if it was not before."""
        self.config = config = config or EngineConfig(name="openvino")
        if config.device not in ("auto", "cpu"):
            raise ConfigError(f"engine.device is '{config.device}'; expected auto or cpu for engine 'openvino'")
        self._genai, self._tensor = require("openvino_genai"), require("openvino").Tensor
        self.tokenizer = load_tokenizer(config.model)
        self._export = export_model(config.model, config.openvino)
        self.endings = Endings(self.tokenizer, self._export.eos, self._export.context)
        """What ends a text; a benchmark of a set length may empty its `eos`."""
        self._pool = Pool(config, self._export.cache_values)
        self._pipeline: Any = self._load(self._pool.capacity)
        self._scorer: Any = None
        self._using = threading.Lock()
        self._ids = itertools.count()
        self._encode = Encoder(self.tokenizer)
        self._waiting: deque[Continuation] = deque()
        self._active: list[Continuation] = []
        # Rows that have ended but hold their blocks until the next step is over.
        self._leaving: list[Continuation] = []
        self._unfinished: set[Continuation] = set()
        self._loop: asyncio.Task[None] | None = None

    def _load(self, blocks: int) -> Any:
        """A pipeline that keeps `blocks` blocks of keys and values; with 0 it takes what it needs and keeps nothing."""
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_seqs = self.config.max_batch
        scheduler.dynamic_split_fuse = True
        scheduler.num_kv_blocks = blocks
        scheduler.enable_prefix_caching = blocks > 0
        arithmetic, cache, _ = precisions(self.config)
        properties = {
            "INFERENCE_PRECISION_HINT": arithmetic,
            "KV_CACHE_PRECISION": cache,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            return self._genai.ContinuousBatchingPipeline(str(self._export.folder), scheduler, "CPU", properties)
        except RuntimeError as error:
            raise ModelError(
                f"openvino-genai cannot run model '{self.config.model}' with dtype {self.config.dtype}: "
                f"{' '.join(str(error).split())}"
            ) from error

    @property
    def chat_template(self) -> Callable[[list[dict[str, str]]], str] | None:
        """Renders chat messages with the tokenizer's template up to the assistant's turn."""
        return chat_template_of(self.tokenizer)

    async def generate(self, request: Request) -> list[Completion]:
        """Continue the prompt `request.n` times.

        Raises:
            QuestionError: the prompt is empty, leaves no room in the model's context, or does not fit into the cache. A
                continuation that reaches the context's end before `max_tokens` finishes with reason "length".
        """
        prompt = self.endings.checked(self._encode(request.prompt))
        self._check_room(len(prompt), self._longest(len(prompt), request))
        usage, loop = meter(), asyncio.get_running_loop()
        usage.lm_calls += 1
        rows = [Continuation(request, i, prompt, self.endings, usage, loop.create_future()) for i in range(request.n)]
        self._waiting.extend(rows)
        self._unfinished.update(rows)
        if self._loop is None or self._loop.done():
            self._loop = loop.create_task(self._run())
        return list(await asyncio.gather(*(row.done for row in rows)))

    def _longest(self, prompt: int, request: Request) -> int:
        """How long a text can get, in tokens."""
        return min(prompt + request.max_tokens, self._export.context)

    def _check_room(self, prompt: int, longest: int) -> None:
        room = self._pool.room
        if room is not None and longest > room:
            raise QuestionError(
                f"a prompt of {prompt} tokens that may grow to {longest}; expected at most the {room} that "
                f"engine.cache_mb={self.config.cache_mb} has room for: raise it, or lower max_tokens"
            )

    async def _run(self) -> None:
        """Decode until nothing waits. A failure reaches every caller, never only the log."""
        try:
            while self._waiting or self._active:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                self._drop_cancelled()
                self._admit()
                if self._active or self._leaving:
                    await asyncio.to_thread(self._step)
                    self._leaving = [row for row in self._active if self._advance(row)]
                    self._active = [row for row in self._active if row not in self._leaving]
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError("the engine was stopped")
            self._abandon(failure)
            if failure is not error:
                raise

    def _step(self) -> None:
        with self._using:
            self._pipeline.step()

    def _abandon(self, failure: Exception) -> None:
        for row in self._active:
            row.handle.cancel()
        for row in self._unfinished:
            if not row.done.done():
                row.done.set_exception(failure)
        for work in (self._active, self._waiting, self._unfinished):
            work.clear()

    def _drop_cancelled(self) -> None:
        for row in self._active:
            if row.done.cancelled():
                row.handle.cancel()
                self._leaving.append(row)
        self._unfinished = {row for row in self._unfinished if not row.done.cancelled()}
        self._active = [row for row in self._active if not row.done.cancelled()]
        self._waiting = deque(row for row in self._waiting if not row.done.cancelled())

    def _admit(self) -> None:
        """Let waiting rows join; one whose very prompt is being computed waits for it to be in the cache."""
        computing = {row.prompt for row in self._active if not row.generated}
        taken = sum(map(self._need, (*self._active, *self._leaving)))
        later: list[Continuation] = []
        while self._waiting and len(self._active) < self.config.max_batch:
            row = self._waiting.popleft()
            if self._pool.capacity and taken + self._need(row) > self._pool.capacity:
                later.append(row)
                break
            if self._pool.capacity and row.prompt in computing and len(row.prompt) > BLOCK:
                later.append(row)
                continue
            self._start(row)
            computing.add(row.prompt)
            taken += self._need(row)
        self._waiting.extendleft(reversed(later))

    def _need(self, row: Continuation) -> int:
        """Blocks for a row at its longest. When its cache is full the library evicts texts and draws them differently
        later, so no row joins before there is room for all of it."""
        return -(-self._longest(len(row.prompt), row.request) // BLOCK)

    def _start(self, row: Continuation) -> None:
        ids = self._tensor(np.array([row.prompt], dtype=np.int64))
        row.handle = self._pipeline.add_request(next(self._ids), ids, self._sampling(row))
        self._active.append(row)
        reused = self._pool.take(row.prompt)
        row.count(len(row.prompt) - reused, reused)

    def _settings(self) -> Any:
        settings = self._genai.GenerationConfig()
        settings.logprobs = 1
        settings.ignore_eos = True
        settings.set_eos_token_id(0)  # the library asks for one, also where it is to be ignored
        return settings

    def _sampling(self, row: Continuation) -> Any:
        """The library's settings of one continuation; it stops by length alone, all other ends are decided here."""
        request = row.request
        settings = self._settings()
        settings.max_new_tokens = min(request.max_tokens, self._export.context - len(row.prompt))
        if request.temperature > 0:
            settings.do_sample = True
            settings.temperature = request.temperature
            settings.rng_seed = derive_seed(request.seed, row.index) % 2**32
            if request.top_k:
                settings.top_k = request.top_k
            settings.top_p = request.top_p
            settings.min_p = request.min_p
        return settings

    def _advance(self, row: Continuation) -> bool:
        """Read the tokens that a step made; True when the row has ended."""
        if row.handle.get_status() == self._genai.GenerationStatus.IGNORED:
            raise ModelError(
                "openvino-genai has no room in its cache for a text; expected room for all running ones: raise engine.cache_mb"
            )
        while row.handle.can_read():
            for output in row.handle.read().values():
                for token, logprob in zip(output.generated_ids, output.generated_log_probs, strict=True):
                    if row.append(token, logprob):
                        row.handle.stop()
                        self._pool.keep((*row.prompt, *row.generated[:-1]))
                        self._unfinished.discard(row)
                        return True
        return False

    async def logprobs(self, prompt: Sequence[str], continuations: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each continuation, the log-probability at temperature 1 of each of its tokens; every text is recomputed.

        Raises:
            QuestionError: the prompt is empty, or a text is longer than the model's context.
        """
        start = len(self.endings.checked(self._encode(prompt)))
        texts = [self.endings.checked(self._encode((*prompt, *continuation))) for continuation in continuations]
        usage = meter()
        usage.lm_calls += 1
        usage.prefilled_tokens += sum(map(len, texts))
        scores = await asyncio.to_thread(self._score, texts)
        return [score[start:] for score in scores]

    def _score(self, texts: list[tuple[int, ...]]) -> list[list[float]]:
        """The log-probability of every token of every text; the first one's means nothing."""
        settings = self._settings()
        settings.max_new_tokens, settings.echo = 1, True
        with self._using:
            if self._scorer is None:
                self._scorer = self._load(0)
            handles = [
                self._scorer.add_request(i, self._tensor(np.array([text], np.int64)), settings) for i, text in enumerate(texts)
            ]
            while self._scorer.has_non_finished_requests():
                self._scorer.step()
            outputs = [next(iter(handle.read().values())) for handle in handles]
        for text, output in zip(texts, outputs, strict=True):
            if tuple(output.generated_ids[:-1]) != text or len(output.generated_log_probs) != len(text) + 1:
                raise ModelError(
                    f"openvino-genai gave {len(output.generated_log_probs) - 1} log-probabilities for a text of {len(text)} "
                    "tokens; expected one a token: use the transformers engine for log-probabilities"
                )
        return [list(output.generated_log_probs[:-1]) for output in outputs]

    async def aclose(self) -> None:
        """End what is under way and free both models."""
        if self._loop is not None and not self._loop.done():
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        with self._using:
            self._pipeline = self._scorer = None
