"""Trained critics in use: batched across whoever asks, each token computed once.

`ModelCritic` scores a state by its model's logit at the last token of each step. Requests that wait are scored together;
a prefix's keys and values are kept in a `PrefixTree` of the critic's own, so a new step costs only its own tokens.

    value   the last prefix: how likely it is to end in the right answer
    prm     every step, combined by `aggregate` (Math-Shepherd: min; AlphaLLM: last)
    orm     the whole solution
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean

import torch

from critics.modeling import CriticModel
from llm_mcts.engines.kv_cache import PrefixTree, SlotCache, pad_right
from llm_mcts.errors import ConfigError, QuestionError, suggest
from llm_mcts.prompts import Encoder
from llm_mcts.types import State, Usage, meter

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": min,
    "mean": fmean,
    "prod": prod,
}
"""How the scores of a solution's steps become one."""

_TURNS = 6
_MEMORY = 200_000

Key = tuple[str, ...]


class ModelCritic:
    """A trained critic. Await it within one event loop at a time."""

    def __init__(self, model: CriticModel, aggregate: str = "last", max_batch: int = 64, cache_mb: int = 512) -> None:
        """`aggregate` (see AGGREGATES) matters for a PRM only; `cache_mb` bounds the stored keys and values."""
        if aggregate not in AGGREGATES:
            raise ConfigError(f"aggregate is '{aggregate}'{suggest(aggregate, AGGREGATES)}")
        self.model = model.eval()
        self.aggregate = AGGREGATES[aggregate if model.kind == "prm" else "last"]
        self.max_batch = max_batch
        self._format = model.prompt_format
        self._encode = Encoder(model.tokenizer)
        self._device = next(model.parameters()).device
        self._slots = SlotCache(model.config, max_batch, next(model.backbone.parameters()).dtype, self._device)
        self._tree = PrefixTree(cache_mb * 2**20)
        self._known: OrderedDict[Key, float] = OrderedDict()
        self._waiting: list[_Entry] = []
        self._loop: asyncio.Task[None] | None = None

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] per state: sigmoid of the logit at the last token of its steps, combined by `aggregate`."""
        return [self.aggregate(scores[1:] or scores) for scores in await self.step_scores(states)]

    async def step_scores(self, states: Sequence[State]) -> list[list[float]]:
        """For each state the score of its question alone and of every prefix of its steps, in order.

        Raises:
            QuestionError: a state is longer than the model's context.
        """
        keys = [self._format.segments(state) for state in states]
        for key in keys:
            if (length := len(self._encode(key))) > self._slots.context:
                raise QuestionError(
                    f"a solution of {length} tokens; expected at most the critic's context of {self._slots.context}"
                )
        usage, loop = meter(), asyncio.get_running_loop()
        usage.critic_calls += len(keys)
        entries = {key: _Entry(key, usage, loop.create_future()) for key in keys}
        waiting = []
        for entry in entries.values():
            if (known := self._recall(entry.key)) is not None:
                entry.scores.set_result(known)
            else:
                waiting.append(entry)
        if waiting:
            self._waiting.extend(waiting)
            if self._loop is None or self._loop.done():
                self._loop = loop.create_task(self._run())
        found = await asyncio.gather(*(entries[key].scores for key in keys))
        return [list(scores) for scores in found]

    def _recall(self, key: Key) -> list[float] | None:
        """The remembered scores of a key's prefixes, or None where one is missing."""
        scores = [self._known.get(key[: i + 1]) for i in range(len(key))]
        return None if None in scores else scores  # type: ignore[return-value]

    async def _run(self) -> None:
        """Score what waits, once no more arrives; a failure reaches every caller."""
        while self._waiting:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
            batch = [entry for entry in batch if not entry.scores.done()]
            try:
                with torch.inference_mode():
                    self._score_batch(batch)
            except Exception as error:
                for entry in batch:
                    if not entry.scores.done():
                        entry.scores.set_exception(error)

    def _score_batch(self, batch: list["_Entry"]) -> None:
        """Answer a batch with one forward over the tokens that are not cached."""
        first: dict[Key, _Entry] = {}
        for entry in batch:
            if self._recall(entry.key) is None:
                first.setdefault(entry.key, entry)
        if first:
            self._compute(list(first.values()))
        for entry in batch:
            scores = self._recall(entry.key)
            assert scores is not None
            entry.scores.set_result(scores)
        while len(self._known) > _MEMORY:
            self._known.popitem(last=False)

    def _compute(self, entries: list["_Entry"]) -> None:
        """Score every unknown prefix of the entries' keys into `_known`."""
        rows, starts, wanted = [], [], []
        for slot, entry in enumerate(entries):
            key, tokens = entry.key, self._encode(entry.key)
            new = [(key[: i + 1], end) for i, end in enumerate(self._encode.ends(key)) if key[: i + 1] not in self._known]
            self._slots.ensure_length(len(tokens))
            have = min(self._slots.load(slot, self._tree.match(tokens)), new[0][1])
            rows.append(tokens)
            starts.append(have)
            wanted.append([(prefix, end - have) for prefix, end in new])
            entry.usage.critic_tokens += len(tokens) - have
        fresh = [tokens[have:] for tokens, have in zip(rows, starts, strict=True)]
        inputs = self._slots.window(slice(0, len(rows)), starts, max(map(len, fresh)))
        ids = pad_right(fresh, max(map(len, fresh)), self._device)
        hidden = self.model.backbone(input_ids=ids, past_key_values=self._slots, use_cache=True, **inputs).last_hidden_state
        places = [(slot, at) for slot, ends in enumerate(wanted) for _, at in ends]
        chosen = hidden[[slot for slot, _ in places], [at for _, at in places]]
        scores = torch.sigmoid(self.model.logits(chosen).float()).tolist()
        self._known.update(zip([prefix for ends in wanted for prefix, _ in ends], scores, strict=True))
        for slot, tokens in enumerate(rows):
            self._tree.insert(tokens, self._slots.read(slot, len(tokens)))


@dataclass(eq=False)
class _Entry:
    """One state that waits for its scores."""

    key: Key
    usage: Usage
    scores: "asyncio.Future[list[float]]"
