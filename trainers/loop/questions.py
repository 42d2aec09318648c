"""What a round searches: given, imagined and unlabelled questions; none of them is answered for the gate or the test.

Given questions are compared with the held-out and test questions word by word, new ones by their n-grams
(`trainers.questions.imagine.overlap`).
"""

from dataclasses import replace
from typing import Any

from llm_mcts.errors import DataError
from llm_mcts.policy import LMPolicy
from llm_mcts.runs.directory import RoundDirectory, RunDirectory
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.progress import Reporter
from llm_mcts.seeding import derive_seed
from llm_mcts.tasks.base import require_answers
from llm_mcts.tasks.guard import GuardedTask
from llm_mcts.tasks.jsonl import JsonlTask
from llm_mcts.types import Problem
from trainers.loop.config import SelfImproveConfig
from trainers.loop.replay import pass_rates
from trainers.questions.curriculum import Chosen, choose
from trainers.questions.imagine.imagine import as_problems, candidates_of, imagine_questions
from trainers.questions.imagine.overlap import OverlapIndex


class Questions:
    """The questions of a run."""

    def __init__(self, config: SelfImproveConfig, task: GuardedTask, directory: RunDirectory, reporter: Reporter) -> None:
        self.config, self.task, self.directory, self.reporter = config, task, directory, reporter

    @property
    def pool(self) -> list[Problem]:
        """The training questions of the whole run."""
        return self.task.load("train", self.config.train_questions * self.config.num_rounds)

    def refuse_known(self) -> None:
        """Check that no training question is evaluated: accuracy on questions that were trained on would tell nothing.

        Raises:
            DataError: a training question is a held-out or test question too.
        """
        known = {_plain(problem.question) for problem in self.pool}
        for split, n in (("dev", self.config.eval_questions), ("test", self.config.test_questions)):
            texts = self.task.texts_only(split, n) if n else []
            if shared := sum(_plain(text) in known for text in texts):
                raise DataError(
                    f"{shared} of {len(texts)} questions of split {split} are training questions too; expected others: for "
                    "your own questions a folder with train.jsonl, dev.jsonl and test.jsonl, or fewer train_questions"
                )

    def given(self, number: int) -> list[Chosen]:
        """Training questions of round `number`: fresh ones, and earlier ones where the curriculum asks for them.

        Raises:
            DataError: one has no answer.
        """
        pool = self.pool
        require_answers(pool, "of split train", " (questions without answers go into the file `unlabelled`)")
        rates = pass_rates(self.directory.round(i).rows("trajectories").whole() for i in range(1, number))
        seed = derive_seed(self.config.seed, "questions", number)
        return choose(pool, rates, self.config.train_questions, self.config.curriculum, seed)

    def imagine(self, number: int, journal: Journal, policy: LMPolicy | None) -> None:
        """Make new questions of a round's given ones, by rule or by `policy`; kept and refused ones go to the journal."""
        config = replace(self.config.imagine, max_candidates=self.config.imagined_questions)
        parents = [chosen.problem for chosen in self.given(number)]
        seed = derive_seed(self.config.seed, "imagine", number)
        imagine_questions(parents, config, policy, self._kept_away(), self.pool, journal, seed, self.reporter)

    def choose(self, number: int, imagined: Journal) -> list[Chosen]:
        """What round `number` searches: given questions, those that were imagined, and unlabelled ones."""
        made = as_problems(candidates_of(imagined.whole())) if self.config.imagined_questions else []
        return [*self.given(number), *(Chosen(problem, "imagined") for problem in made), *self.unlabelled(number)]

    def unlabelled(self, number: int) -> list[Chosen]:
        """The next of the user's questions without answers, but those near a held-out or test question.

        Answers that the file has all the same are ignored.
        """
        if self.config.unlabelled is None:
            return []
        n, overlap = self.config.unlabelled_questions, self.config.imagine.overlap
        found = JsonlTask(self.config.unlabelled).load("train", n * number)[n * (number - 1) :]
        kept_away = OverlapIndex(self._kept_away() if found else [], overlap.ngram, overlap.mask_numbers)
        far = [p for p in found if kept_away.nearest(p.question)[0] < overlap.threshold]
        if len(far) < len(found):
            self.reporter.say(
                f"round {number}: {len(found) - len(far)} of {len(found)} unlabelled questions are left out: near a held-out "
                "or test question (imagine.overlap)"
            )
        return [Chosen(Problem(f"unlabelled-{p.id}", p.question), "unlabelled") for p in far]

    def check_unlabelled(self) -> None:
        """Read the file of questions without answers.

        Raises:
            DataError: it cannot be read.
        """
        if self.config.unlabelled is not None:
            JsonlTask(self.config.unlabelled).load("train")

    def _kept_away(self) -> list[str]:
        """Texts that new questions must not be near: the splits whole, and of endless ones what is answered."""
        n = {"dev": self.config.eval_questions, "test": self.config.test_questions}
        texts = [self.task.texts_only(split, limit) for split, asked in n.items() for limit in (None, asked) if limit != 0]
        return list(dict.fromkeys(text for found in texts for text in found))


def _plain(question: str) -> str:
    """A text in lower case, with single blanks."""
    return " ".join(question.lower().split())


def chosen_questions(files: RoundDirectory) -> list[Chosen]:
    """The questions that a round searches, as its files have them."""
    rows = files.questions.whole()
    return [Chosen(Problem(row["id"], row["question"], row["gold"]), row["source"], row["pass_rate"]) for row in rows]


def question_row(problem: Problem, source: str, pass_rate: float | None = None) -> dict[str, Any]:
    """A question as a round's files have it."""
    row = {"id": problem.id, "question": problem.question, "gold": problem.gold}
    return {**row, "source": source, "pass_rate": pass_rate}
