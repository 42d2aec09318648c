"""Imagination: new training questions from old ones (MetaMath, arXiv 2309.12284; AlphaLLM, arXiv 2404.12253, section 4.2).

numbers   other numbers of similar size, by rule (`renumber`); where the reference solution, worked again with
          them, would come out negative or no longer whole, others are drawn (`rework`)
backward  one number is hidden, the answer told, the number asked for (FOBAR), by rule: the one kind whose answer is known
rephrase  the same problem in other words, by a model; all its numbers have to be there still
evolve    a harder problem, by a model (Evol-Instruct, arXiv 2304.12244, and WizardMath, arXiv 2308.09583, at one step)

Everything else has no gold answer: `agreement` decides whether a search's trees are used. A candidate is refused,
with its reason, if it is near a held-out question or a duplicate of a known one (`overlap`). MetaMath asks GPT-3.5
and checks rephrased questions against the old answer; here another model can be named, and the vote decides.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import Annotated, Any, Literal, get_args

from llm_mcts.concurrency import gather_all
from llm_mcts.engines.base import Request
from llm_mcts.errors import ConfigError, EngineError, QuestionError
from llm_mcts.fields import AtLeast, Settings
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import Rewriting, read_question
from llm_mcts.runner import Record
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.seeding import derive_seed
from llm_mcts.tasks.base import Task
from llm_mcts.types import Problem, Usage, metered
from trainers.questions.imagine.overlap import OverlapConfig, OverlapIndex, numbers_of
from trainers.questions.imagine.renumber import Changes, NumbersConfig, change_numbers, hide_number
from trainers.questions.imagine.rework import makes_sense

Recipe = Literal["numbers", "backward", "rephrase", "evolve"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
WRITTEN: tuple[Rewriting, ...] = get_args(Rewriting)
"""The kinds that a model writes."""

NO_NUMBER = "no number to change"
NO_ANSWER = "no known answer"
UNPARSABLE = "unparsable"
OTHER_NUMBERS = "other numbers than its parent"
TOO_LONG = "too long for the model's context"
FAILED = "the model failed"
DUPLICATE = "duplicate of a known question"
HELD_OUT = "near a held-out question"
MAX_CHARACTERS = 1000
"""Of a question that a model wrote; a longer one is refused."""


@dataclass(frozen=True)
class ImagineConfig(Settings, section="imagine"):
    """Which questions are imagined."""

    kinds: tuple[Recipe, ...] = ("numbers",)
    """Any of numbers, backward (by rule), rephrase, evolve (written by a model), each once."""
    per_question: Annotated[int, AtLeast(1)] = 1
    """Candidates of each kind made from each question."""
    max_candidates: Annotated[int, AtLeast(1)] | None = None
    """Most candidates in all, in the questions' order; None: per_question of each kind of each."""
    numbers: NumbersConfig = field(default_factory=NumbersConfig)
    model: str | None = None
    """Model (folder or hub id) that writes rephrased and evolved questions; None: the policy does. MetaMath: GPT-3.5."""
    temperature: Annotated[float, AtLeast(0)] = 0.7
    """Of that model's sampling. MetaMath: 0.7."""
    max_tokens: Annotated[int, AtLeast(1)] = 256
    """Longest text of that model, in tokens; a longer one is refused."""
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    """When a candidate is too near to other questions."""
    concurrency: Annotated[int, AtLeast(1)] = 64
    """Candidates that a model writes at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.kinds or len(set(self.kinds)) < len(self.kinds):
            raise ConfigError(f"imagine.kinds is {list(self.kinds)}; expected any of {', '.join(RECIPES)}, each once")

    @property
    def asks_a_model(self) -> bool:
        """Whether any of the kinds is written by a model."""
        return bool(set(self.kinds) & set(WRITTEN))


@dataclass(frozen=True)
class Candidate:
    """A question that was thought of, and what became of it."""

    id: str
    question: str
    """Empty where none came about."""
    kind: str
    parent: str
    """Id of the question that it was made from."""
    kept: bool
    reason: str | None = None
    """Why it was refused; None for a kept one."""
    gold: str | None = None
    """Its answer where that is known by construction: of backward questions."""
    overlap: float = 0.0
    """The largest share of n-grams in common with a held-out question, in [0, 1]."""
    usage: dict[str, Any] | None = None
    """What the model's call cost; None for one made by rule."""


