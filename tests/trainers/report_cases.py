"""Hand-made runs for the tests of the report."""

from pathlib import Path
from typing import Any

from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.durable import write_atomically
from llm_mcts.tree import Tree
from llm_mcts.types import Step, Usage


def records(marks: str, solution: str = "#### 1", **usage: Any) -> list[dict[str, Any]]:
    """A record for each mark, "+" right and "-" wrong."""
    return [
        Record(f"dev-{i}", "1", mark == "+", 1.0, f"{solution} {mark}", None, Usage(**usage)).to_dict()
        for i, mark in enumerate(marks)
    ]


def make_run(path: Path, config: str, evaluations: dict[int, dict[str, str]], split: str = "eval") -> RunDirectory:
    """A run with evaluations given as marks by round and method."""
    run = RunDirectory(path)
    write_atomically(run.config_file, config.encode())
    for number, methods in evaluations.items():
        here = run.round(number)
        for method, marks in methods.items():
            (here.evaluation(method) if split == "eval" else here.test(method)).write(records(marks))
    return run


def scored_tree(question: str, ends: list[tuple[str, str | None, float]]) -> Tree:
    """A tree of one step: (text, answer, score) of each evaluated end."""
    tree = Tree(question)
    steps = [Step(text, -1.0, 3, True, answer) for text, answer, _ in ends]
    tree.expand(tree.root, steps, [1 / len(ends)] * len(ends))
    for node, (_, _, score) in zip(tree.root.children, ends, strict=True):
        node.visit_count, node.value_sum, node.value = 2, 2 * score, score
    tree.root.visit_count, tree.root.value_sum, tree.root.value = 2 * len(ends) + 1, 0.5, 0.5
    return tree


def searched(id_: str, tree: Tree, correct: bool, critic_calls: int = 3) -> dict[str, Any]:
    """A line of trees.jsonl.gz."""
    usage = Usage(generated_tokens=10, critic_calls=critic_calls)
    return {**Record(id_, "1", correct, usage=usage).to_dict(), "tree": tree.to_dict()}


def asked(id_: str, question: str, gold: str | None = "1", source: str = "train") -> dict[str, Any]:
    """A line of questions.jsonl."""
    return {"id": id_, "question": question, "gold": gold, "source": source, "pass_rate": None}
