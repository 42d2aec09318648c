"""Commands that answer questions: solve, evaluate, serve."""

import json
import sys
from pathlib import Path

from llm_mcts.cli.parsing import CommandParser, Names

MODEL = ("engine.name", "engine.model", "prompt.style", "policy.temperature", "policy.max_solution_tokens")
CRITICS = ("critics.value", "critics.prm", "critics.orm")
SEARCH = ("search", "search.num_simulations", "search.expansion_width", "search.max_tokens")


def solve(argv: list[str]) -> None:
    """Answer one question."""
    from llm_mcts.runs.durable import make_folder
    from llm_mcts.runs.trees import load_tree, save_tree
    from llm_mcts.settings import SolverConfig
    from llm_mcts.solver import Solver
    from llm_mcts.tree import Tree

    example = 'llm-mcts solve "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"'
    parser = CommandParser("solve", "Answer one question.", example, (*SEARCH, *MODEL, *CRITICS, "seed"))
    parser.add_argument("question", help="the question, as one argument")
    parser.add_argument(
        "--tree", type=Path, help="save the search tree to this file (.json or .json.gz); run again to continue it"
    )
    args, config = parser.parse(argv, SolverConfig)
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
    """Measure the accuracy of several searches on the same questions."""
    from llm_mcts.evaluate import EvaluateConfig, evaluate_methods
    from llm_mcts.runs.progress import Reporter

    main: Names = ("task.name", "task.path", "task.level", "split", "num_questions", "methods", "concurrency")
    main += tuple(f"solver.{path}" for path in (*MODEL, *CRITICS))
    example = "llm-mcts evaluate --num_questions 100"
    parser = CommandParser("evaluate", "Measure the accuracy of several searches on the same questions.", example, main)
    parser.add_out("folder for report.md, report.json, report.csv and the records", required=False)
    args, config = parser.parse(argv, EvaluateConfig)
    report = evaluate_methods(config, Reporter(quiet=args.json), args.out, args.resume)
    print(json.dumps(report.to_dict()) if args.json else report.markdown)


def serve(argv: list[str]) -> None:
    """Answer over HTTP as an OpenAI-compatible server, until Ctrl-C."""
    from llm_mcts.serving.server import ServeConfig, Server

    main: Names = (
        "host",
        "port",
        "model",
        "key_variable",
        *(f"solver.{path}" for path in (*SEARCH, *MODEL, *CRITICS)),
    )
    example = "llm-mcts serve --port 8000 --solver.search.name mcts --solver.search.num_simulations 16"
    parser = CommandParser("serve", "Answer over HTTP as an OpenAI-compatible server, until Ctrl-C.", example, main)
    args, config = parser.parse(argv, ServeConfig)
    server = Server(config)
    if server.warning:
        print(f"llm-mcts: {server.warning}", file=sys.stderr)
    ready = {"url": server.url, "model": config.name}
    print(json.dumps(ready) if args.json else f"serving {config.name} at {server.url} (Ctrl-C stops)", flush=True)
    server.run()
