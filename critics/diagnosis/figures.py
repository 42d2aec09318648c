"""What is known of one critic, computed from its scores: figures, tables and plots."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from critics.metrics import (
    Estimate,
    Group,
    Sample,
    any_of,
    auc,
    best_of,
    brier,
    calibration_error,
    mean_over,
    prefix_groups,
    reliability,
    verdict,
    voted,
    within_question_auc,
)
from critics.scoring.calibration import METHODS, Calibration, Method, cross_fitted, fit_calibration
from llm_mcts.runs.progress import Reporter


@dataclass(frozen=True)
class Diagnosis:
    """What is known of one critic."""

    kind: str
    verdict: str
    auc_within: Estimate | None
    """AUC over pairs of one question: what a search needs."""
    auc_over_all: float | None
    """AUC over all samples; it also counts that easy questions have more right ones."""
    brier: float
    calibration_error: float
    reliability: list[dict[str, float]]
    by_n: dict[int, dict[str, Estimate]]
    """n -> share right of: best (by this critic), vote (weighted by it), majority, any (a perfect critic)."""
    prefixes: dict[int, Estimate]
    """steps -> AUC within questions of unfinished solutions of that many steps against their outcome."""


@dataclass(frozen=True)
class CalibrationFigures:
    """How far scores are from chances."""

    brier: float
    calibration_error: float
    reliability: list[dict[str, float]]


@dataclass(frozen=True)
class CalibrationCheck:
    """What calibration does to one critic."""

    kind: str
    questions: int
    samples: int
    figures: dict[str, CalibrationFigures]
    """before, platt and temperature; the latter on each half of the questions as fitted to the other."""
    fitted: dict[str, Calibration]
    """Method -> what was fitted to all questions."""
    chosen: Method
    """The method that is saved."""


def check_calibration(kind: str, groups: Sequence[Group], chosen: Method) -> CalibrationCheck:
    """Fit every method and judge it on questions it was not fitted to.

    Raises:
        DataError: a half of the questions has right solutions only, or wrong ones.
    """
    everything = [sample for group in groups for sample in group]
    figures = {"before": _calibration_figures(groups)}
    figures |= {method: _calibration_figures(cross_fitted(groups, method)) for method in METHODS}
    fitted: dict[str, Calibration] = {method: fit_calibration(everything, method) for method in METHODS}
    return CalibrationCheck(kind, len(groups), len(everything), figures, fitted, chosen)


def _calibration_figures(groups: Sequence[Group]) -> CalibrationFigures:
    samples: list[Sample] = [sample for group in groups for sample in group]
    return CalibrationFigures(brier(samples), calibration_error(samples), [asdict(b) for b in reliability(samples)])


def judge(kind: str, groups: Sequence[Group], prefixes: Sequence[Sequence[Sequence[float]]] = ()) -> Diagnosis:
    """All figures of one critic's scores; of unfinished solutions too where `prefixes` has their scores."""
    # What states no answer is worth 0 to every search; a critic earns nothing by ranking it last.
    answered = [[sample for sample in group if sample.answer is not None] for group in groups]
    everything = [sample for group in answered for sample in group]
    size = min(map(len, groups))
    numbers = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < size] + [size]
    by_n = {
        n: {
            "best": mean_over(groups, lambda g, n=n: best_of(g, n)),  # type: ignore[misc]
            "vote": mean_over(groups, lambda g, n=n: voted(g, n, weighted=True)),  # type: ignore[misc]
            "majority": mean_over(groups, lambda g, n=n: voted(g, n, weighted=False)),  # type: ignore[misc]
            "any": mean_over(groups, lambda g, n=n: any_of(g, n)),  # type: ignore[misc]
        }
        for n in numbers
    }
    within = within_question_auc(answered)
    gain = mean_over(groups, lambda g: best_of(g, size) - voted(g, size, weighted=False))
    vote_gain = mean_over(groups, lambda g: voted(g, size, weighted=True) - voted(g, size, weighted=False))
    by_steps = {k: within_question_auc(found) for k, found in (prefix_groups(prefixes, groups) if prefixes else {}).items()}
    return Diagnosis(
        kind,
        verdict(within, gain, vote_gain, size),
        within,
        auc(everything),
        brier(everything),
        calibration_error(everything),
        [asdict(b) for b in reliability(everything)],
        by_n,
        {k: found for k, found in by_steps.items() if found},
    )


