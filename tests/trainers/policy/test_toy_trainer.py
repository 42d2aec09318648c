"""A new policy trainer is one file, and in the registry its import and its line: shown on a copy of the packages."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
TOY = '''"""Imitation with label smoothing."""

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from llm_mcts.fields import Settings, Within
from trainers.data.encoding import encode_solution, token_labels
from trainers.data.imitation import imitation_rows
from trainers.data.rows import SolutionRow
from trainers.fit.fit import Metrics, TrainCall
from trainers.fit.language_model import token_logits, train_language_model
from trainers.fit.terms import Batch, tokens
from trainers.policy.trainer import PolicyTrainer


@dataclass(frozen=True)
class ToyConfig(Settings, section="toy"):
    """How much is smoothed."""

    smoothing: Annotated[float, Within(0, 1, open_high=True)] = 0.1
    """Share of the probability that is spread over all tokens."""


def train_toy(call: TrainCall) -> Metrics:
    """Fine-tune on right solutions."""

    def loss(model: Any, batch: Batch) -> Tensor:
        logits, labels = token_logits(model, batch)[:, :-1], token_labels(batch)[:, 1:]
        return cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=call.settings.smoothing)

    return train_language_model(
        call, lambda lm: [encode_solution(row, lm.fmt, lm.encode, lm.eos) for row in call.rows], loss, lambda b: (tokens(b),)
    )


TOY = PolicyTrainer(train_toy, SolutionRow, imitation_rows, ToyConfig)
'''
REGISTRY = Path("trainers/policy/registry.py")


def registered(source: str) -> str:
    """The registry with the toy in it."""
    last_import = "from trainers.policy.trainer import PolicyCall, PolicyTrainer\n"
    last_line = '    "joint": JOINT,\n'
    assert source.count(last_import) == source.count(last_line) == 1
    source = source.replace(last_import, "from trainers.policy.toy import TOY\n" + last_import)
    return source.replace(last_line, last_line + '    "toy": TOY,\n')


def test_a_trainer_is_one_file_and_its_line(tmp_path: Path) -> None:
    for package in ("llm_mcts", "critics", "trainers"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "trainers/policy/toy.py").write_text(TOY)
    before = (tmp_path / REGISTRY).read_text()
    (tmp_path / REGISTRY).write_text(registered(before))
    diff = difflib.unified_diff(before.splitlines(), registered(before).splitlines(), lineterm="", n=0)
    assert [line for line in diff if line[:1] in "+-" and line[:3] not in ("+++", "---")] == [
        "+from trainers.policy.toy import TOY",
        '+    "toy": TOY,',
    ]

    def run(*argv: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "llm_mcts.cli", *argv]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    # It is a method of the loop, with a section of its own, and a command; its settings are in the help and checked.
    small = ["--num_rounds", "1", "--train_questions", "8", "--eval_questions", "4", "--critics", "[]"]
    small += ["--solver.search", "{name: mcts, num_simulations: 4}", "--methods", "{greedy: greedy}"]
    method = ["--policy_loss.method", "toy", "--policy_loss.toy.smoothing", "0.2"]
    run("self-improve", *small, *method, "--out", "run")
    [note] = [
        noted
        for line in (tmp_path / "run/round_001/metrics.jsonl").read_text().splitlines()
        if (noted := json.loads(line)).get("stage") == "policy"
    ]
    assert note["steps"] >= 1
    assert "--toy.smoothing" in run("train", "toy", "--help-all")
    run("train", "toy", "run/round_001/rows/policy.jsonl", "--toy.smoothing", "0.5", "--out", "model")
    assert (tmp_path / "model/model.safetensors").exists()
