"""The policy's likelihood as a critic, and sums of critics fitted to outcomes."""

import json
import random
from collections.abc import Sequence
from math import exp, inf, log
from pathlib import Path

import pytest
import torch

from critics.assemble.configured import configured_critic
from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.scoring.combine import Combination, LogisticCritic, fit_combination, logit
from critics.scoring.likelihood import LikelihoodCritic
from llm_mcts.cli import main
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, DataError, QuestionError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.settings import CriticsConfig
from llm_mcts.types import State, Step, metered
from tests.search_cases import TableCritic, run, solution

STATES = [
    State("Mia has 3 boxes. How many?", (Step("Mia has 3 * 4 = 12 shells."), Step("#### 12", terminal=True, answer="12"))),
    State("Mia has 3 boxes. How many?", (Step("Mia has 3 * 4 = 13 shells."),)),
    State("Ben has 5 apples.", (Step("So 5."), Step("Then 6."), Step("#### 6", terminal=True, answer="6"))),
]


def by_definition(model: str, state: State) -> float:
    """exp(mean log p(token | tokens before it)) over the steps' tokens, one forward a token."""
    lm, encode = load_causal_lm(model, torch.float32, torch.device("cpu")).eval(), Encoder(load_tokenizer(model))
    fmt = PromptFormat(PromptConfig())
    question, whole = encode((fmt.question(state.question),)), encode(fmt.segments(state))
    logprobs = []
    with torch.inference_mode():
        for i in range(len(question), len(whole)):
            logits = lm(input_ids=torch.tensor([whole[:i]])).logits[0, -1]
            logprobs.append(float(logits.log_softmax(-1)[whole[i]]))
    return exp(sum(logprobs) / len(logprobs))


def likelihood(model: Path, **settings: int) -> LikelihoodCritic:
    return LikelihoodCritic(TransformersEngine(EngineConfig(str(model), **settings)), PromptFormat(PromptConfig()))  # type: ignore[arg-type]


def test_likelihood_is_its_definition(tiny_model: Path) -> None:
    expected = [by_definition(str(tiny_model), state) for state in STATES]
    assert run(likelihood(tiny_model).score(STATES)) == pytest.approx(expected, rel=1e-4)
    assert run(likelihood(tiny_model, max_batch=1).score(STATES)) == pytest.approx(expected, rel=1e-4)
    assert len(set(expected)) == 3


def test_a_bare_question_has_likelihood_1_and_known_states_cost_nothing(tiny_model: Path) -> None:
    critic = likelihood(tiny_model)
    with metered() as first:
        assert run(critic.score([State("How many?"), STATES[0], STATES[0]]))[0] == 1.0
    with metered() as second:
        run(critic.score([STATES[0]]))
    assert first.prefilled_tokens > 0 == second.prefilled_tokens
    assert (first.critic_calls, second.critic_calls) == (3, 1)
    assert run(critic.score([])) == []


def test_a_solution_longer_than_the_context_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(QuestionError, match="the model's context of 256"):
        run(likelihood(tiny_model).score([State("q", tuple(Step("1 + 1 = 2") for _ in range(200)))]))


def test_a_combination_by_hand() -> None:
    # logit 0.8 = ln 4, logit 0.5 = 0: 0.5 + 2 ln 4 - 1 * 0 = 0.5 + 2.772589 = 3.272589; 1 / (1 + e^-3.272589) = 0.963476.
    combination = Combination({"orm": 2.0, "likelihood": -1.0}, 0.5)
    assert combination({"orm": 0.8, "likelihood": 0.5}) == pytest.approx(0.963476, abs=1e-6)
    assert logit(0.8) == pytest.approx(log(4))
    assert logit(0.0) == pytest.approx(-13.815510, abs=1e-5)  # ln(1e-6 / (1 - 1e-6))
    assert Combination({"orm": 1.0}, 0.0)({"orm": 0.3}) == pytest.approx(0.3)
    assert 0.0 <= Combination({"orm": 1000.0}, 0.0)({"orm": 0.0}) < 1e-9


def drawn(n: int, weights: Sequence[float], bias: float) -> tuple[list[dict[str, float]], list[bool]]:
    """Scores at random, outcomes by the logistic model."""
    draw = random.Random(1)
    rows = [{"orm": draw.uniform(0.05, 0.95), "likelihood": draw.uniform(0.05, 0.95)} for _ in range(n)]
    chances = [1 / (1 + exp(-bias - sum(w * logit(s) for w, s in zip(weights, row.values(), strict=True)))) for row in rows]
    return rows, [draw.random() < p for p in chances]


