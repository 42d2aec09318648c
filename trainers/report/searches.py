"""What a round's search left: its questions, its trees, and how well the scores that guided it separated right from wrong.

The scores are those the search itself used, of whole solutions: of the tree's ends and of rollouts. Solutions without an
answer count 0 by definition and are left out, as are repetitions of a text. Outcomes are the task's check against the gold
answer, so imagined and unlabelled questions are left out too: their answers are only agreed upon.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from critics.metrics import Bin, Estimate, Sample, auc, brier, calibration_error, reliability, within_question_auc
from llm_mcts.config import load_config
from llm_mcts.runs.reading import Round, Run
from llm_mcts.tasks import TaskConfig
from llm_mcts.tasks.base import Task
from llm_mcts.tree import Tree
from llm_mcts.viewer.page import tree_page

WITH_GOLD = ("train", "revisited")
GROUPS = {"new": ("train",), "revisited": ("revisited",)}


@dataclass(frozen=True)
class CriticFigures:
    """How well a round's search was guided."""

    round: int
    questions: str
    """Which: all, new or revisited."""
    within: Estimate | None
    """AUC over pairs of one question; None where no question has right and wrong solutions."""
    over_all: float | None
    brier: float
    calibration_error: float
    samples: int
    reliability: Sequence[Bin]


@dataclass(frozen=True)
class TreeLink:
    """A tree that has a page."""

    round: int
    id: str
    question: str
    source: str
    href: str
    """Relative to the report."""
    answer: str | None
    gold: str | None
    correct: bool | None
    nodes: int
    solutions: int


@dataclass(frozen=True)
class Searched:
    """What became of a round's questions."""

    round: int
    sources: Mapping[str, int]
    """Questions by where they come from; empty where the run does not tell."""
    imagined: Mapping[str, Mapping[str, int]]
    """Kind of imagined question -> kept, or reason it was not, -> how many."""
    critic: bool | None
    """Whether a model critic guided the search; None before there is a tree."""
    figures: Sequence[CriticFigures]
    trees: Sequence[TreeLink]


def read_searches(run: Run, trees_per_round: int) -> list[Searched]:
    """Go through the trees, a round at a time; writes the pages of `trees_per_round` of each."""
    task = load_config(TaskConfig, run.config["task"]).build() if "task" in run.config else None
    return [_searched(run, here, task, trees_per_round) for here in run.rounds[1:]]


def _searched(run: Run, here: Round, task: Task | None, limit: int) -> Searched:
    questions = {row["id"]: row for row in here.directory.questions.read()}
    sources = Counter(str(row["source"]) for row in questions.values())
    imagined: dict[str, Counter[str]] = {}
    for row in here.directory.imagined.read():
        why = "kept" if row["kept"] else str(row.get("reason") or "no reason noted")
        imagined.setdefault(str(row.get("kind") or "imagined"), Counter())[why] += 1
    records = here.directory.trees.read()
    critic = any(record["usage"]["critic_calls"] for record in records) if records else None
    figures: list[CriticFigures] = []
    if critic and task:
        groups = _samples(records, questions, task)
        figures = [
            f for name, sources_ in {"all": WITH_GOLD, **GROUPS}.items() if (f := _figures(here, name, sources_, groups))
        ]
        if len(figures) == 2:  # all of them are of one group
            figures = figures[1:]
    links = [_page(run, here, record, questions.get(record["id"], {})) for record in _chosen(records, limit)]
    return Searched(here.number, dict(sources), {k: dict(v) for k, v in imagined.items()}, critic, figures, links)


def _samples(
    records: Sequence[Mapping[str, Any]], questions: Mapping[str, Mapping[str, Any]], task: Task
) -> dict[str, list[list[Sample]]]:
    """Source -> the scored solutions of each of its questions."""
    groups: dict[str, list[list[Sample]]] = {source: [] for source in WITH_GOLD}
    for record in records:
        asked = questions.get(record["id"])
        if "tree" not in record or asked is None or asked["gold"] is None or asked["source"] not in groups:
            continue
        scored: dict[str, Sample] = {}
        for trace in Tree.from_dict(record["tree"]).traces():
            if trace.score is not None and trace.state.answer is not None:
                text = trace.state.text
                scored.setdefault(text, Sample(trace.score, task.check(text, asked["gold"]), trace.state.answer))
        groups[asked["source"]].append(list(scored.values()))
    return groups


def _figures(
    here: Round, name: str, sources: Sequence[str], by_source: Mapping[str, list[list[Sample]]]
) -> CriticFigures | None:
    groups = [group for source in sources for group in by_source[source] if group]
    everything = [sample for group in groups for sample in group]
    if not everything:
        return None
    return CriticFigures(
        here.number,
        name,
        within_question_auc(groups),
        auc(everything),
        brier(everything),
        calibration_error(everything),
        len(everything),
        reliability(everything),
    )


def _chosen(records: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """Up to `limit` records with a tree, half of them answered wrongly where there are enough, in their order."""
    with_tree = [record for record in records if record.get("tree")]
    wrong = [record for record in with_tree if not record["correct"]]
    right = [record for record in with_tree if record["correct"]]
    n_wrong = min(len(wrong), max(limit // 2, limit - len(right)))
    taken = {record["id"] for record in [*wrong[:n_wrong], *right[: limit - n_wrong]]}
    return [record for record in with_tree if record["id"] in taken]


def _page(run: Run, here: Round, record: Mapping[str, Any], asked: Mapping[str, Any]) -> TreeLink:
    """Write the page of one tree."""
    tree = Tree.from_dict(record["tree"])
    source, gold = str(asked.get("source", "")), asked.get("gold")
    facts = {"chosen answer": record["answer"] or "none"}
    if gold is not None:
        facts[_gold_name(source)] = gold
    if record["correct"] is not None:
        facts["verdict"] = "right" if record["correct"] else "wrong"
    file = run.directory.tree_page(here.number, record["id"])
    run.directory.write_page(file, tree_page(tree, f"Round {here.number}: {record['id']}", facts))
    return TreeLink(
        here.number,
        record["id"],
        tree.question,
        source,
        file.relative_to(run.directory.path).as_posix(),
        record["answer"],
        gold,
        record["correct"],
        len(tree),
        len(tree.traces()),
    )


def _gold_name(source: str) -> str:
    return "gold answer" if source in ("", *WITH_GOLD) else "agreed answer"
