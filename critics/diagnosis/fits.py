"""What is fitted to a diagnosis's samples: a learned sum of the critics, and their calibrations.

Both are judged on questions that they were not fitted to; what is saved is fitted to all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from critics.assemble.loading import weights_folder
from critics.diagnosis.figures import CalibrationCheck, Diagnosis, check_calibration, judge
from critics.kinds import Kind
from critics.metrics import Group, Sample
from critics.scoring.calibration import Fitted, Method, head_hash, save_calibrations
from critics.scoring.combine import Combination, fit_combination, rank_average
from llm_mcts.settings import Aggregate

Prefixes = list[list[list[float]]]
"""For each question and sample the scores of its prefixes: of the bare question, then after each step."""


def judge_sums(
    kinds: Mapping[str, Kind],
    scored: dict[str, list[list[Sample]]],
    rows: Sequence[Mapping[str, Any]],
    prm_aggregate: Aggregate,
    file: Path,
) -> dict[str, Diagnosis]:
    """Judge the learned sum and the average of ranks, adding their scores to `scored`; write the sum to `file`."""
    named = {kind: scored[label] for label, kind in kinds.items()} | {"likelihood": scored["likelihood"]}
    scored["combined"] = _cross_fitted(named, rows, prm_aggregate)
    scored["rank_average"] = _rank_averaged(list(named.values()))
    _fit(named, list(range(len(rows))), prm_aggregate).save(file)
    return {
        "combined": judge("learned sum", scored["combined"]),
        "rank_average": judge("mean of ranks", scored["rank_average"]),
    }


def _rank_averaged(columns: Sequence[Sequence[Group]]) -> list[list[Sample]]:
    """Scores as mean ranks among the answered samples of a question: what a search ranks."""
    found = []
    for groups in zip(*columns, strict=True):
        answered = [i for i, sample in enumerate(groups[0]) if sample.answer is not None]
        ranks = iter(rank_average([[group[i].score for i in answered] for group in groups]))
        found.append([replace(s, score=0.0 if s.answer is None else next(ranks)) for s in groups[0]])
    return found


def calibrate(
    folders: Mapping[str, Path],
    kinds: Mapping[str, Kind],
    scored: Mapping[str, Sequence[Group]],
    prefixes: Mapping[str, Prefixes],
    method: Method,
    prm_aggregate: Aggregate,
    file: Path,
) -> dict[str, CalibrationCheck]:
    """Calibrate every critic on what it is asked in a search: a value model on all prefixes, the others on whole solutions."""
    checks = {}
    for label, kind in kinds.items():
        groups = [[sample for sample in group if sample.answer is not None] for group in scored[label]]
        if kind == "value":
            groups = [
                [Sample(score, s.right) for p, s in zip(found, group, strict=True) if s.answer is not None for score in p[1:]]
                for found, group in zip(prefixes[label], scored[label], strict=True)
            ]
        checks[label] = check_calibration(kind, groups, method)
    fitted = {
        kinds[label]: Fitted(
            c.fitted[c.chosen],
            c.chosen,
            head_hash(weights_folder(folders[label])),
            c.questions,
            c.samples,
            prm_aggregate,
        )
        for label, c in checks.items()
    }
    save_calibrations(fitted, file)
    return checks


def samples_of(rows: Sequence[Mapping[str, Any]], scores: Sequence[Sequence[float]]) -> list[list[Sample]]:
    """The samples with their scores. One that states no answer is worth 0 by definition, as in every search."""
    return [
        [
            Sample(score if s["answer"] is not None else 0.0, s["right"], s["answer"])
            for score, s in zip(found, row["samples"], strict=True)
        ]
        for found, row in zip(scores, rows, strict=True)
    ]


def _fit(named: Mapping[str, Sequence[Group]], questions: Sequence[int], prm_aggregate: str) -> Combination:
    """The learned sum on these questions' answered samples."""
    first = next(iter(named.values()))
    places = [(q, i) for q in questions for i, sample in enumerate(first[q]) if sample.answer is not None]
    scores = [{name: groups[q][i].score for name, groups in named.items()} for q, i in places]
    return fit_combination(scores, [first[q][i].right for q, i in places], prm_aggregate)


def _cross_fitted(
    named: Mapping[str, Sequence[Group]], rows: Sequence[Mapping[str, Any]], prm_aggregate: str
) -> list[list[Sample]]:
    """The learned sum's scores of each half of the questions by the weights of the other half."""
    halves = [list(range(0, len(rows), 2)), list(range(1, len(rows), 2))]
    fitted = [_fit(named, halves[1], prm_aggregate), _fit(named, halves[0], prm_aggregate)]
    scores = [
        [fitted[q % 2]({name: groups[q][i].score for name, groups in named.items()}) for i in range(len(row["samples"]))]
        for q, row in enumerate(rows)
    ]
    return samples_of(rows, scores)
