"""Samples of the policy that is being trained, through the project's own engine, and their encoding with advantages.

Every iteration the weights as they are now sample solutions for a batch of questions, all at once. The transformers engine
gets them in memory: a merged copy in the engine's precision, packed where the engine packs. Engines that take over a
checkpoint (vLLM) get one on disk, others (OpenVINO) are restarted with it.

A sample is trained on as its steps re-encoded in the policy's written form, which is what every other part of the project
reads. Two things the model did not write are masked out: the newline behind a last line that it, or the longest length, ended
without one, and the end of a text that it did not end behind a newline. Blank lines and unusual tokenisations of a text are
read in the usual form. A solution that the longest length cut has no
answer, and so is wrong.
"""

import asyncio
import copy
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Swaps
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.engines.transformers.packing import pack_linears
from llm_mcts.errors import QuestionError
from llm_mcts.models import resolve_device, resolve_dtype
from llm_mcts.policy import Written
from llm_mcts.prompts import Encoder, PromptFormat
from llm_mcts.seeding import derive_seed
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.tasks.base import Task
from llm_mcts.types import Problem, State, Usage, metered
from trainers.data.encoding import Encoded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """A solution that the policy wrote, and what it earned: 1 if it is right, else 0."""

    written: Written
    reward: float

    @property
    def state(self) -> State:
        """The solution."""
        return self.written.state

    @property
    def num_steps(self) -> int:
        """Its actions, at least 1."""
        return len(self.state.steps)


class Sampler:
    """The engine that samples with the weights of the model in training. Close it when done."""

    def __init__(
        self, solver: SolverConfig, start: str, tokenizer: Any, temperature: float, scratch: Path | None = None
    ) -> None:
        """`solver`: engine, prompt and lengths; its critics, search and truncations (top_k and the like) play no part."""
        policy = replace(solver.policy, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
        engine = replace(solver.engine, model=start)
        self.config = replace(
            solver, engine=engine, policy=policy, critics=CriticsConfig(), search="greedy", rollout_model=None
        )
        self.tokenizer = tokenizer
        self.usage = Usage()
        """Of all samples so far."""
        self._temporary = None if scratch else tempfile.TemporaryDirectory()
        self._scratch = scratch or Path(self._temporary.name)  # type: ignore[union-attr]
        self._solver: Solver | None = None
        self._versions = 0

    def refresh(self, model: Any) -> None:
        """Sample with the weights of `model`, whole or with LoRA, from now on; the model itself is not touched."""
        self._versions += 1
        if self.config.engine.name == "transformers":
            self._in_memory(model)
        else:
            self._on_disk(model)

    def _in_memory(self, model: Any) -> None:
        engine = self.config.engine
        device = resolve_device(engine.device)
        self._solver = None  # the former weights go before others come
        with torch.no_grad():
            whole = merged(model).to(device=device, dtype=resolve_dtype(engine.dtype, device))
        self._solver = Solver(self.config, TransformersEngine(engine, pack_linears(whole), self.tokenizer))

    def _on_disk(self, model: Any) -> None:
        folder = self._scratch / f"policy_{self._versions}"  # another name each time: what is in use is never overwritten
        merged(model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self._solver is not None and isinstance(self._solver.engine, Swaps):
            asyncio.run(self._solver.engine.swap(str(folder)))
        else:
            if self._solver is not None:
                self._solver.close()
            self._solver = Solver(replace(self.config, engine=replace(self.config.engine, model=str(folder))))
        shutil.rmtree(self._scratch / f"policy_{self._versions - 1}", ignore_errors=True)

    def sample(self, problems: Sequence[Problem], n: int, task: Task, seed: int) -> list[list[Sample]]:
        """`n` solutions of each problem, in order; none of a question that the model cannot read, which is logged."""

        async def every() -> list[list[Written]]:
            return await gather_all([self._write(problem.question, n, seed) for problem in problems])

        with metered() as usage:
            found = asyncio.run(every())
        self.usage += usage
        return [[_judged(w, problem, task) for w in written] for problem, written in zip(problems, found, strict=True)]

    async def _write(self, question: str, n: int, seed: int) -> list[Written]:
        assert self._solver is not None
        try:
            return await self._solver.policy.write(State(question), n, derive_seed(seed, question))
        except QuestionError as error:
            log.warning("no samples of question %r: %s", question, error)
            return []

    def close(self) -> None:
        """Give back the engine, and the scratch folder if it is ours."""
        if self._solver is not None:
            self._solver.close()
        shutil.rmtree(self._scratch / f"policy_{self._versions}", ignore_errors=True)
        if self._temporary is not None:
            self._temporary.cleanup()


def merged(model: Any) -> Any:
    """A copy of the model in evaluation mode, whole: an adapter is merged into it."""
    twin = copy.deepcopy(model)
    whole = twin.merge_and_unload() if hasattr(twin, "merge_and_unload") else twin
    return whole.requires_grad_(False).eval()


def _judged(written: Written, problem: Problem, task: Task) -> Sample:
    """Only an answer that was stated in full can be right; the text of a cut one may hold another number."""
    assert problem.gold is not None
    stated = written.state.answer is not None
    return Sample(written, float(stated and task.check(written.state.text, problem.gold)))


def encode_sample(sample: Sample, advantages: Sequence[float], fmt: PromptFormat, encode: Encoder, eos: int) -> Encoded:
    """The tokens of a sample, each with its step's advantage; the end of the text belongs to the last step.

    Args:
        sample: what the policy wrote.
        advantages: one a step.
        fmt, encode, eos: the policy's written form, tokens, and the token that ends its texts.
    """
    steps = [s.text for s in sample.state.steps if s.text]  # a text that was ended at once has no line, and no newline
    segments = [fmt.question(sample.state.question), *(fmt.step(text) for text in steps)]
    ids, ends = encode(segments), encode.ends(segments)
    column, mask = [0.0] * (ends[0] + 1), [False] * (ends[0] + 1)
    for start, end, advantage in zip(ends, ends[1:], advantages, strict=False):
        column += [advantage] * (end - start)
        mask += [True] * (end - start)
    if sample.written.cut:
        mask[-1] = False
    if sample.written.ended:
        ids, column, mask = [*ids, eos], [*column, advantages[-1]], [*mask, True]
    return Encoded(ids, mask, {"advantage": column})
