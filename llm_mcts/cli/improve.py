"""Commands that make models better: self-improve, train, label, rationales, imagine."""

import json
from pathlib import Path

from llm_mcts.cli.parsing import CommandParser, Names
from llm_mcts.cli.use import MODEL
from llm_mcts.errors import ConfigError, suggest

TASK = ("task.name", "task.path", "task.level", "split", "num_questions")
OPTIMISER = ("epochs", "learning_rate", "batch_size", "accumulation", "max_length", "lora.rank")


def self_improve(argv: list[str]) -> None:
    """Run self-improvement rounds: search, train, keep what passes the gate."""
    from llm_mcts.runs.progress import Reporter
    from trainers.fit.processes import is_main_process
    from trainers.loop.self_improve import SelfImproveConfig
    from trainers.loop.self_improve import self_improve as run

    main: Names = (
        "task.name",
        "task.path",
        "task.level",
        "num_rounds",
        "train_questions",
        "eval_questions",
        "test_questions",
    )
    main += ("policy_loss.method", "critics", "methods", "gate.rule", *(f"policy.{name}" for name in OPTIMISER), "seed")
    main += ("solver.engine.name", "solver.engine.model", "solver.search", "solver.search.num_simulations", "concurrency")
    about = "Run self-improvement rounds: search, train critics and policy on the trees, keep what passes the gate."
    example = "llm-mcts self-improve --config preset:quickstart --out runs/first"
    parser = CommandParser("self-improve", about, example, main)
    parser.add_out("the run directory")
    args, config = parser.parse(argv, SelfImproveConfig)
    report = run(config, args.out, args.resume, Reporter(quiet=args.json))
    if is_main_process():
        print(json.dumps({k: v for k, v in report.items() if k != "markdown"}) if args.json else report["markdown"])


def train(argv: list[str]) -> None:
    """Train a policy or a critic on rows from a file."""
    from trainers.fit.processes import is_main_process
    from trainers.loop.train_command import KINDS_OF_TRAINING, TrainJob, job_config, train_from_file

    kinds = ", ".join(KINDS_OF_TRAINING)
    about = f"Train on rows from a file. KIND is one of {kinds}; llm-mcts train KIND --help shows its settings."
    kind = next((word for word in argv if not word.startswith("-")), "")
    if kind and kind not in KINDS_OF_TRAINING:
        raise ConfigError(f"no trainer '{kind}'{suggest(kind, KINDS_OF_TRAINING)}")
    parser = CommandParser("train", about, "llm-mcts train orm runs/first/round_001/rows/orm.jsonl --out models/orm")
    parser.add_argument("kind", metavar="KIND", choices=KINDS_OF_TRAINING, help="what to train")
    parser.add_argument("rows", type=Path, help="JSON lines as in RUN/round_001/rows")
    parser.add_out("folder for the checkpoint", resume=False)
    args, job = parser.parse(argv, job_config(kind) if kind else TrainJob)
    metrics = train_from_file(args.kind, args.rows, args.out, job)
    if is_main_process():
        summary = f"{args.kind}: {metrics['rows']} rows, loss {metrics['loss']:.4f}, saved to {args.out}"
        print(json.dumps(metrics) if args.json else summary)


def label(argv: list[str]) -> None:
    """Label solutions or steps automatically: training rows for the critics."""
    from llm_mcts.runs.progress import Reporter
    from trainers.labels.command import LabelConfig, summary_text
    from trainers.labels.command import label as run

    main: Names = (
        "method",
        *TASK,
        "num_solutions",
        "num_completions",
        "concurrency",
        *(f"solver.{path}" for path in MODEL),
    )
    about = "Label solutions or steps automatically, by outcomes, rollouts or saved trees: training rows for the critics."
    parser = CommandParser("label", about, "llm-mcts label --method omega_prm --num_questions 100 --out labels", main)
    parser.add_out("folder for the rows, the records and report.json")
    args, config = parser.parse(argv, LabelConfig)
    report = run(config, args.out, args.resume, Reporter(quiet=args.json))
    print(json.dumps(report) if args.json else summary_text(report, args.out))


def rationales(argv: list[str]) -> None:
    """Write critiques of solutions: training rows for a generative verifier."""
    from trainers.labels.rationales import RationalesConfig, write_rationales
    from trainers.loop.train_command import read_verdicts

    main: Names = (
        "source",
        "per_row",
        "max_tokens",
        "temperature",
        "task.name",
        "task.path",
        "split",
        "solver.engine.model",
    )
    about = "Write critiques of solutions, each with its verdict: training rows for a generative verifier."
    example = "llm-mcts rationales runs/first/round_001/rows/orm.jsonl --out critiques.jsonl"
    parser = CommandParser("rationales", about, example, main)
    parser.add_argument("rows", type=Path, help="JSON lines with outcomes or verdicts")
    parser.add_out("file for the rows with critiques", resume=False)
    args, config = parser.parse(argv, RationalesConfig)
    report = write_rationales(read_verdicts(args.rows), args.out, config)
    refused = ", ".join(f"{n} {reason}" for reason, n in report["refused"].items()) or "none"
    print(json.dumps(report) if args.json else f"{args.out}: {report['rows']} rows; refused: {refused}")


def imagine(argv: list[str]) -> None:
    """Make new training questions from old ones."""
    from llm_mcts.runs.progress import Reporter
    from trainers.questions.imagine.command import ImagineTaskConfig, imagine_from_task, summary_text

    main: Names = (
        *TASK,
        "imagine.kinds",
        "imagine.per_question",
        "imagine.model",
        "held_out",
        "solver.engine.model",
        "seed",
    )
    about = "Make new training questions from old ones: other numbers, backward, rephrased, or harder."
    parser = CommandParser("imagine", about, "llm-mcts imagine --config preset:imagine/numbers --out imagined", main)
    parser.add_out("folder for questions.jsonl, the records and report.json")
    args, config = parser.parse(argv, ImagineTaskConfig)
    report = imagine_from_task(config, args.out, args.resume, Reporter(quiet=args.json))
    print(json.dumps(report) if args.json else summary_text(report, args.out))
