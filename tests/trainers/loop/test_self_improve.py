"""The gate and the report of the loop, on made-up evaluations."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.config import load_config
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runner import Record
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.progress import Reporter
from llm_mcts.settings import CriticsConfig, SolverConfig
from llm_mcts.tasks import get_task
from llm_mcts.types import Problem
from trainers.loop.self_improve import Loop, SelfImproveConfig, self_improve
from trainers.loop.stages import Round


def evaluated(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], tolerance: float = 0.1
) -> tuple[Loop, Round, Round]:
    """A loop, its start and its one round, whose evaluations are given as marks, "+" right and "-" wrong, by method."""
    settings = {"num_rounds": 1, "eval_questions": 10, "gate": {"tolerance": tolerance}}
    directory = RunDirectory(tmp_path)
    for number, marks in enumerate((before, after)):
        for label, row in marks.items():
            records = [Record(str(i), "1", mark == "+").to_dict() for i, mark in enumerate(row)]
            directory.round(number).evaluation(label).write(records)
    start, first = (Round(number, directory.round(number), SolverConfig()) for number in (0, 1))
    return Loop(load_config(SelfImproveConfig, settings), directory, Reporter(quiet=True)), start, first


def test_the_gate_compares_a_round_with_the_incumbent(tmp_path: Path) -> None:
    loop, start, first = evaluated(tmp_path, {"greedy": "++--", "mcts": "++--"}, {"greedy": "+---", "mcts": "+---"})
    assert loop.gate(start, first).accepted is False
    noted = first.files.metric("gate")
    assert noted is not None
    assert (noted["accepted"], noted["changes"]["greedy"]["lost"]) == (False, 1)


def test_the_gate_decides_once(tmp_path: Path) -> None:
    loop, start, first = evaluated(tmp_path, {"greedy": "+-", "mcts": "+-"}, {"greedy": "++", "mcts": "++"})
    assert loop.gate(start, first).accepted is True
    first.files.evaluation("greedy").path.unlink()  # not read again
    assert loop.gate(start, first).accepted is True


def test_settings_that_new_critics_would_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"critics.calibration is c\.json"):
        SelfImproveConfig(solver=SolverConfig(critics=CriticsConfig(calibration="c.json")))
    with pytest.raises(ConfigError, match=r"critics\.rollouts is 4"):
        SelfImproveConfig(solver=SolverConfig(critics=CriticsConfig(rollouts=4)))
    SelfImproveConfig(solver=SolverConfig(critics=CriticsConfig(rollouts=4)), critics=("orm",))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_rounds": 0}, "num_rounds is 0; expected a whole number >= 1"),
        ({"train_questions": 0}, "train_questions is 0; expected a whole number >= 1"),
        ({"eval_questions": 0}, "eval_questions is 0; expected a whole number >= 1"),
        ({"unlabelled_questions": 0}, "unlabelled_questions is 0; expected a whole number >= 1"),
        ({"imagined_questions": -1}, "imagined_questions is -1; expected a whole number >= 0"),
        ({"test_questions": -1}, "test_questions is -1; expected a whole number >= 0"),
        ({"concurrency": 0}, "concurrency is 0; expected a whole number >= 1"),
        ({"critics": ("judge",)}, r"critics is \('judge',\); expected a list of value or prm or orm"),
        ({"methods": {}}, "methods is empty"),
    ],
)
def test_settings_are_checked(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelfImproveConfig(**bad)


def test_a_shared_trunk_is_a_setting_of_critics_alone() -> None:
    assert load_config(SelfImproveConfig, {"value": {"trunk": True}}).value.trunk
    with pytest.raises(ConfigError, match=r"unknown configuration key 'policy\.trunk'"):
        load_config(SelfImproveConfig, {"policy": {"trunk": True}})


# Objectives of the critics

SMALL: dict[str, Any] = {
    "task": {"name": "arith", "level": "easy"},
    "num_rounds": 1,
    "train_questions": 12,
    "eval_questions": 2,
    "concurrency": 4,
    "solver": {
        "policy": {"temperature": 1.0, "max_step_tokens": 48, "max_solution_tokens": 120},
        "search": {"name": "mcts", "num_simulations": 8, "expansion_width": 3},
    },
    "methods": {"greedy": "greedy"},
    "gate": {"tolerance": 1.0},
}
# name -> (settings, the key that tells each critic's rows)
OBJECTIVES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "tree and pairs": (
        {
            "critic_loss": {
                "value": {"target": "tree_q", "lm_weight": 0.01},
                "prm": {"target": "pairwise"},
                "orm": {"target": "pairwise"},
            },
            "rows": {"negatives": "twins"},
            "head": {"kind": "ovm", "dropout": 0.2},
        },
        {"value": "q_values", "prm": "chosen", "orm": "chosen"},
    ),
    "returns and hard labels": (
        {
            "critic_loss": {
                "value": {"target": "td_lambda", "loss": "cross_entropy"},
                "prm": {"target": "hard"},
                "orm": {"loss": "mse"},
            }
        },
        {"value": "q_values", "prm": "labels", "orm": "label"},
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_round_with_other_objectives(name: str, tmp_path: Path) -> None:
    settings, keys = OBJECTIVES[name]
    self_improve(load_config(SelfImproveConfig, {**SMALL, **settings}), tmp_path / "run")
    here = RunDirectory(tmp_path / "run").round(1)
    for kind, key in keys.items():
        rows = here.rows(kind).read()
        assert rows
        assert all(key in row for row in rows)
        trained = here.metric(kind)
        assert trained is not None
        assert (trained["rows"], trained["left_out"]) == (len(rows), 0)
    head = json.loads((here.checkpoint("value") / "critic.json").read_text())["head"]
    assert head["kind"] == settings.get("head", {}).get("kind", "mlp")


def test_a_run_that_needs_a_value_model_says_so_before_it_searches() -> None:
    settings = {"critic_loss": {"value": {"target": "td_lambda", "estimate": "model"}}}
    with pytest.raises(ConfigError, match=r"starts without a value model; name one in solver\.critics\.value"):
        load_config(SelfImproveConfig, settings)
    load_config(SelfImproveConfig, {**settings, "critics": ["orm"]})
    load_config(SelfImproveConfig, {**settings, "solver": {"critics": {"value": "models/value"}}})


def test_another_model_imagines_without_critics_and_rollout_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []

    def build(config: EngineConfig) -> ScriptedEngine:
        loaded.append(config.model)
        return ScriptedEngine(lambda _: [("#### 4", 1.0)])

    def critic(*_: object) -> None:
        pytest.fail("a critic was loaded")

    monkeypatch.setattr("llm_mcts.solver.build_engine", build)
    monkeypatch.setattr("critics.assemble.configured.configured_critic", critic)
    settings = {
        **SMALL,
        "imagined_questions": 2,
        "imagine": {"kinds": ["rephrase"], "model": "writer"},
        "solver": {"critics": {"value": "models/value"}, "rollout_model": "small"},
    }
    config = load_config(SelfImproveConfig, settings)
    directory = RunDirectory(tmp_path)
    loop = Loop(config, directory, Reporter(quiet=True))
    current = Round(1, directory.round(1), config.solver)
    noted = loop.once(loop.stages()[0], current)
    assert loaded == ["writer"]
    assert noted["candidates"] == {"rephrase": 2} and len(current.files.imagined.whole()) == 2


def test_the_stages_of_a_round_in_order(tmp_path: Path) -> None:
    settings = {**SMALL, "imagined_questions": 2, "critics": ["orm", "value"]}
    directory = RunDirectory(tmp_path)
    stages = Loop(load_config(SelfImproveConfig, settings), directory, Reporter(quiet=True)).stages()
    names = ["imagine", "questions", "search", "rows", "value", "orm", "policy", "evaluate"]
    assert [stage.name for stage in stages] == names
    assert [stage.name for stage in stages if stage.together] == ["value", "orm", "policy"]


def test_unlabelled_questions_come_so_many_a_round(tmp_path: Path) -> None:
    problems = get_task("arith", level="easy").load("train", 30)[20:]
    file = lines(tmp_path / "unlabelled.jsonl", problems)
    overlap = {"mask_numbers": False, "threshold": 1.0}
    settings = {**SMALL, "unlabelled": str(file), "unlabelled_questions": 4, "imagine": {"overlap": overlap}}
    loop = Loop(load_config(SelfImproveConfig, settings), RunDirectory(tmp_path), Reporter(quiet=True))
    rounds = [[chosen.problem.question for chosen in loop.questions.unlabelled(number)] for number in (1, 2, 3, 4)]
    texts = [problem.question for problem in problems]
    assert rounds == [texts[:4], texts[4:8], texts[8:], []]


def test_servers_with_fixed_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not get the weights that are trained"):
        SelfImproveConfig(solver=SolverConfig(engine=EngineConfig("m", name="openai")))


# Questions that must not be learnt from, and searches without a tree


def lines(file: Path, problems: list[Problem]) -> Path:
    file.write_text("".join(json.dumps({"question": p.question, "answer": p.gold}) + "\n" for p in problems))
    return file


def test_one_file_for_every_split_is_refused(tmp_path: Path) -> None:
    file = lines(tmp_path / "own.jsonl", get_task("arith", level="easy").load("train", 6))
    config = load_config(SelfImproveConfig, {**SMALL, "task": {"name": "jsonl", "path": str(file)}})
    with pytest.raises(DataError, match=r"2 of 2 questions of split dev are training questions too; .* dev\.jsonl"):
        self_improve(config, tmp_path / "run")
    assert not RunDirectory(tmp_path / "run").round(0).metric("evaluate")
    folder = tmp_path / "own"
    folder.mkdir()
    task = get_task("arith", level="easy")
    lines(folder / "train.jsonl", task.load("train", 6))
    lines(folder / "dev.jsonl", task.load("dev", 2))
    lines(folder / "test.jsonl", [*task.load("test", 2), replace(task.load("train", 1)[0], id="again")])
    settings = {**SMALL, "task": {"name": "jsonl", "path": str(folder)}, "test_questions": 3}
    with pytest.raises(DataError, match="1 of 3 questions of split test"):
        self_improve(load_config(SelfImproveConfig, settings), tmp_path / "other")


def test_unlabelled_questions_near_the_held_out_ones_are_left_out(tmp_path: Path) -> None:
    task = get_task("arith", level="easy")
    known = [*task.load("dev", 2), *task.load("test", 1)]
    fresh = task.load("train", 30)[20:24]
    file = lines(tmp_path / "unlabelled.jsonl", [*known, *fresh])
    overlap = {"mask_numbers": False, "threshold": 1.0}  # stories from templates: equal ones alone are near
    settings = {**SMALL, "unlabelled": str(file), "imagine": {"overlap": overlap}, "test_questions": 1}
    self_improve(load_config(SelfImproveConfig, settings), tmp_path / "run")
    rows = RunDirectory(tmp_path / "run").round(1).questions.read()
    assert [row["question"] for row in rows if row["source"] == "unlabelled"] == [p.question for p in fresh]


def test_samples_without_a_tree_teach_too(tmp_path: Path) -> None:
    """Rejection sampling as in STaR and ReST-EM: plain samples in the place of a search."""
    search = {"name": "self_consistency", "num_samples": 4}
    self_improve(load_config(SelfImproveConfig, {**SMALL, "solver": {**SMALL["solver"], "search": search}}), tmp_path / "run")
    here = RunDirectory(tmp_path / "run").round(1)
    noted = here.metric("rows")
    assert noted is not None and (noted["searched"], noted["failed"], noted["trajectories"]) == (12, 0, 48)
    assert noted["policy"] > 0 and noted["orm"] > 0
    trained = here.metric("policy")
    assert trained is not None and trained["rows"] == noted["policy"]


def test_contradictions_are_told_before_the_search() -> None:
    by_value = {"policy_loss": {"method": "policy_gradient", "policy_gradient": {"baseline": "value"}}}
    with pytest.raises(ConfigError, match="there is no value model"):
        load_config(SelfImproveConfig, {**by_value, "critics": []})
    load_config(SelfImproveConfig, by_value)
    noisy = {
        "policy_loss": {"method": "distill"},
        "rows": {"targets": {"target": "gumbel"}},
        "solver": {"search": {"name": "mcts", "root_noise": 0.25}},
    }
    with pytest.raises(ConfigError, match="puts noise on them"):
        load_config(SelfImproveConfig, noisy)
    load_config(SelfImproveConfig, {**noisy, "rows": {"targets": {"target": "visits"}}})


def test_held_out_questions_need_answers(tmp_path: Path) -> None:
    folder, task = tmp_path / "own", get_task("arith", level="easy")
    folder.mkdir()
    lines(folder / "train.jsonl", task.load("train", 6))
    lines(folder / "dev.jsonl", [replace(p, gold=None) for p in task.load("dev", 2)])
    with pytest.raises(DataError, match="2 of 2 questions of split dev have no answer"):
        self_improve(
            load_config(SelfImproveConfig, {**SMALL, "task": {"name": "jsonl", "path": str(folder)}}), tmp_path / "run"
        )


def test_what_would_end_a_run_later_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="nowhere"):
        self_improve(load_config(SelfImproveConfig, {**SMALL, "unlabelled": "/nowhere.jsonl"}), tmp_path / "unlabelled")
    monkeypatch.setattr("trainers.fit.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="tracking is 'tensorboard'"):
        self_improve(load_config(SelfImproveConfig, SMALL), tmp_path / "tracking")
    for name in ("unlabelled", "tracking"):
        assert not RunDirectory(tmp_path / name).round(0).metrics()


@pytest.mark.parametrize(
    "gone", ["checkpoints/policy", "checkpoints/orm", "trees.jsonl.gz", "rows/policy.jsonl", "questions.jsonl"]
)
def test_what_is_gone_is_missed(gone: str, tmp_path: Path) -> None:
    config = load_config(SelfImproveConfig, SMALL)
    self_improve(config, tmp_path / "run")
    here = RunDirectory(tmp_path / "run").round(1)
    before = {"trees.jsonl.gz": "rows", "rows/policy.jsonl": "policy"}.get(gone, "evaluate")
    notes = here.metrics_file.read_text().splitlines(keepends=True)
    place = next(i for i, line in enumerate(notes) if json.loads(line)["stage"] == before)
    here.metrics_file.write_text("".join(notes[:place]))
    path = here.path / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is gone"):
        self_improve(config, tmp_path / "run", resume=True)
