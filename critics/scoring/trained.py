"""Trained critics in use: batched across whoever asks, each token computed once.

`ModelCritic` scores a state by its model's logit at the last token of each step. It reads through a `BatchedModel`, its own
or the policy's: what waits is read together, and a new step costs only its own tokens.

    value   the last prefix: how likely it is to end in the right answer
    prm     every step, combined by `aggregate` (Math-Shepherd: min; AlphaLLM: last)
    orm     the whole solution

A head that judges by surprisal reads every token of the solution; what these have run up to is kept with each prefix, so that a
new step costs its own tokens and the one in front of them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from statistics import fmean

import torch
from torch import Tensor

from critics.model.model import CriticModel
from critics.model.surprisal import Running, solution_features, surprisals
from critics.scoring.memo import Memo
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.engines.transformers.joining import Count
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

Key = tuple[str, ...]


class ModelCritic:
    """A trained critic. Await it within one event loop at a time."""

    def __init__(
        self,
        model: CriticModel,
        aggregate: str = "last",
        max_batch: int = 64,
        cache_mb: int = 512,
        batch: BatchedModel | None = None,
    ) -> None:
        """`aggregate` (see AGGREGATES) matters for a PRM only; `cache_mb` bounds the stored keys and values.

        `batch`: the policy's, for a critic that reads the policy's own hidden states (AlphaZero's shared trunk).
        """
        if aggregate not in AGGREGATES:
            raise ConfigError(f"aggregate is '{aggregate}'{suggest(aggregate, AGGREGATES)}")
        self.model = model.eval()
        self.kind: str = model.kind
        self.aggregate = AGGREGATES[aggregate if model.kind == "prm" else "last"]
        self.batch = batch or BatchedModel(model.backbone, max_batch, cache_mb)
        self._format = model.prompt_format
        self._encode = Encoder(model.tokenizer)
        self.memo: Memo[Key, float] = Memo()
        self._run_up: OrderedDict[Key, tuple[float, float, float]] = OrderedDict()
        """For a head that judges by surprisal: a prefix's number of tokens, their log-probabilities' sum and the least."""

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
            if (length := len(self._encode(key))) > self.batch.context:
                raise QuestionError(
                    f"a solution of {length} tokens; expected at most the critic's context of {self.batch.context}"
                )
        usage = meter()
        usage.critic_calls += len(keys)
        for key in dict.fromkeys(keys):
            self.memo.begin((key[: i + 1] for i in range(len(key))), partial(self._read, key, usage))
        found = dict.fromkeys(key[: i + 1] for key in keys for i in range(len(key)))
        scores = dict(zip(found, await self.memo.values(list(found)), strict=True))
        return [[scores[key[: i + 1]] for i in range(len(key))] for key in keys]

    async def _read(self, key: Key, usage: Usage, prefixes: list[Key]) -> list[float]:
        """The scores of some prefixes of a key, which are read together."""

        def count(computed: int, _: int) -> None:
            usage.critic_tokens += computed

        judge = self._judge_by_surprisal if self.model.by_surprisal else self._judge
        scores: list[float] = torch.sigmoid((await judge(key, [len(p) - 1 for p in prefixes], count)).float()).tolist()
        while len(self._run_up) > self.memo.size:
            self._run_up.popitem(last=False)
        return scores

    async def _judge(self, key: Key, new: list[int], count: Count) -> Tensor:
        """The logits [len(new)] at the ends of those prefixes."""
        ends = self._encode.ends(key)
        hidden = await self.batch.hidden(self._encode(key), [ends[i] for i in new], count)
        with torch.inference_mode():
            return self.model.logits(hidden)

    async def _judge_by_surprisal(self, key: Key, new: list[int], count: Count) -> Tensor:
        """The same from the hidden states of all tokens behind the longest prefix whose running sums are known."""
        ids, ends = self._encode(key), self._encode.ends(key)
        known = next((i for i in range(new[0] - 1, 0, -1) if key[: i + 1] in self._run_up), 0)
        start, stop = ends[known], ends[new[-1]] + 1
        hidden = await self.batch.hidden(ids, range(start, stop), count)
        # The first column is the known prefix's last token, which tells what was expected behind it.
        steps = [0] + [i for i in range(known + 1, new[-1] + 1) for _ in range(ends[i] - ends[i - 1])]
        before = (
            Running(*hidden.new_tensor(self._run_up[key[: known + 1]], dtype=torch.float32).view(3, 1, 1)) if known else None
        )
        with torch.inference_mode():
            segments, tokens = (torch.tensor([row], device=hidden.device) for row in (steps, ids[start:stop]))
            logprobs = surprisals(hidden[None], tokens, segments, self.model.lm_head)
            features, solution = solution_features(logprobs, segments, before)
            logits = self.model.logits(hidden[None], features)[0]
        for i in range(known + 1, new[-1] + 1):
            self._run_up[key[: i + 1]] = tuple(part[0, ends[i] - start].item() for part in solution)  # type: ignore[assignment]
        return logits[[ends[i] - start for i in new]]