def to_markdown(
    diagnoses: Mapping[str, Diagnosis],
    agreements: Mapping[str, Estimate | None],
    steps: Mapping[str, Sequence[str]],
    calibrations: Mapping[str, CalibrationCheck],
) -> str:
    """The report for people; `steps` holds further lines of a critic's section."""
    lines = []
    for label, d in diagnoses.items():
        over_all = "–" if d.auc_over_all is None else f"{d.auc_over_all:.3f}"
        lines += [
            f"## {label} ({d.kind})",
            "",
            f"**{d.verdict[0].upper()}{d.verdict[1:]}.**",
            "",
            f"- AUC within questions {d.auc_within or '–'}; over all samples {over_all} (flatters)",
            f"- Brier score {d.brier:.3f}, expected calibration error {d.calibration_error:.3f}",
            "",
            "| n | best by this critic | weighted vote | majority | any right |",
            "|---:|---|---|---|---|",
        ]
        for n, row in d.by_n.items():
            cells = (f"{100 * e.value:.1f} % [{100 * e.low:.1f}, {100 * e.high:.1f}]" for e in row.values())
            lines.append(f"| {n} | " + " | ".join(cells) + " |")
        if d.prefixes:
            lines += ["", "| steps written | AUC within questions against the outcome | questions |", "|---:|---|---:|"]
            lines += [f"| {k} | {found} | {found.questions} |" for k, found in d.prefixes.items()]
        lines += [*steps.get(label, ()), ""]
    if calibrations:
        lines += _calibration_lines(calibrations)
    if agreements:
        lines += ["## Agreement", "", "Share of the pairs of one question that two critics order alike:", ""]
        lines += [f"- {pair}: {found or '–'}" for pair, found in agreements.items()]
        lines.append("")
    return "\n".join(lines)


def _calibration_lines(calibrations: Mapping[str, CalibrationCheck]) -> list[str]:
    lines = ["## Calibration", "", "Each half of the questions is judged by what was fitted to the other half.", ""]
    lines += ["| critic | scores | expected calibration error | Brier score | a | b |", "|---|---|---:|---:|---:|---:|"]
    for label, check in calibrations.items():
        for name, figures in check.figures.items():
            fit = check.fitted.get(name)
            a, b = (f"{fit.scale:.3f}", f"{fit.bias:.3f}") if fit else ("", "")
            lines.append(f"| {label} | {name} | {figures.calibration_error:.3f} | {figures.brier:.3f} | {a} | {b} |")
    return [*lines, "", "a and b as fitted to all questions: sigmoid(a logit(score) + b).", ""]


def plot_reliability(diagnoses: Mapping[str, Diagnosis], path: Path, reporter: Reporter) -> None:
    """Share right against score, one line a critic."""
    curves = [
        (f"{label} (error {d.calibration_error:.2f})", [(b["score"], b["right"]) for b in d.reliability], "-")
        for label, d in diagnoses.items()
    ]
    _plot(curves, "Reliability", path, reporter)


def plot_calibration(calibrations: Mapping[str, CalibrationCheck], path: Path, reporter: Reporter) -> None:
    """Reliability before and after calibration."""
    curves = [
        (f"{label}, {name} (error {f.calibration_error:.2f})", [(b["score"], b["right"]) for b in f.reliability], style)
        for label, check in calibrations.items()
        for (name, f), style in zip(check.figures.items(), ("--", "-", ":"), strict=True)
    ]
    _plot(curves, "Reliability before and after calibration", path, reporter)


def _plot(curves: Sequence[tuple[str, Sequence[tuple[float, float]], str]], title: str, path: Path, reporter: Reporter) -> None:
    """Curves of (label, points, line style) over the diagonal."""
    try:
        import matplotlib
    except ImportError:
        reporter.say(f"{path.name} is left out: matplotlib is not installed (pip install matplotlib)")
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 5.5))
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for label, points, style in curves:
        axis.plot([x for x, _ in points], [y for _, y in points], style, marker="o", markersize=4, label=label)
    axis.set(xlabel="score", ylabel="share right", xlim=(0, 1), ylim=(0, 1), title=title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