def held_out_questions(task: Task, splits: Sequence[str] = ("dev", "test"), limit: int | None = None) -> list[str]:
    """The texts of the questions that nothing imagined may be near; `limit` of each split, as many as are evaluated.

    The rule is that test questions are not read before the final report. Their texts are read here, and only here, for
    one purpose: to keep them, and what resembles them, out of the training questions. Without it an imagined question
    could be a test question. Their answers are dropped at once, no model is shown the texts, and they only ever lead to
    a refusal. None as limit: all that the task has (arith, which has no end, gives 200).
    """
    return [problem.question for split in splits for problem in task.load(split, limit)]


def imagine_questions(
    problems: Sequence[Problem],
    config: ImagineConfig,
    policy: LMPolicy | None,
    held_out: Sequence[str],
    known: Sequence[Problem],
    journal: Journal,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> list[Problem]:
    """The kept ones of `imagine`, for callers without an event loop; a record a candidate goes to the journal.

    A journal that was cut is resumed, and ends as it would have without the cut.

    Raises:
        ConfigError: a kind needs a model and there is no policy.
    """
    reporter = reporter or Reporter(quiet=True)
    done = candidates_of(journal.read())
    if journal.complete:
        return as_problems(done)
    with reporter.stage("imagine", len(_planned(problems, config)) - len(done)) as progress:

        def record(candidate: Candidate) -> None:
            journal.append(asdict(candidate))
            progress.advance(Record(candidate.id, usage=Usage(**candidate.usage or {})))

        candidates = asyncio.run(imagine(problems, config, policy, held_out, known, seed, done, record))
    journal.finish()
    return as_problems(candidates)


def candidates_of(records: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """A journal's records as candidates."""
    return [Candidate(**record) for record in records]


def as_problems(candidates: Sequence[Candidate]) -> list[Problem]:
    """The kept ones, as questions to be searched."""
    return [Problem(c.id, c.question, c.gold) for c in candidates if c.kept]


def counts(candidates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many candidates of each kind there were and were kept, and the refused by reason; of the journal's records."""
    return {
        "candidates": dict(Counter(c["kind"] for c in candidates)),
        "kept": dict(Counter(c["kind"] for c in candidates if c["kept"])),
        "refused": dict(Counter(c["reason"] for c in candidates if not c["kept"]).most_common()),
    }


def spent(candidates: Sequence[Mapping[str, Any]]) -> Usage:
    """What writing them cost; of the journal's records."""
    usage = Usage()
    for candidate in candidates:
        usage += Usage(**candidate["usage"] or {})
    return usage


async def imagine(
    problems: Sequence[Problem],
    config: ImagineConfig,
    policy: LMPolicy | None,
    held_out: Sequence[str],
    known: Sequence[Problem] = (),
    seed: int = 0,
    done: Sequence[Candidate] = (),
    on_done: Callable[[Candidate], None] | None = None,
) -> list[Candidate]:
    """Candidates made from `problems`, in order, kept or refused.

    Args:
        problems: training questions; the backward kind needs their answers.
        config: what is made.
        policy: its engine and prompt serve the kinds that a model writes; None where there are none.
        held_out: texts of the questions that nothing may be near.
        known: further questions that nothing may repeat; `problems` and what was kept before count as well.
        seed: same seed, same questions, whatever `config.concurrency` is.
        done: candidates that a cut run left, the first ones in order.
        on_done: called with each further candidate, in order.

    Raises:
        ConfigError: a kind needs a model and there is no policy.
    """
    if config.asks_a_model and policy is None:
        raise ConfigError(f"imagine.kinds is {list(config.kinds)} without a model; expected one, or numbers and backward alone")
    judge = _Judge(config.overlap, held_out, [p.question for p in [*known, *problems]])
    for candidate in done:
        judge.admit(candidate)
    candidates, planned = list(done), _planned(problems, config)
    for start in range(len(done), len(planned), config.concurrency):
        wave = planned[start : start + config.concurrency]
        for made in await gather_all([_made(plan, config, policy, seed) for plan in wave]):
            candidates.append(judge.judged(made))
            if on_done:
                on_done(candidates[-1])
    return candidates


@dataclass(frozen=True)
class _Plan:
    """A candidate to be made."""

    problem: Problem
    kind: Recipe
    index: int

    @property
    def id(self) -> str:
        """The parent's id, made safe as a file name, and which of its candidates this is."""
        safe = re.sub(r"[^A-Za-z0-9._~-]", "_", self.problem.id)[:100]
        if safe != self.problem.id:  # two parents must not become one
            safe += f"-{blake2b(self.problem.id.encode(), digest_size=4).hexdigest()}"
        return f"{safe}~{self.kind}-{self.index}"


def _planned(problems: Sequence[Problem], config: ImagineConfig) -> list[_Plan]:
    plans = [_Plan(p, kind, i) for p in problems for kind in config.kinds for i in range(config.per_question)]
    return plans[: config.max_candidates]


async def _made(plan: _Plan, config: ImagineConfig, policy: LMPolicy | None, seed: int) -> Candidate:
    """A candidate, not yet compared with other questions."""
    candidate = Candidate(plan.id, "", plan.kind, plan.problem.id, kept=False)
    problem = plan.problem
    if plan.kind == "numbers":
        drawn = derive_seed(seed, "numbers", problem.question, plan.index)
        changed = change_numbers(problem.question, config.numbers, drawn, _sense(problem))
        return replace(candidate, reason=NO_NUMBER) if changed is None else replace(candidate, question=changed[0])
    if plan.kind == "backward":
        if problem.gold is None:
            return replace(candidate, reason=NO_ANSWER)
        hidden = hide_number(problem.question, problem.gold, derive_seed(seed, "backward", problem.question), plan.index)
        return (
            replace(candidate, reason=NO_NUMBER) if hidden is None else replace(candidate, question=hidden[0], gold=hidden[1])
        )
    assert policy is not None
    with metered() as usage:
        question, reason = await _written(plan, plan.kind, config, policy, seed)
    return replace(candidate, question=question, reason=reason, usage=asdict(usage))


def _sense(problem: Problem) -> Callable[[Changes], bool]:
    """Whether new numbers fit each other, as far as a reference solution tells."""
    return lambda changes: problem.solution is None or makes_sense(problem.solution, changes)


async def _written(plan: _Plan, kind: Rewriting, config: ImagineConfig, policy: LMPolicy, seed: int) -> tuple[str, str | None]:
    """What the model wrote, and why it is refused."""
    old = plan.problem.question
    # Only a chat says when it is done; a plain text continues with problems of its own.
    stop = () if policy.prompt.config.style == "chat" else ("\n",)
    drawn = derive_seed(seed, kind, old, plan.index)
    request = Request(policy.prompt.rewriting(old, kind), 1, config.max_tokens, config.temperature, stop, drawn)
    try:
        (reply,) = await policy.engine.generate(request)
    except QuestionError:
        return "", TOO_LONG
    except EngineError as error:
        return "", f"{FAILED}: {error}"
    question = None if reply.finish_reason == "length" else read_question(reply.text, MAX_CHARACTERS)
    if question is None:
        return reply.text.strip(), UNPARSABLE
    if kind == "rephrase" and numbers_of(question) != numbers_of(old):
        return question, OTHER_NUMBERS
    return question, None


class _Judge:
    """Compares candidates with the held-out questions and with all that are known, those kept before among them."""

    def __init__(self, config: OverlapConfig, held_out: Sequence[str], known: Sequence[str]) -> None:
        self.config = config
        self.held_out = OverlapIndex(held_out, config.ngram, config.mask_numbers)
        self.known = OverlapIndex(known, config.ngram, mask_numbers=False, same_numbers=True)

    def judged(self, made: Candidate) -> Candidate:
        """The candidate with its verdict."""
        if made.reason is not None:
            return made
        share = self.held_out.nearest(made.question)[0]
        made = replace(made, overlap=round(share, 4))
        if share >= self.config.threshold:
            return replace(made, reason=HELD_OUT)
        if self.known.nearest(made.question)[0] >= self.config.duplicate:
            return replace(made, reason=DUPLICATE)
        self.admit(made := replace(made, kept=True))
        return made

    def admit(self, candidate: Candidate) -> None:
        """What is kept is known from then on."""
        if candidate.kept:
            self.known.add(candidate.question)
