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
        self._waiting: list[tuple[Key, asyncio.Future[None], Usage]] = []
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
        usage = meter()
        usage.critic_calls += len(keys)
        missing = [key for key in dict.fromkeys(keys) if not self._scored(key)]
        if missing:
            loop = asyncio.get_running_loop()
            entries = [(key, loop.create_future(), usage) for key in missing]
            self._waiting.extend(entries)
            if self._loop is None or self._loop.done():
                self._loop = loop.create_task(self._run())
            await asyncio.gather(*(future for _, future, _ in entries))
        return [[self._known[key[: i + 1]] for i in range(len(key))] for key in keys]

    def _scored(self, key: Key) -> bool:
        return all(key[: i + 1] in self._known for i in range(len(key)))

    async def _run(self) -> None:
        """Score what waits, once no more arrives; a failure reaches every caller."""
        while self._waiting:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            batch, self._waiting = self._waiting[: self.max_batch], self._waiting[self.max_batch :]
            batch = [entry for entry in batch if not entry[1].done()]
            try:
                with torch.inference_mode():
                    self._score_batch(batch)
            except Exception as error:
                for _, future, _ in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for _, future, _ in batch:
                if not future.done():
                    future.set_result(None)

    def _score_batch(self, batch: list[tuple[Key, "asyncio.Future[None]", Usage]]) -> None:
        """One forward over the tokens that are not cached; fills `_known` for every prefix of every key."""
        rows, starts, wanted = [], [], []
        batch = [entry for entry in batch if not self._scored(entry[0])]
        for slot, (key, _, usage) in enumerate(batch):
            tokens, ends = self._encode(key), self._encode.ends(key)
            if len(tokens) > self._slots.context:
                raise QuestionError(
                    f"a solution of {len(tokens)} tokens; expected at most the critic's context of {self._slots.context}"
                )
            new = [(key[: i + 1], end) for i, end in enumerate(ends) if key[: i + 1] not in self._known]
            self._slots.ensure_length(len(tokens))
            have = min(self._slots.load(slot, self._tree.match(tokens)), new[0][1])
            rows.append(tokens)
            starts.append(have)
            wanted.append([(prefix, end - have) for prefix, end in new])
            usage.critic_tokens += len(tokens) - have
        if not rows:
            return
        fresh = [tokens[have:] for tokens, have in zip(rows, starts, strict=True)]
        width = max(map(len, fresh))
        inputs = self._slots.window(slice(0, len(rows)), starts, width)
        ids = pad_right(fresh, width, self._device)
        hidden = self.model.backbone(input_ids=ids, past_key_values=self._slots, use_cache=True, **inputs).last_hidden_state
        places = [(slot, at) for slot, ends in enumerate(wanted) for _, at in ends]
        chosen = hidden[[slot for slot, _ in places], [at for _, at in places]]
        scores = torch.sigmoid(self.model.logits(chosen).float()).tolist()
        for prefix, score in zip([prefix for ends in wanted for prefix, _ in ends], scores, strict=True):
            self._known[prefix] = score
        for slot, tokens in enumerate(rows):
            self._tree.insert(tokens, self._slots.read(slot, len(tokens)))
        while len(self._known) > _MEMORY:
            self._known.popitem(last=False)
