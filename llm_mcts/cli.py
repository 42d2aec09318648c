"""The command line: parse and call, nothing else.

    llm-mcts solve "QUESTION"             answer one question
    llm-mcts evaluate                     accuracy of several searches side by side
    llm-mcts self-improve --out RUN       search, train, gate, round after round
    llm-mcts runs [FOLDER]                the runs in a folder: how far, how good, what they cost
    llm-mcts status RUN                   where one run stands, and how long it will take
    llm-mcts report RUN                   write a run's report anew, also while the run is under way
    llm-mcts compare RUN RUN              two runs on the same questions, round against round, with paired intervals
    llm-mcts train KIND ROWS --out DIR    one trainer (sft, weighted, distill, dpo; value, prm, orm, genrm) on rows from a file
    llm-mcts label --out DIR              labels of solutions or steps, without people: rows for the critics
    llm-mcts rationales ROWS --out FILE   why solutions are right or wrong: rows for a verifier in words
    llm-mcts imagine --out DIR            new training questions from old ones
    llm-mcts diagnose CRITIC [CRITIC …]   whether critics rank solutions, are calibrated and choose well
    llm-mcts serve                        answer over HTTP, in OpenAI's form

Every command takes --config FILE.yaml and settings as --KEY VALUE, with dotted keys for nested ones
(--search.num_simulations 64); `llm-mcts COMMAND --help` lists them. --json prints JSON for machines.
Errors that a person can mend end in one line and exit status 2.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llm_mcts.config import load_config, settings_help
from llm_mcts.errors import ConfigError, LLMMCTSError, suggest
from llm_mcts.runs.interrupts import MENDABLE, end, signals_raise, tell

C = TypeVar("C")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0; 2 after an error that the user can mend; 128 + N after signal N."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, rest = argv[0], argv[1:]
    _quiet_libraries("--verbose" in rest)
    try:
        if command not in COMMANDS:
            raise ConfigError(f"no command '{command}'{suggest(command, COMMANDS)}")
        with signals_raise():
            COMMANDS[command]([word for word in rest if word != "--verbose"])
    except (Exception, KeyboardInterrupt) as error:
        if (status := end(error, argv)) is not None:
            return status
        if not isinstance(error, LLMMCTSError):
            raise
        tell(str(error))
        return MENDABLE
    return 0


def solve(argv: list[str]) -> None:
    """Answer one question."""
    from llm_mcts.runs.directory import load_tree, make_folder, save_tree
    from llm_mcts.settings import SolverConfig
    from llm_mcts.solver import Solver
    from llm_mcts.tree import Tree

    parser = _parser("solve", 'llm-mcts solve "Mia has 3 boxes with 4 shells each. How many shells does Mia have now?"')
    parser.add_argument("question", help="the question, as one argument")
    parser.add_argument("--tree", type=Path, help="file (.json or .json.gz) to keep the tree in; if it exists, search it on")
    args, config = _parse(parser, SolverConfig, argv)
    tree = None
    if args.tree:
        make_folder(args.tree.parent)
        tree = load_tree(args.tree) if args.tree.exists() else Tree(args.question)
    with Solver(config) as solver:
        try:
            result = solver.solve(args.question, tree=tree)
        finally:
            if tree is not None and tree.root.visit_count:
                save_tree(tree, args.tree)
    if args.json:
        print(json.dumps(result.to_dict(), ensure_ascii=False))
        return
    usage = result.usage
    print("\n".join(result.steps))
    print(f"answer: {result.answer if result.answer is not None else 'none found'} (confidence {result.confidence:.2f})")
    calls = f"{usage.lm_calls} calls, {usage.critic_calls} critic calls"
    print(f"cost: {usage.generated_tokens} tokens sampled in {calls}, {usage.seconds:.1f} s")


def evaluate(argv: list[str]) -> None:
    """Accuracy of several searches on the same questions."""
    from llm_mcts.evaluate import EvaluateConfig, evaluate_methods
    from llm_mcts.runs.progress import Reporter

    parser = _parser("evaluate", "llm-mcts evaluate --config configs/evaluate/arith.yaml --num_questions 100")
    parser.add_argument("--out", type=Path, help="folder for report.md, report.json, report.csv and the records")
    parser.add_argument("--resume", action="store_true", help="go on with the evaluation in --out")
    args, config = _parse(parser, EvaluateConfig, argv)
    if args.resume and not args.out:
        raise ConfigError("--resume needs --out FOLDER, the evaluation to go on with")
    report = evaluate_methods(config, Reporter(quiet=args.json), args.out, args.resume)
    print(json.dumps(report.to_dict()) if args.json else report.markdown)


def improve(argv: list[str]) -> None:
    """Self-improvement rounds."""
    from llm_mcts.runs.progress import Reporter
    from trainers.fit.processes import is_main_process
    from trainers.loop.self_improve import SelfImproveConfig, self_improve

    parser = _parser("self-improve", "llm-mcts self-improve --config configs/quickstart.yaml --out runs/first")
    parser.add_argument("--out", type=Path, required=True, help="the run directory")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    args, config = _parse(parser, SelfImproveConfig, argv)
    report = self_improve(config, args.out, args.resume, Reporter(quiet=args.json))
    if not is_main_process():
        return
    print(json.dumps({k: v for k, v in report.items() if k != "markdown"}) if args.json else report["markdown"])


def runs(argv: list[str]) -> None:
    """The runs in a folder: how far they are, how good, and what they have cost."""
    from llm_mcts.runs.status import find_runs, runs_table, show

    parser = _parser("runs", "llm-mcts runs runs", settings=False)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=Path("runs"), help="folder with run directories (default: runs)"
    )
    args = _parse_own(parser, argv)
    found = find_runs(args.folder)
    print(json.dumps([status.to_dict() for status in found])) if args.json else show(runs_table(found))


def status(argv: list[str]) -> None:
    """Where a run stands: stages done, the one under way, what it has cost, and how long it will take."""
    from llm_mcts.runs.status import run_status, show, status_table

    parser = _parser("status", "llm-mcts status runs/first", settings=False)
    parser.add_argument("run", type=Path, help="the run directory")
    args = _parse_own(parser, argv)
    found = run_status(args.run)
    print(json.dumps(found.to_dict())) if args.json else show(status_table(found))


def report(argv: list[str]) -> None:
    """Write a run's report.html, report.md and report.json anew, also while the run is under way."""
    from llm_mcts.runs.directory import RunDirectory
    from trainers.report.report import ReportConfig, write_reports

    parser = _parser("report", "llm-mcts report runs/first --trees_per_round 50")
    parser.add_argument("run", type=Path, help="the run directory")
    args, config = _parse(parser, ReportConfig, argv)
    found = write_reports(RunDirectory.existing(args.run), config)
    told = f"{found['state']}\nthe report is in {args.run / 'report.html'}"
    print(json.dumps({k: v for k, v in found.items() if k != "markdown"}) if args.json else told)


