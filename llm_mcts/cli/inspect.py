"""Commands that look at what there is: runs, status, report, compare, diagnose, presets."""

import json
from pathlib import Path

from llm_mcts.cli.parsing import CommandParser, Names
from llm_mcts.errors import ConfigError


def runs(argv: list[str]) -> None:
    """List the runs in a folder: progress, accuracy, cost."""
    from llm_mcts.runs.status import find_runs, runs_table, show

    parser = CommandParser("runs", "List the runs in a folder: progress, accuracy, cost.", "llm-mcts runs runs", settings=False)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder with run directories (default: runs)"
    )
    args = parser.parse_own(argv)
    found = find_runs(args.folder)
    print(json.dumps([status.to_dict() for status in found])) if args.json else show(runs_table(found))


def status(argv: list[str]) -> None:
    """Show one run: finished stages, the one in progress, cost and time left."""
    from llm_mcts.runs.status import run_status, show, status_table

    about = "Show one run: finished stages, the one in progress, cost and time left."
    parser = CommandParser("status", about, "llm-mcts status runs/first", settings=False)
    parser.add_argument("run", type=Path, help="the run directory")
    args = parser.parse_own(argv)
    found = run_status(args.run)
    print(json.dumps(found.to_dict())) if args.json else show(status_table(found))


def report(argv: list[str]) -> None:
    """Rebuild a run's report, also while the run is in progress."""
    from llm_mcts.runs.directory import RunDirectory
    from trainers.report.report import ReportConfig, write_reports

    about = "Rebuild a run's report.html, report.md and report.json, also while the run is in progress."
    parser = CommandParser("report", about, "llm-mcts report runs/first --trees_per_round 50")
    parser.add_argument("run", type=Path, help="the run directory")
    args, config = parser.parse(argv, ReportConfig)
    found = write_reports(RunDirectory.existing(args.run), config)
    summary = f"{found['state']}\nthe report is in {args.run / 'report.html'}"
    print(json.dumps({k: v for k, v in found.items() if k != "markdown"}) if args.json else summary)


def compare(argv: list[str]) -> None:
    """Compare two runs round by round, with paired intervals."""
    from llm_mcts.runs.directory import RunDirectory
    from llm_mcts.runs.reading import read_run
    from trainers.report.compare import compare_runs, comparison_table, other_settings

    about = "Compare two runs on the same questions round by round, with paired intervals."
    parser = CommandParser("compare", about, "llm-mcts compare runs/sft runs/imagine", settings=False)
    parser.add_argument("a", type=Path, help="a run directory")
    parser.add_argument("b", type=Path, help="the run directory that is compared with it")
    args = parser.parse_own(argv)
    a, b = (read_run(RunDirectory.existing(run)) for run in (args.a, args.b))
    found = compare_runs(a, b)
    if args.json:
        print(json.dumps([row.to_dict() for row in found]))
        return
    print(comparison_table(found, *((a.name, b.name) if a.name != b.name else (str(args.a), str(args.b)))))
    if others := other_settings(a, b):
        print(f"The runs have other settings for {', '.join(others)}: what is compared are searches too.")


def diagnose(argv: list[str]) -> None:
    """Judge critics: do they rank, are they calibrated, do they choose well?"""
    from critics.diagnosis.command import DiagnoseConfig, Requests
    from critics.diagnosis.command import diagnose as run
    from llm_mcts.runs.progress import Reporter
    from trainers.loop.train_command import read_step_rows

    main: Names = (
        "task.name",
        "task.path",
        "task.level",
        "split",
        "num_questions",
        "num_samples",
        "prm_aggregate",
        "concurrency",
    )
    main += ("solver.engine.name", "solver.engine.model", "solver.policy.temperature")
    about = "Judge critics on held-out questions: do they rank, are they calibrated, do they choose better than a majority?"
    example = "llm-mcts diagnose runs/first/round_002/checkpoints/orm --task.level hard --out diagnosis"
    parser = CommandParser("diagnose", about, example, main)
    what = "checkpoint folder, or FORMAT:MODEL of a published one; one or several"
    parser.add_argument("critics", type=Path, nargs="+", metavar="critic", help=what)
    parser.add_out("folder for the samples, report.md, report.json and reliability.png", required=False)
    parser.add_argument("--fit", type=Path, help="write a learned sum of the critics and the policy's likelihood to this file")
    parser.add_argument("--calibrate", type=Path, help="write the critics' calibrations to this file")
    parser.add_argument("--labels", type=Path, help="judge a PRM's steps by the labelled solutions in this file")
    args, config = parser.parse(argv, DiagnoseConfig)
    folders = {folder.name.rpartition(":")[2]: folder for folder in args.critics}
    if len(folders) < len(args.critics):
        raise ConfigError("two critic folders have the same name; rename one, because names are the labels of the report")
    labels = (str(args.labels), read_step_rows(args.labels)) if args.labels else None
    requests = Requests(args.fit, args.calibrate, labels)
    found = run(folders, config, Reporter(quiet=args.json), args.out, args.resume, requests)
    print(json.dumps({k: v for k, v in found.items() if k != "markdown"}) if args.json else found["markdown"])


def presets(argv: list[str]) -> None:
    """List the presets that --config preset:NAME takes."""
    from llm_mcts.config import preset_files

    parser = CommandParser("presets", "List the presets that --config preset:NAME takes.", "llm-mcts presets", settings=False)
    args = parser.parse_own(argv)
    found = {name: file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ") for name, file in preset_files().items()}
    print(json.dumps(found) if args.json else "\n".join(f"{name:<32} {about}" for name, about in found.items()))
