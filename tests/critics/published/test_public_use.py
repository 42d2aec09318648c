"""Published reward models in use: named in a solver's configuration and on diagnose's command line."""

import asyncio
import json
from pathlib import Path
from statistics import fmean

import pytest
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from critics import Combination, PublicPRM
from critics.assemble.configured import configured_critic
from critics.assemble.loading import load_critic
from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.published.prm import load_public
from critics.scoring.calibration import Calibration, Fitted, head_hash, save_calibrations
from critics.scoring.trained import ModelCritic
from llm_mcts.cli import main
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ModelError
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.settings import CriticsConfig
from llm_mcts.solver import Solver
from llm_mcts.types import Critic, State, Step
from tests.public_cases import STATES, Published, expected, qwen, skywork, state

QUESTION = "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"
FINISHED = State(QUESTION, (Step("3 * 4 = 12"), Step("12 + 5 = 17"), Step("#### 17", terminal=True, answer="17")))


@pytest.fixture(scope="module")
def prm(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return qwen(tmp_path_factory.mktemp("public") / "prm")


@pytest.fixture(scope="module")
def orm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("public") / "orm"
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def critic_of(tiny_model: Path, config: CriticsConfig) -> Critic:
    engine = TransformersEngine(EngineConfig(str(tiny_model)))
    critic = configured_critic(config, LMPolicy(engine, PromptFormat(PromptConfig())))
    assert critic is not None
    return critic


def test_critics_by_configuration(tiny_model: Path, prm: Published, orm: Path) -> None:
    config = CriticsConfig(prm=f"qwen:{prm.folder}", prm_aggregate="min", orm=f"classifier:{orm}")
    critic = critic_of(tiny_model, config)
    begun, finished = asyncio.run(critic.score([STATES[0], FINISHED]))
    assert begun == pytest.approx(min(expected(prm, STATES[0])[1:]), abs=1e-5)
    assert asyncio.run(load_public(orm, "classifier").score([FINISHED])) == pytest.approx([finished], abs=1e-5)


def test_a_learned_sum_has_its_own_aggregate_of_the_same_model(
    tiny_model: Path, prm: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Combination({"prm": 1.0}, 0.0, "mean").save(tmp_path / "sum.json")
    config = CriticsConfig(prm=f"qwen:{prm.folder}", prm_aggregate="last", finished=str(tmp_path / "sum.json"))
    loaded: list[str] = []

    def load(*args: object) -> object:
        loaded.append(str(args[0]))
        return load_public(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("critics.assemble.loading.load_public", load)
    critic = critic_of(tiny_model, config)
    assert loaded == [str(prm.folder)]
    steps = expected(prm, FINISHED)[1:]
    unfinished = State(QUESTION, tuple(Step(step.text) for step in FINISHED.steps))
    assert asyncio.run(critic.score([FINISHED, unfinished])) == pytest.approx([fmean(steps), steps[-1]], abs=1e-5)
    assert abs(fmean(steps) - steps[-1]) > 0.1


def test_a_search_with_a_published_prm(prm: Published) -> None:
    source = {"critics": {"prm": f"qwen:{prm.folder}"}, "search": {"name": "mcts", "num_simulations": 6}}
    result = Solver.from_config(source).solve(QUESTION)
    assert result.usage.critic_tokens > 0
    scores = {trace.state: trace.score for trace in result.traces if trace.score is not None}
    assert scores
    # A solution without an answer is worth 0 to a search by definition.
    asked = {asked: score for asked, score in scores.items() if asked.answer is not None}
    for finished, score in asked.items():
        assert score == pytest.approx(expected(prm, finished)[-1], abs=1e-4)
    assert asked


def test_a_published_model_of_another_kind_is_refused(prm: Published) -> None:
    with pytest.raises(ModelError, match="is a critic of kind 'prm'; expected 'orm or genrm'"):
        Solver.from_config({"critics": {"orm": f"qwen:{prm.folder}"}})


def test_a_published_model_can_be_calibrated(tiny_model: Path, prm: Published, tmp_path: Path) -> None:
    fitted = Fitted(Calibration(0.5, 1.0), "platt", head_hash(prm.folder), 20, 80)
    save_calibrations({"prm": fitted}, tmp_path / "fitted.json")
    config = CriticsConfig(prm=f"qwen:{prm.folder}", calibration=str(tmp_path / "fitted.json"))
    [score] = asyncio.run(critic_of(tiny_model, config).score(STATES[:1]))
    p = expected(prm, STATES[0])[-1]
    # sigmoid(0.5 logit(p) + 1) = 1 / (1 + e^-1 sqrt((1 - p) / p))
    assert score == pytest.approx(1 / (1 + 0.36787944 * ((1 - p) / p) ** 0.5), abs=1e-5)


def test_a_critic_by_its_name_on_the_command_line(prm: Published, tiny_model: Path, tmp_path: Path) -> None:
    found = load_critic(f"qwen:{prm.folder}", (), "min")
    assert isinstance(found, PublicPRM)
    assert asyncio.run(found.score(STATES[:1])) == pytest.approx([min(expected(prm, STATES[0])[1:])], abs=1e-5)
    own = tmp_path / "a:b"
    CriticModel.create("prm", str(tiny_model), HeadConfig(width=8)).save_pretrained(own)
    assert isinstance(load_critic(own), ModelCritic)
    with pytest.raises(ModelError):
        load_critic(f"unknown:{prm.folder}")


def test_diagnose_judges_published_models(
    prm: Published, orm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--task.name", "arith", "--num_questions", "20", "--num_samples", "4", "--prm_aggregate", "last"]
    limits = ["--solver.policy.max_step_tokens", "48", "--solver.policy.max_solution_tokens", "80"]
    out = tmp_path / "out"
    places = [f"qwen:{prm.folder}", f"classifier:{orm}"]
    assert main(["diagnose", *places, *small, *limits, "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [(label, report["critics"][label]["kind"]) for label in ("prm", "orm")] == [("prm", "prm"), ("orm", "orm")]
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    answered = [
        (sample["right"], expected(prm, state(*sample["steps"], question=row["question"]))[-1])
        for row in rows
        for sample in row.get("samples", [])
        if sample["answer"] is not None
    ]
    brier = sum((score - right) ** 2 for right, score in answered) / len(answered)
    assert report["critics"]["prm"]["brier"] == pytest.approx(brier, abs=1e-4)


def test_two_published_models_of_one_name_are_refused(prm: Published, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", f"qwen:{prm.folder}", f"skywork:{prm.folder}"]) == 2
    assert "same name" in capsys.readouterr().err


def test_a_published_model_of_another_format_ends_diagnose_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = skywork(tmp_path / "sky").folder
    assert main(["diagnose", f"qwen:{folder}", "--num_questions", "20"]) == 2
    error = capsys.readouterr().err.strip()
    assert "no chat template" in error and "\n" not in error