def compare(argv: list[str]) -> None:
    """Two runs on the same questions, round against round."""
    from llm_mcts.runs.directory import RunDirectory
    from llm_mcts.runs.reading import read_run
    from trainers.report.compare import compare_runs, comparison_table, other_settings

    parser = _parser("compare", "llm-mcts compare runs/sft runs/imagine", settings=False)
    parser.add_argument("a", type=Path, help="a run directory")
    parser.add_argument("b", type=Path, help="the one that is held against it")
    args = _parse_own(parser, argv)
    a, b = (read_run(RunDirectory.existing(run)) for run in (args.a, args.b))
    found = compare_runs(a, b)
    if args.json:
        print(json.dumps([one.to_dict() for one in found]))
        return
    print(comparison_table(found, *((a.name, b.name) if a.name != b.name else (str(args.a), str(args.b)))))
    if others := other_settings(a, b):
        print(f"The runs have other settings for {', '.join(others)}: what is compared are searches too.")


def train(argv: list[str]) -> None:
    """One trainer on rows from a file."""
    from trainers.fit.processes import is_main_process
    from trainers.loop.train_command import KINDS_OF_TRAINING, TrainJob, job_config, train_from_file

    parser = _parser("train", "llm-mcts train orm runs/first/round_001/rows/orm.jsonl --out models/orm")
    parser.add_argument("kind", choices=KINDS_OF_TRAINING, help="what to train")
    parser.add_argument("rows", type=Path, help="JSON lines as in RUN/round_001/rows")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    kind = next((word for word in argv if word in KINDS_OF_TRAINING), None)
    args, job = _parse(parser, job_config(kind) if kind else TrainJob, argv)
    metrics = train_from_file(args.kind, args.rows, args.out, job)
    if not is_main_process():
        return
    print(
        json.dumps(metrics)
        if args.json
        else f"{args.kind}: {metrics['rows']} rows, loss {metrics['loss']:.4f}, saved to {args.out}"
    )