def test_a_fit_finds_the_weights_that_made_the_outcomes() -> None:
    rows, outcomes = drawn(20_000, (1.5, -0.5), 0.3)
    found = fit_combination(rows, outcomes, ridge=0.0)
    assert found.weights == pytest.approx({"orm": 1.5, "likelihood": -0.5}, abs=0.08)
    assert found.bias == pytest.approx(0.3, abs=0.05)
    # At the maximum of the likelihood the mean score is the share of right ones (the bias's score equation).
    assert sum(map(found, rows)) / len(rows) == pytest.approx(sum(outcomes) / len(outcomes), abs=1e-6)


def test_a_perfect_critic_does_not_break_the_fit() -> None:
    rows = [{"orm": 0.9 if i % 2 else 0.1} for i in range(40)]
    found = fit_combination(rows, [bool(i % 2) for i in range(40)])
    assert found({"orm": 0.9}) > 0.9
    assert found({"orm": 0.1}) < 0.1
    assert found.weights["orm"] < inf
    with pytest.raises(DataError, match="same outcome"):
        fit_combination(rows, [True] * 40)


def test_a_logistic_critic_asks_its_parts() -> None:
    states = [solution(answer="1"), solution(answer="2")]
    parts = {"orm": TableCritic({"#### 1": 0.8, "#### 2": 0.5}), "likelihood": TableCritic({}, default=0.5)}
    critic = LogisticCritic(parts, Combination({"orm": 2.0, "likelihood": -1.0}, 0.5))
    # As above; and 0.5 alone: 1 / (1 + e^-0.5) = 0.622459.
    assert run(critic.score(states)) == pytest.approx([0.963476, 0.622459], abs=1e-6)
    with pytest.raises(ConfigError, match="likelihood, which is not among the critics"):
        LogisticCritic({"orm": parts["orm"]}, critic.combination)


def test_a_combination_is_saved_and_loaded(tmp_path: Path) -> None:
    combination = Combination({"orm": 0.25, "prm": 1.5}, -0.75, "mean")
    combination.save(tmp_path / "below" / "sum.json")
    assert Combination.load(tmp_path / "below" / "sum.json") == combination


REST = '"bias": 0, "prm_aggregate": "min"}'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"weights": [], ' + REST,
        '{"weights": {"orm": "x"}, ' + REST,
        '{"weights": {"magic": 1}, ' + REST,
        '{"weights": {"orm": NaN}, ' + REST,
        '{"weights": {}, ' + REST,
        '{"weights": {"orm": 1}, "bias": NaN, "prm_aggregate": "min"}',
        '{"weights": {"orm": 1}, "bias": 0, "prm_aggregate": "most"}',
    ],
)
def test_a_broken_file_is_one_clear_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "sum.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"sum\.json"):
        Combination.load(path)
    with pytest.raises(ConfigError, match="missing"):
        Combination.load(tmp_path / "missing.json")


@pytest.fixture(scope="module")
def orm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("critics") / "orm"
    CriticModel.create("orm", str(tiny_model), HeadConfig(width=8), seed=3).save_pretrained(folder)
    return folder


def test_the_solver_judges_finished_solutions_by_the_learned_sum(tiny_model: Path, orm: Path, tmp_path: Path) -> None:
    Combination({"orm": 0.0, "likelihood": 1.0}, 0.0).save(tmp_path / "sum.json")
    policy = LMPolicy(TransformersEngine(EngineConfig(str(tiny_model))), PromptFormat(PromptConfig()))
    critic = configured_critic(CriticsConfig(orm=str(orm), finished=str(tmp_path / "sum.json")), policy)
    assert critic is not None
    finished = [STATES[0], STATES[2]]
    assert run(critic.score(finished)) == pytest.approx(run(likelihood(tiny_model).score(finished)), rel=1e-5)
    with pytest.raises(ConfigError, match="orm, which is not among"):
        configured_critic(CriticsConfig(finished=str(tmp_path / "sum.json")), policy)


def test_diagnose_fits_and_judges_on_other_questions(orm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--task.name", "arith", "--task.level", "medium", "--num_questions", "20", "--num_samples", "4"]
    limits = ["--solver.policy.max_step_tokens", "48", "--solver.policy.max_solution_tokens", "120"]
    file = tmp_path / "sum.json"
    assert main(["diagnose", str(orm), *small, *limits, "--fit", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["critics"]) == ["orm", "likelihood", "combined", "rank_average"]
    assert set(Combination.load(file).weights) == {"orm", "likelihood"}
    combined = report["critics"]["combined"]["auc_within"]["value"]
    assert combined > report["critics"]["orm"]["auc_within"]["value"]  # whose weights are random
    assert main(["diagnose", str(orm), str(orm.parent / "orm2"), *small, "--fit", str(file)]) == 2
