"""Published reward models as critics: process reward models (PRM) that judge steps, classifiers (ORM) that judge solutions.

    load_public("/models/Qwen2.5-Math-PRM-7B", "qwen")      formats: math_shepherd, rlhflow, qwen, skywork, classifier

Read through a `BatchedModel`: whatever waits is read together, and a new step costs only its own tokens. A PRM's score of a
solution is its steps' scores, combined by `aggregate`. A bare question has no step to judge: its score is 0.5 by definition,
which the model is not asked for. How each model is written to, and how sure that is: `critics.published.formats`.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from critics.kinds import Kind
from critics.published.classifier import ClassifierCritic, is_decoder
from critics.published.formats import FORMATS, NEUTRAL, PRMFormat, StepFormat
from critics.published.loading import Head, checkpoint_folder, keep_within_window, load_step_judge, load_weights
from critics.scoring.memo import Memo
from critics.scoring.trained import AGGREGATES
from llm_mcts.concurrency import gather_all
from llm_mcts.engines.transformers.batching import BatchedModel
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import ConfigError, QuestionError, suggest
from llm_mcts.models import load_tokenizer
from llm_mcts.types import State, Usage, meter

PublicFormat = PRMFormat | Literal["classifier"]
PUBLIC_FORMATS: tuple[str, ...] = (*FORMATS, "classifier")

Key = tuple[str, ...]


class PublicPRM:
    """A published process reward model. Await it within one event loop at a time."""

    kind: Kind = "prm"

    def __init__(
        self,
        backbone: Any,
        head: Head,
        format: StepFormat,
        aggregate: str = "last",
        max_batch: int = 16,
        cache_mb: int = 512,
    ) -> None:
        """`aggregate`: see AGGREGATES; `cache_mb` bounds the stored keys and values.

        A model with sliding windows is used up to the window's length, where its attention is full attention.
        """
        if aggregate not in AGGREGATES:
            raise ConfigError(f"aggregate is '{aggregate}'{suggest(aggregate, AGGREGATES)}")
        self.aggregate: Callable[[Sequence[float]], float] = AGGREGATES[aggregate]
        keep_within_window(backbone.config)
        self.batch = BatchedModel(backbone, max_batch, cache_mb)
        self._head, self._format = head, format
        self._memo: Memo[Key, float] = Memo()

    def aggregated(self, aggregate: str) -> "PublicPRM":
        """The same model, memory and cache with another aggregate."""
        if aggregate not in AGGREGATES:
            raise ConfigError(f"aggregate is '{aggregate}'{suggest(aggregate, AGGREGATES)}")
        other = copy.copy(self)
        other.aggregate = AGGREGATES[aggregate]
        return other

    async def score(self, states: Sequence[State]) -> list[float]:
        """One score in [0, 1] per state, its steps' scores combined by `aggregate`; 0.5 for a bare question.

        Raises:
            QuestionError: as `step_scores`.
        """
        return [self.aggregate(scores[1:] or scores) for scores in await self.step_scores(states)]

    async def step_scores(self, states: Sequence[State]) -> list[list[float]]:
        """For each state 0.5 for its question alone, then the score of each step.

        Raises:
            QuestionError: a state is longer than the model's context, or its text holds the model's step tag or another of
                its special tokens.
        """
        keys = [(state.question, *(step.text for step in state.steps)) for state in states]
        usage, distinct = meter(), list(dict.fromkeys(keys))
        usage.critic_calls += len(keys)
        found = dict(zip(distinct, await gather_all([self._judge(key, usage) for key in distinct]), strict=True))
        return [found[key] for key in keys]

    async def _judge(self, key: Key, usage: Usage) -> list[float]:
        """The scores of all prefixes of a key; only those are read that are not known."""
        prefixes = [key[: i + 1] for i in range(1, len(key))]
        return [NEUTRAL, *await self._memo.fetch(prefixes, partial(self._judge_prefixes, usage))]

    async def _judge_prefixes(self, usage: Usage, prefixes: list[Key]) -> list[float]:
        rows = [self._format.ids(prefix[0], prefix[1:]) for prefix in prefixes]
        if (longest := max(map(len, rows))) > self.batch.context:
            raise QuestionError(
                f"a solution of {longest} tokens; expected at most the critic's context of {self.batch.context}"
            )
        return await self._read(rows, usage)

    async def _read(self, rows: list[list[int]], usage: Usage) -> list[float]:
        """The score at each row's last token; rows that begin the last one, as a rule all, are read with it at one go."""
        whole = rows[-1]
        begins = [whole[: len(row)] == row for row in rows]
        ends = [len(row) - 1 for row, shared in zip(rows, begins, strict=True) if shared]
        alone = [row for row, shared in zip(rows, begins, strict=True) if not shared]

        def count(computed: int, _: int) -> None:
            usage.critic_tokens += computed

        readings = [self.batch.hidden(whole, ends, count), *(self.batch.hidden(row, [len(row) - 1], count) for row in alone)]
        hidden = await gather_all(readings)
        with torch.inference_mode():
            together, *others = (self._head(states).tolist() for states in hidden)
        shared, single = iter(together), iter(score for [score] in others)
        return [next(shared) if begun else next(single) for begun in begins]


def load_public(place: str | Path, format: str, aggregate: str = "last") -> PublicPRM | ClassifierCritic:
    """A published reward model as a critic. Its own Python code, if it has any, is never run.

    Args:
        place: a folder, or a hub id as owner/name or owner/name@revision; weights in safetensors.
        format: a PublicFormat.
        aggregate: of a PRM's step scores.

    Raises:
        ConfigError: no such format or aggregate.
        ModelError: the model cannot be read, or is of another format.
    """
    if format not in PUBLIC_FORMATS:
        raise ConfigError(f"critic format is '{format}'{suggest(format, PUBLIC_FORMATS)}")
    if aggregate not in AGGREGATES:  # before minutes of loading
        raise ConfigError(f"aggregate is '{aggregate}'{suggest(aggregate, AGGREGATES)}")
    folder = checkpoint_folder(place)
    tokenizer = load_tokenizer(str(folder))
    if format == "classifier":
        model = load_weights(folder, "AutoModelForSequenceClassification")
        if is_decoder(model):
            pack_linears(model.base_model)
        return ClassifierCritic(model, tokenizer)
    writes = FORMATS[format](tokenizer)
    backbone, head = load_step_judge(folder, writes.head, getattr(writes, "plus", 0), getattr(writes, "minus", 0))
    return PublicPRM(backbone, head, writes, aggregate)