def label(argv: list[str]) -> None:
    """Labels for a task's training questions, without people: outcomes, or steps by completions or from saved trees."""
    from llm_mcts.runs.progress import Reporter
    from trainers.labels.command import LabelConfig, told
    from trainers.labels.command import label as run

    parser = _parser("label", "llm-mcts label --method omega_prm --num_questions 100 --out labels")
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows, the records and report.json")
    parser.add_argument("--resume", action="store_true", help="go on with the labels in --out")
    args, config = _parse(parser, LabelConfig, argv)
    report = run(config, args.out, args.resume, Reporter(quiet=args.json))
    print(json.dumps(report) if args.json else told(report, args.out))


def rationales(argv: list[str]) -> None:
    """Rationales for a verifier to learn from, on rows from a file."""
    from trainers.labels.rationales import RationalesConfig, write_rationales
    from trainers.loop.train_command import read_verdicts

    parser = _parser("rationales", "llm-mcts rationales runs/first/round_001/rows/orm.jsonl --out rationales.jsonl")
    parser.add_argument("rows", type=Path, help="JSON lines with outcomes or verdicts")
    parser.add_argument("--out", type=Path, required=True, help="file for the rows with rationales")
    args, config = _parse(parser, RationalesConfig, argv)
    report = write_rationales(read_verdicts(args.rows), args.out, config)
    refused = ", ".join(f"{n} {reason}" for reason, n in report["refused"].items()) or "none"
    print(json.dumps(report) if args.json else f"{args.out}: {report['rows']} rows; refused: {refused}")


def imagine(argv: list[str]) -> None:
    """New questions from a task's training questions: other numbers, backward, in other words, or harder."""
    from llm_mcts.runs.progress import Reporter
    from trainers.questions.imagine.command import ImagineTaskConfig, imagine_from_task, told

    parser = _parser("imagine", "llm-mcts imagine --config configs/imagine/numbers.yaml --out imagined")
    parser.add_argument("--out", type=Path, required=True, help="folder for questions.jsonl, the records and report.json")
    parser.add_argument("--resume", action="store_true", help="go on with the questions in --out")
    args, config = _parse(parser, ImagineTaskConfig, argv)
    report = imagine_from_task(config, args.out, args.resume, Reporter(quiet=args.json))
    print(json.dumps(report) if args.json else told(report, args.out))


def diagnose(argv: list[str]) -> None:
    """Whether critics rank solutions of held-out questions, are calibrated, and choose better than a majority."""
    from critics.diagnosis.command import DiagnoseConfig, Requests
    from critics.diagnosis.command import diagnose as run
    from llm_mcts.runs.progress import Reporter
    from trainers.loop.train_command import read_step_rows

    parser = _parser("diagnose", "llm-mcts diagnose runs/first/round_002/checkpoints/orm --task.level hard --out diagnosis")
    parser.add_argument(
        "critics",
        type=Path,
        nargs="+",
        metavar="critic",
        help="checkpoint folder, or FORMAT:MODEL of a published one; one or several",
    )
    parser.add_argument("--out", type=Path, help="folder for the samples, report.md, report.json and reliability.png")
    parser.add_argument("--fit", type=Path, help="write a learned sum of the critics and the policy's likelihood to this file")
    parser.add_argument("--calibrate", type=Path, help="write the critics' calibrations to this file")
    parser.add_argument("--labels", type=Path, help="judge a PRM's steps by the labelled solutions in this file")
    parser.add_argument("--resume", action="store_true", help="go on with the samples in --out")
    args, config = _parse(parser, DiagnoseConfig, argv)
    if args.resume and not args.out:
        raise ConfigError("--resume needs --out FOLDER, the samples to go on with")
    folders = {folder.name.rpartition(":")[2]: folder for folder in args.critics}
    if len(folders) < len(args.critics):
        raise ConfigError("two critic folders have the same name; rename one, for names are the labels of the report")
    labels = (str(args.labels), read_step_rows(args.labels)) if args.labels else None
    requests = Requests(args.fit, args.calibrate, labels)
    report = run(folders, config, Reporter(quiet=args.json), args.out, args.resume, requests)
    print(json.dumps({k: v for k, v in report.items() if k != "markdown"}) if args.json else report["markdown"])


