"""Continuous batching of one model, with the key/value cache shared along the search tree.

Two kinds of work join a batch. A `Continuation` is a prompt to be continued: it decodes one token a step, together with all
others, until it has ended. A `Reading` asks for the hidden states, or the log-probabilities, of given positions
of a token sequence: what critics and verifiers need. Both first load what the prefix tree holds of their tokens; the rest is
computed in waves: of sequences that share an unknown prefix one goes first, so that it is computed once. A continuation's
last prompt token is simply its first decode input.
"""

import asyncio
import inspect
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm_mcts.engines.base import Completion
from llm_mcts.engines.endings import Continuation
from llm_mcts.engines.transformers.joining import Count, Joining, Reading, Work, forwards, next_wave
from llm_mcts.engines.transformers.kv_cache import PrefixTree, SlotCache, pad_right
from llm_mcts.engines.transformers.sampling import sample

# Tokens computed before the next decode step: readings hold up neither decoding nor a caller who leaves for long.
_TURN_TOKENS = 4096
# How often the event loop turns before a batch step, so that searches that just got a reply can send their next request.
_TURNS = 4


class BatchedModel:
    """A model shared by concurrent callers. Await it within one event loop at a time."""

    def __init__(self, model: Any, max_batch: int = 64, cache_mb: int = 1024) -> None:
        """`model`: a causal language model, or a backbone, which can only be read; `cache_mb`: bound of the prefix tree."""
        self.model, self.max_batch = model.eval(), max_batch
        self.backbone = backbone_of(model)
        self.device = next(model.parameters()).device
        # transformers calls the argument `cache` since 5.24, and removes the former name in 5.40.
        known = inspect.signature(self.backbone.forward).parameters
        self._cache_argument = "cache" if "cache" in known else "past_key_values"
        # Slots below max_batch decode; readings use those above the ones in use, for one forward.
        self.slots = SlotCache(self.backbone.config, 2 * max_batch, next(self.backbone.parameters()).dtype, self.device)
        self.tree = PrefixTree(cache_mb * 2**20)
        self.active: list[Continuation] = []
        self.waiting: deque[Work] = deque()
        self.unfinished: set[Work] = set()
        self._loop: asyncio.Task[None] | None = None
        self.decode_steps = 0
        """Batch steps so far."""
        self.decoded_rows = 0
        """Rows over all batch steps: divided by decode_steps, the mean batch size."""
        self.prefilled_tokens = 0
        """Tokens computed so far, but for those decoded."""

    @property
    def context(self) -> int:
        """Longest sequence that the model takes, in tokens."""
        return self.slots.context

    async def continue_all(self, rows: Sequence[Continuation]) -> list[Completion]:
        """Decode until each row has ended; return their completions in order."""
        self._submit(rows)
        return list(await asyncio.gather(*(row.done for row in rows)))

    async def hidden(self, tokens: Sequence[int], wanted: Sequence[int], count: Count) -> Tensor:
        """The last hidden states [len(wanted), hidden] at ascending positions of a token sequence."""
        states: Tensor = await self._read(tokens[: wanted[-1] + 1], wanted, None, count)
        return states

    async def logprobs(self, tokens: Sequence[int], start: int, count: Count) -> list[float]:
        """The log-probabilities of `tokens[start:]`, each given all before it; `start` is at least 1."""
        values: list[float] = await self._read(tokens[:-1], range(start - 1, len(tokens) - 1), tokens[start:], count)
        return values

    async def _read(self, tokens: Sequence[int], wanted: Sequence[int], targets: Sequence[int] | None, count: Count) -> Any:
        reading = Reading(tuple(tokens), wanted, targets, count, asyncio.get_running_loop().create_future())
        self._submit([reading])
        return await reading.done

    def _submit(self, work: Sequence[Work]) -> None:
        if self._loop is not None and not self._loop.done() and self._loop.get_loop() is not asyncio.get_running_loop():
            self._leave(self._loop.get_loop())
        self.waiting.extend(work)
        self.unfinished.update(work)
        if self._loop is None or self._loop.done():
            self._loop = asyncio.get_running_loop().create_task(self._run())

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        """Drop the work of an event loop that ended before it was done.

        Raises:
            RuntimeError: it still runs.
        """
        if loop.is_running():
            raise RuntimeError("the engine is awaited within two event loops at once; expected one, or an engine for each")
        for work in self.unfinished:
            if not loop.is_closed():
                work.done.cancel()
        self._clear()
        self._loop = None

    def _clear(self) -> None:
        for work in (self.active, self.waiting, self.unfinished):
            work.clear()

    async def _run(self) -> None:
        """Work until nothing waits. A failure reaches every caller, never only the log."""
        try:
            while self.waiting or self.active:
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                with torch.inference_mode():
                    self._drop_cancelled()
                    before = self.prefilled_tokens
                    while self.prefilled_tokens - before < _TURN_TOKENS and (wave := self._next_wave()):
                        self._compute(wave)
                    if self.active:
                        self._decode()
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError("the engine was stopped")
            for work in self.unfinished:
                if not work.done.done() and not work.done.get_loop().is_closed():
                    work.done.set_exception(failure)
            self._clear()
            if failure is not error:
                raise

    def _drop_cancelled(self) -> None:
        self.unfinished = {work for work in self.unfinished if not work.done.cancelled()}
        self.waiting = deque(work for work in self.waiting if not work.done.cancelled())
        for i in reversed([i for i, row in enumerate(self.active) if row.done.cancelled()]):
            self._remove(i)

    def _next_wave(self) -> list[Joining]:
        return next_wave(self.waiting, self.tree, len(self.active), self.max_batch)

    def _compute(self, wave: list[Joining]) -> None:
        """Load what the tree holds, compute the rest."""
        self.slots.ensure_room(wave[-1].slot + 1, max(len(entry.work.known) for entry in wave) + 1)
        for entry in wave:
            self.slots.load(entry.slot, entry.stored)
            self.prefilled_tokens += len(entry.fresh)
            entry.work.count(len(entry.fresh), len(entry.work.known) - len(entry.fresh))
            if isinstance(entry.work, Continuation):
                self.active.append(entry.work)
        for group in forwards([entry for entry in wave if entry.fresh]):
            self._prefill(group)

    def _prefill(self, group: list[Joining]) -> None:
        """One forward over adjacent slots; keys and values go to the tree, readings get what they asked for."""
        inputs = self.slots.window_at(slice(group[0].slot, group[-1].slot + 1), [entry.fresh for entry in group])
        width = inputs["position_ids"].shape[1]
        ids = pad_right([[entry.work.known[at] for at in entry.fresh] for entry in group], width, self.device)
        first = 0
        if group[0].wants_logits:
            first = min(entry.fresh.index(entry.wanted[0]) for entry in group)
            outputs = self._forward(self.model, ids, inputs, logits_to_keep=width - first).logits
        else:
            outputs = self._forward(self.backbone, ids, inputs).last_hidden_state
        for row, entry in zip(outputs, group, strict=True):
            self.tree.insert(entry.work.known, self.slots.read(entry.slot, len(entry.work.known)))
            if isinstance(entry.work, Reading):
                self._answer(entry.work, row[[entry.fresh.index(at) - first for at in entry.wanted]])

    def _forward(self, model: Any, ids: Tensor, inputs: dict[str, Tensor], **more: Any) -> Any:
        return model(input_ids=ids, use_cache=True, **{self._cache_argument: self.slots}, **inputs, **more)

    def _answer(self, reading: Reading, rows: Tensor) -> None:
        self.unfinished.discard(reading)
        if reading.done.done():
            return
        if reading.targets is None:
            reading.done.set_result(rows)
        else:
            targets = torch.tensor(reading.targets, device=rows.device)[:, None]
            reading.done.set_result(rows.float().log_softmax(-1).gather(-1, targets).squeeze(-1).tolist())

    def _decode(self) -> None:
        """One token for every active row."""
        rows = self.active
        inputs = self.slots.window(slice(0, len(rows)), [row.length for row in rows], 1)
        ids = torch.tensor([[row.last] for row in rows], device=self.device)
        logits = self._forward(self.model, ids, inputs).logits[:, -1]
        tokens, logprobs = sample(logits.float(), [row.request for row in rows], [row.random.random() for row in rows])
        self.decode_steps += 1
        self.decoded_rows += len(rows)
        ended = []
        for i, row in enumerate(rows):
            if row.append(tokens[i], logprobs[i]):
                self.unfinished.discard(row)
                ended.append(i)
        for i in reversed(ended):
            self._remove(i)

    def _remove(self, i: int) -> None:
        """Take row i out of the batch: store its keys and values, move the last row into its slot."""
        row, last = self.active[i], len(self.active) - 1
        if row.generated:
            self.tree.insert([*row.prompt, *row.generated][: row.length], self.slots.read(i, row.length))
        if i != last:
            self.slots.copy_row(last, i, self.active[last].length)
            self.active[i] = self.active[last]
        self.active.pop()


def backbone_of(model: Any) -> Any:
    """The transformer of a model without its language-model head, adapters included."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model