def serve(argv: list[str]) -> None:
    """Answer over HTTP, in OpenAI's form, until Ctrl-C."""
    from llm_mcts.serving.server import ServeConfig, Server

    parser = _parser("serve", "llm-mcts serve --port 8000 --solver.search.name mcts --solver.search.num_simulations 16")
    args, config = _parse(parser, ServeConfig, argv)
    server = Server(config)
    if server.warning:
        print(f"llm-mcts: {server.warning}", file=sys.stderr)
    ready = {"url": server.url, "model": config.name}
    print(json.dumps(ready) if args.json else f"serving {config.name} at {server.url} (Ctrl-C stops)", flush=True)
    server.run()


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "solve": solve,
    "evaluate": evaluate,
    "self-improve": improve,
    "runs": runs,
    "status": status,
    "report": report,
    "compare": compare,
    "train": train,
    "label": label,
    "rationales": rationales,
    "imagine": imagine,
    "diagnose": diagnose,
    "serve": serve,
}


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> Any:
        """Raise instead of exiting."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser(command: str, example: str, settings: bool = True) -> argparse.ArgumentParser:
    parser = _Parser(
        f"llm-mcts {command}",
        description=COMMANDS[command].__doc__,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="show this help")
    if settings:
        parser.add_argument("--config", type=Path, help="YAML file with settings")
    parser.add_argument("--json", action="store_true", help="print JSON for machines, and no progress")
    parser.add_argument("--verbose", action="store_true", help="show the libraries' warnings")
    return parser


def _parse(parser: argparse.ArgumentParser, cls: type[C], argv: list[str]) -> tuple[argparse.Namespace, C]:
    """The command's own arguments, and the settings from --config and --KEY VALUE pairs."""
    if "-h" in argv or "--help" in argv:
        print(f"{parser.format_help()}\nsettings:\n{settings_help(cls)}")
        raise SystemExit(0)
    own, settings = _split(argv)
    args, rest = parser.parse_known_args(own)
    if rest:
        raise ConfigError(f"unexpected argument '{rest[0]}'; expected --KEY VALUE (put a question in quotes)")
    overrides: dict[str, Any] = {}
    for key, value in settings.items():
        try:
            overrides[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"value of --{key} is not readable: {value!r}; quote it") from error
    return args, load_config(cls, args.config, overrides)


def _parse_own(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """The arguments of a command that has no settings."""
    if "-h" in argv or "--help" in argv:
        print(parser.format_help())
        raise SystemExit(0)
    return parser.parse_args(argv)


OWN = {"--json", "--resume", "--verbose", "--config", "--out", "--tree", "--fit", "--calibrate", "--labels"}
"""Options that belong to a command; every other --KEY is a setting and has a value."""


def _split(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command's own words and options, and the settings, wherever they stand among them."""
    own: list[str] = []
    settings: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        key, equals, value = word.partition("=")
        if not word.startswith("--") or key in OWN:
            own.append(word)
            continue
        following = value if equals else next(words, None)
        if following is None:
            raise ConfigError(f"setting {key} has no value; expected {key} VALUE")
        settings[key[2:]] = following
    return own, settings


def _quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' progress bars and advice off the screen unless asked for."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO if verbose else logging.ERROR)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


if __name__ == "__main__":
    sys.exit(main())
