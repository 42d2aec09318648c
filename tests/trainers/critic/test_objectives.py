"""Every objective: its configuration, which tokens it labels and how, and that a tiny critic learns it.

Checks of encodings are functions that are also applied to code with a planted error, which they must reject.
"""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import trainers.critic.train
from critics.kinds import Kind
from critics.model.heads import HeadConfig
from critics.model.lora import LoraSpec
from critics.model.model import CriticModel
from critics.scoring.trained import ModelCritic
from llm_mcts.config import load_config
from llm_mcts.errors import ConfigError, DataError, ModelError
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.types import State, Step
from trainers.critic.train import hardened, outcome_targets, recipe, return_targets, train_critic, with_model_values
from trainers.data.encoding import IGNORE, Encoded, EncodedPair, collate, encode_pair, token_labels, with_language_labels
from trainers.data.objectives import CriticLossConfig, OutcomeObjective, StepObjective, ValueObjective, needed_rows
from trainers.data.rows import PairRow, Row, SolutionRow, StepRow, TreeRow
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.loop.train_command import job_config, train_from_file


def value(**settings: Any) -> CriticLossConfig:
    return CriticLossConfig(value=ValueObjective(**settings))


def prm(**settings: Any) -> CriticLossConfig:
    return CriticLossConfig(prm=StepObjective(**settings))


def orm(**settings: Any) -> CriticLossConfig:
    return CriticLossConfig(orm=OutcomeObjective(**settings))


# Eight questions; every other solution is right, and its values in the tree rise towards the outcome.
SOLUTIONS = [
    SolutionRow(f"p{i}", f"{i} apples and {i + 1} more?", (f"{i} + {i + 1} = {2 * i + 1}", f"#### {2 * i + 1}"), float(i % 2))
    for i in range(8)
]
STEPS = [StepRow(r.problem, r.question, r.steps, (0.75 * r.label + 0.1, r.label)) for r in SOLUTIONS]
TREES = [
    TreeRow(r.problem, r.question, r.steps, (0.5, 0.3 + 0.4 * r.label, 0.1 + 0.8 * r.label), (9, 4, 1), r.label)
    for r in SOLUTIONS
]
PAIRS = [
    PairRow(r.problem, r.question, (r.steps[0], f"#### {2 * i + 1}"), (r.steps[0], f"#### {2 * i + 2}"))
    for i, r in enumerate(SOLUTIONS)
]

# name -> (kind, objective, rows, loss below which it has learnt)
OBJECTIVES: dict[str, tuple[Kind, CriticLossConfig, Sequence[Row], float]] = {
    "value token cross-entropy": ("value", value(loss="cross_entropy"), SOLUTIONS, 0.2),
    "value prefix": ("value", value(target="prefix"), SOLUTIONS, 0.05),
    "value prefix cross-entropy": ("value", value(target="prefix", loss="cross_entropy"), SOLUTIONS, 0.2),
    "value one prefix": ("value", value(target="prefix", prefixes=1), SOLUTIONS, 0.05),
    "value tree Q": ("value", value(target="tree_q"), TREES, 0.004),  # 0.04 for a constant 0.5
    "value tree Q cross-entropy": ("value", value(target="tree_q", loss="cross_entropy"), TREES, 0.65),
    "value lambda-returns": ("value", value(target="td_lambda", lam=0.5), TREES, 0.01),
    "value lambda-returns cross-entropy": ("value", value(target="td_lambda", loss="cross_entropy"), TREES, 0.3),
    "value with language": ("value", value(lm_weight=0.1), SOLUTIONS, 0.3),  # untrained 0.25 + 0.1 ln 566 = 0.88
    "prm mse": ("prm", prm(loss="mse"), STEPS, 0.01),
    "prm hard": ("prm", prm(target="hard", threshold=0.5), STEPS, 0.1),
    "prm hard mse": ("prm", prm(target="hard", threshold=0.5, loss="mse"), STEPS, 0.02),
    "prm pairwise": ("prm", prm(target="pairwise"), PAIRS, 0.1),
    "orm mse": ("orm", orm(loss="mse"), SOLUTIONS, 0.02),
    "orm pairwise": ("orm", orm(target="pairwise"), PAIRS, 0.1),
}
FAST = TrainConfig(epochs=60, learning_rate=1e-2, batch_size=8)
SHORT = replace(FAST, epochs=1)


def train(name: str, start: Path, out: Path, config: TrainConfig = FAST, head: HeadConfig | None = None) -> dict[str, float]:
    kind, losses, rows, _ = OBJECTIVES[name]
    return train_critic(kind, TrainCall(rows, str(start), out, config, losses, head=head or HeadConfig(width=16)))


@dataclass
class Fitted:
    """A model's parameters around its training."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    rows: list[Any]

    def moved(self) -> set[str]:
        return {name for name, tensor in self.after.items() if not torch.equal(tensor, self.before[name])}


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[Fitted]:
    """What went through `fit`."""
    seen: list[Fitted] = []
    real = trainers.critic.train.fit

    def spy(model: Any, rows: Any, *args: Any) -> dict[str, float]:
        def copy() -> dict[str, Tensor]:
            return {name: p.detach().clone() for name, p in model.named_parameters()}

        before = copy()
        metrics: dict[str, float] = real(model, rows, *args)
        seen.append(Fitted(before, copy(), list(rows)))
        return metrics

    monkeypatch.setattr(trainers.critic.train, "fit", spy)
    return seen


# Learning


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_overfits_8_rows_and_moves_what_it_should(name: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    kind, _, _, learnt = OBJECTIVES[name]
    metrics = train(name, tiny_model, tmp_path / "out")
    assert metrics["loss"] < learnt
    assert (metrics["rows"], metrics["left_out"], metrics["steps"]) == (8, 0, 60)
    [seen] = fitted
    # A pair's difference does not depend on what is added to both logits.
    unmoved = {"head.3.bias"} if "pairwise" in name else set()
    assert seen.moved() == set(seen.before) - unmoved
    loaded = CriticModel.from_pretrained(tmp_path / "out", kind)
    for parameter, tensor in loaded.named_parameters():
        assert torch.equal(tensor, seen.after[parameter]), parameter


@pytest.mark.parametrize("name", ["value prefix", "value with language", "prm pairwise"])
def test_with_lora_adapter_and_head_move_and_none_of_the_base(
    name: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]
) -> None:
    train(name, tiny_model, tmp_path / "out", replace(FAST, epochs=6, lora=LoraSpec(rank=4)))
    [seen] = fitted
    expected = {p for p in seen.before if "lora_" in p or p.startswith("head.")}
    assert seen.moved() == expected - ({"head.3.bias"} if "pairwise" in name else set())


@pytest.mark.parametrize("name", ["value prefix", "value with language", "orm pairwise"])
def test_ovms_head_learns_too(name: str, tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    metrics = train(name, tiny_model, tmp_path / "out", replace(FAST, epochs=100), HeadConfig(kind="ovm"))
    assert metrics["loss"] < OBJECTIVES[name][3]
    [seen] = fitted
    assert {p for p in seen.before if p.startswith("head.")} == {"head.0.gain", "head.0.bias", "head.2.weight"}
    unmoved = {"head.0.bias"} if "pairwise" in name else set()
    assert seen.moved() == set(seen.before) - unmoved


def test_a_pairwise_critic_scores_the_better_side_higher(tiny_model: Path, tmp_path: Path) -> None:
    train("orm pairwise", tiny_model, tmp_path / "out")
    critic = ModelCritic(CriticModel.from_pretrained(tmp_path / "out", "orm"))
    sides = [[State(row.question, tuple(map(Step, side))) for row in PAIRS] for side in ("chosen", "rejected")] and [
        [State(row.question, tuple(map(Step, getattr(row, side)))) for row in PAIRS] for side in ("chosen", "rejected")
    ]

    async def scores() -> list[list[float]]:
        return [await critic.score(states) for states in sides]

    better, worse = asyncio.run(scores())
    assert all(b > w for b, w in zip(better, worse, strict=True))


def test_the_seed_draws_the_prefixes_and_nothing_else_does() -> None:
    row = SolutionRow("p", "Q", tuple("abcdefgh"), 1.0)
    drawn = [outcome_targets(row, 2, seed) for seed in range(40)]
    assert all(targets.count(1.0) == 2 and targets.count(None) == 7 for targets in drawn)
    assert outcome_targets(row, 2, 3) == drawn[3]
    assert {i for targets in drawn for i, target in enumerate(targets) if target is not None} == set(range(9))
    assert outcome_targets(row, 0, 0) == outcome_targets(row, 9, 0) == outcome_targets(row, 20, 0) == [1.0] * 9


# Targets by hand


def test_hard_labels_by_hand() -> None:
    row = StepRow("p", "Q", ("a", "b", "c", "d"), (0.0, 0.125, None, 1.0))
    assert hardened(row, 0.0).labels == (0.0, 1.0, None, 1.0)  # Math-Shepherd: any right completion
    assert hardened(row, 0.125).labels == (0.0, 0.0, None, 1.0)  # above the threshold, not at it


def test_return_targets_by_hand() -> None:
    row = TreeRow("p", "Q", ("a", "b"), (0.5, 0.25, 0.75), (3, 2, 1), 1.0)
    # As in test_returns: gamma 1/2, lambda 1/4.
    assert return_targets(row, 0.5, 0.25) == pytest.approx([0.14453125, 0.40625, 1.0])
    with pytest.raises(DataError, match="no outcome"):
        return_targets(replace(row, label=None), 1.0, 1.0)


def test_a_models_own_values(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    """Targets from the current value model: its scores, as the search would read them, in the recursion."""
    start, config = tmp_path / "start", replace(FAST, epochs=2, batch_size=3)
    train_critic("value", TrainCall(SOLUTIONS, str(tiny_model), start, config, head=HeadConfig(width=16)))
    model = CriticModel.from_pretrained(start)
    states = [State(row.question, tuple(map(Step, row.steps))) for row in SOLUTIONS]
    scores = asyncio.run(ModelCritic(model).step_scores(states))
    found = with_model_values(SOLUTIONS, CriticModel.from_pretrained(start), config)
    for row, expected in zip(found, scores, strict=True):
        assert row.q_values == pytest.approx(expected, abs=1e-5)
    losses = value(target="td_lambda", estimate="model", lam=0.0, gamma=0.5)
    train_critic("value", TrainCall(SOLUTIONS, str(start), tmp_path / "next", config, losses))
    for encoded, (_, after_one, after_both), row in zip(fitted[1].rows, scores, SOLUTIONS, strict=True):
        labels = [label for label, counts in zip(encoded.columns["target"], encoded.mask, strict=True) if counts]
        # lambda 0: half the next prefix's score, and the outcome at the end
        assert labels == pytest.approx([0.5 * after_one, 0.5 * after_both, row.label], abs=1e-5)


def test_a_shared_prefix_is_trained_on_once(tiny_model: Path, tmp_path: Path, fitted: list[Fitted]) -> None:
    first, other = TREES[1], replace(TREES[1], steps=(TREES[1].steps[0], "#### 5"), q_values=(0.5, 0.7, 0.2), visits=(9, 4, 3))
    train_critic("value", TrainCall([first, other], str(tiny_model), tmp_path / "out", SHORT, value(target="tree_q")))
    assert [list(labelled(row).values()) for row in fitted[0].rows] == [pytest.approx([0.5, 0.7, 0.9]), [0.2]]


def test_a_language_model_has_no_values(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="estimate is 'model'"):
        train_critic(
            "value", TrainCall(SOLUTIONS, str(tiny_model), tmp_path / "out", FAST, value(target="td_lambda", estimate="model"))
        )
    assert not (tmp_path / "out").exists()


# Masks by hand


class Characters:
    """A tokenizer that makes a token of each character."""

    bos_token_id = None

    @dataclass
    class Output:
        input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> "Characters.Output":
        return self.Output([ord(c) for c in text])


FORMAT = PromptFormat(PromptConfig())
EOS = 3
# "Question: Q\nAnswer:\n" is 10 + 1 + 1 + 7 + 1 = 20 characters, places 0 to 19; "a\n" 20 and 21; "bc\n" 22 to 24.
SMALL = SolutionRow("p", "Q", ("a", "bc"), 1.0)
SMALL_TREE = TreeRow("p", "Q", ("a", "bc"), (0.5, 0.25, None), (4, 2, 0), 1.0)


def encoded(kind: Kind, losses: CriticLossConfig, row: Row) -> Any:
    return recipe(kind, losses).encode(row, FORMAT, Encoder(Characters()))


def labelled(row: Encoded) -> dict[int, float]:
    return {i: label for i, (label, counts) in enumerate(zip(row.columns["target"], row.mask, strict=True)) if counts}


def test_prefix_labels_stand_at_the_ends_of_prefixes() -> None:
    assert labelled(encoded("value", value(target="prefix"), SMALL)) == {19: 1.0, 21: 1.0, 24: 1.0}
    assert labelled(encoded("value", value(target="prefix"), replace(SMALL, label=0.0))) == {19: 0.0, 21: 0.0, 24: 0.0}
    one = labelled(encoded("value", value(target="prefix", prefixes=1), SMALL))
    assert len(one) == 1
    assert set(one) < {19, 21, 24}


def test_tree_q_labels_and_weights() -> None:
    row = encoded("value", value(target="tree_q"), SMALL_TREE)
    assert labelled(row) == {19: 0.5, 21: 0.25}
    assert {i: weight for i, weight in enumerate(row.columns["weight"]) if weight} == {19: 4, 21: 2}
    counted_elsewhere = encoded("value", value(target="tree_q"), replace(SMALL_TREE, visits=(0, 2, 0)))
    assert labelled(counted_elsewhere) == {21: 0.25}


def test_lambda_return_labels() -> None:
    # gamma 1, lambda 1/2; V_2 is unknown: G_2 = 1, G_1 = 1, G_0 = 1/2 * 0.25 + 1/2 * 1 = 0.625
    assert labelled(encoded("value", value(target="td_lambda", lam=0.5), SMALL_TREE)) == {19: 0.625, 21: 1.0, 24: 1.0}


def test_hard_labels_stand_where_soft_ones_do() -> None:
    row = StepRow("p", "Q", ("a", "bc"), (0.25, None))
    assert labelled(encoded("prm", prm(), row)) == {21: 0.25}
    assert labelled(encoded("prm", prm(target="hard"), row)) == {21: 1.0}
    assert labelled(encoded("prm", prm(target="hard", threshold=0.5), row)) == {21: 0.0}


def test_pairs_are_compared_at_their_last_tokens() -> None:
    row = PairRow("p", "Q", ("a", "bc"), ("a", "d"))
    pair = encoded("orm", orm(target="pairwise"), row)
    assert isinstance(pair, EncodedPair)
    assert pair.chosen.ids == [*map(ord, "Question: Q\nAnswer:\na\nbc\n")]
    assert pair.rejected.ids == [*map(ord, "Question: Q\nAnswer:\na\nd\n")]
    assert labelled(pair.chosen) == {24: 1.0}
    assert labelled(pair.rejected) == {23: 0.0}
    batch = collate([pair, pair])
    assert batch["input_ids"][:, 23].tolist() == [ord("c"), ord("\n")] * 2
    assert batch["attention_mask"].sum(1).tolist() == [25, 24] * 2
    assert batch["mask"].nonzero().tolist() == [[0, 24], [1, 23], [2, 24], [3, 23]]


def test_the_language_models_tokens_are_the_solution_and_its_end() -> None:
    encode = Encoder(Characters())
    row = with_language_labels(encoded("value", value(target="prefix"), SMALL), SMALL, FORMAT, encode, EOS)
    assert labelled(row) == {19: 1.0, 21: 1.0, 24: 1.0}
    labels = token_labels(collate([row]), "written")[0].tolist()
    assert labels == [IGNORE] * 20 + [*map(ord, "a\nbc\n"), EOS]
    tree = with_language_labels(encoded("value", value(target="tree_q"), SMALL_TREE), SMALL_TREE, FORMAT, encode, EOS)
    assert {len(column) for column in (tree.ids, tree.mask, *tree.columns.values())} == {26}
    assert set(tree.columns) == {"target", "weight", "written"}


def test_the_batch_of_a_weighted_loss_by_hand() -> None:
    columns = [{"target": [0.5, 1.0], "weight": [2.0, 1.0]}, {"target": [0.0], "weight": [3.0]}]
    rows = [Encoded([5, 6], [True, True], columns[0]), Encoded([7], [True], columns[1])]
    batch = collate(rows)
    assert batch["weight"].tolist() == [[2.0, 1.0], [3.0, 0.0]]
    assert "written" not in batch
    assert set(collate([Encoded([5], [True], {"target": [0.5]})])) == {"input_ids", "attention_mask", "target", "mask"}
    # Logit 0 everywhere: (2 * 0 + 1 * 0.25 + 3 * 0.25) / 6 = 1/6
    loss = recipe("value", value(target="tree_q")).loss(torch.zeros(2, 2), batch)
    assert loss.item() == pytest.approx(1 / 6, abs=1e-6)


def test_the_losses_by_name() -> None:
    """At logit ln 3 (score 3/4) and label 1: squared error 1/16, cross-entropy -ln 3/4 = 0.287682."""
    batch = collate([Encoded([5], [True], {"target": [1.0]})])
    logits = torch.tensor([[1.0986123]])
    settings = [("value", value), ("prm", prm), ("orm", orm)]
    for kind, of in settings:
        assert recipe(kind, of(loss="mse")).loss(logits, batch).item() == pytest.approx(0.0625, abs=1e-6)  # type: ignore[arg-type]
        assert recipe(kind, of(loss="cross_entropy")).loss(logits, batch).item() == pytest.approx(0.287682, abs=1e-6)  # type: ignore[arg-type]


class TwoLogits:
    """A model whose scores are all 0 and whose next tokens are all alike, of 4."""

    def __call__(self, ids: Tensor, mask: Tensor, with_language: bool = False, segments: Tensor | None = None) -> Any:
        return (torch.zeros(ids.shape), torch.zeros(*ids.shape, 4)) if with_language else torch.zeros(ids.shape)


def test_the_language_models_loss_is_added_with_its_weight() -> None:
    columns = {"target": [1.0] * 3, "written": [False, True, True]}
    batch = collate([Encoded([1, 2, 3], [False, True, True], columns)])
    alone, both = (
        trainers.critic.train._batch_loss(recipe("value", value(lm_weight=w)))(TwoLogits(), batch) for w in (0.0, 0.5)
    )
    # (1/2 - 1)^2 = 1/4; next tokens: ln 4 = 1.386294, half of it 0.693147
    assert alone.item() == pytest.approx(0.25, abs=1e-6)
    assert [term.item() for term in both] == pytest.approx([0.25, 0.693147], abs=1e-6)


# Checks, applied to the code and to planted errors

ENCODINGS: dict[str, tuple[Kind, CriticLossConfig, Row]] = {
    "token": ("value", value(), SOLUTIONS[3]),
    "prefix": ("value", value(target="prefix"), SOLUTIONS[3]),
    "tree_q": ("value", value(target="tree_q"), TREES[3]),
    "td_lambda": ("value", value(target="td_lambda"), TREES[3]),
    "hard": ("prm", prm(target="hard", threshold=0.5), STEPS[3]),
    "pairwise": ("orm", orm(target="pairwise"), PAIRS[3]),
}
EncodeRow = Callable[..., Any]


def shifted(encode: EncodeRow, by: int) -> EncodeRow:
    """The encoding with its mask and labels moved along."""

    def moved(row: Encoded) -> Encoded:
        n = len(row.ids)
        places = [(i - by) % n for i in range(n)]
        columns = {name: [values[i] for i in places] for name, values in row.columns.items()}
        return replace(row, columns=columns, mask=[row.mask[i] for i in places])

    def planted(*args: Any) -> Any:
        row = encode(*args)
        return EncodedPair(*map(moved, row.parts)) if isinstance(row, EncodedPair) else moved(row)

    return planted


def swapped(encode: EncodeRow) -> EncodeRow:
    """The encoding with the sides of a pair exchanged."""

    def planted(*args: Any) -> EncodedPair:
        pair = encode(*args)
        return EncodedPair(pair.rejected, pair.chosen)

    return planted


def scored(model: CriticModel, question: str, steps: Sequence[str]) -> list[float]:
    """What the search reads: the score of every prefix."""

    async def read() -> list[list[float]]:
        return await ModelCritic(model).step_scores([State(question, tuple(map(Step, steps)))])

    return asyncio.run(read())[0]


def check_positions(encode: EncodeRow, row: Row, model: CriticModel, expected: list[float]) -> None:
    """The trainer's logits where labels stand are the scores that the search reads."""
    batch = collate([encode(row, model.prompt_format, Encoder(model.tokenizer))])
    with torch.no_grad():
        trained = torch.sigmoid(model(batch["input_ids"], batch["attention_mask"]))[batch["mask"]].tolist()
    assert trained[0] == pytest.approx(expected[0], abs=1e-5)
    assert trained[-1] == pytest.approx(expected[-1], abs=1e-5)
    if len(trained) == len(expected):  # not so for `token`, which labels what lies between as well
        assert trained == pytest.approx(expected, abs=1e-5)


def read_by_search(name: str, row: Any, model: CriticModel) -> list[float]:
    if isinstance(row, PairRow):
        return [scored(model, row.question, side)[-1] for side in (row.chosen, row.rejected)]
    scores = scored(model, row.question, row.steps)
    return scores[1:] if isinstance(row, StepRow) else scores


@pytest.fixture(scope="module")
def critic(tiny_model: Path) -> CriticModel:
    model = CriticModel.create("prm", str(tiny_model), HeadConfig(width=16))
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
    return model.eval()


@pytest.mark.parametrize("name", ENCODINGS)
def test_critics_are_trained_where_they_are_read(name: str, critic: CriticModel) -> None:
    kind, losses, row = ENCODINGS[name]
    check_positions(recipe(kind, losses).encode, row, critic, read_by_search(name, row, critic))


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", ENCODINGS)
def test_a_shifted_mask_is_caught(name: str, by: int, critic: CriticModel) -> None:
    kind, losses, row = ENCODINGS[name]
    with pytest.raises(AssertionError):
        check_positions(shifted(recipe(kind, losses).encode, by), row, critic, read_by_search(name, row, critic))


def test_exchanged_sides_are_caught(critic: CriticModel) -> None:
    with pytest.raises(AssertionError):
        check_positions(swapped(encode_pair), PAIRS[3], critic, read_by_search("pairwise", PAIRS[3], critic))


EXPECTED_LABELS: dict[str, Callable[[Any], list[float]]] = {
    "prefix": lambda row: [row.label] * 3,
    "tree_q": lambda row: list(row.q_values),
    "td_lambda": lambda row: [row.label] * 3,  # lambda 1
    "hard": lambda row: [float(label > 0.5) for label in row.labels],
}
LABEL_CASES: dict[str, tuple[Kind, CriticLossConfig, Sequence[Row]]] = {
    "prefix": ("value", value(target="prefix"), SOLUTIONS),
    "tree_q": ("value", value(target="tree_q"), TREES),
    "td_lambda": ("value", value(target="td_lambda", lam=1.0), TREES),
    "hard": ("prm", prm(target="hard", threshold=0.5), STEPS),
}


def check_labels(name: str, encode_rows: Callable[[Sequence[Row]], list[Encoded]]) -> None:
    """Every row bears its own labels."""
    rows = LABEL_CASES[name][2]
    for row, found in zip(rows, encode_rows(rows), strict=True):
        assert list(labelled(found).values()) == pytest.approx(EXPECTED_LABELS[name](row))


@pytest.mark.parametrize("name", LABEL_CASES)
def test_labels_are_the_rows_own(name: str) -> None:
    kind, losses, _ = LABEL_CASES[name]
    check_labels(name, lambda rows: [encoded(kind, losses, row) for row in rows])


@pytest.mark.parametrize("name", LABEL_CASES)
def test_labels_of_another_trajectory_are_caught(name: str) -> None:
    kind, losses, _ = LABEL_CASES[name]

    def planted(rows: Sequence[Row]) -> list[Encoded]:
        own = [encoded(kind, losses, row) for row in rows]
        return [replace(a, columns=b.columns) for a, b in zip(own, own[1:] + own[:1], strict=True)]

    with pytest.raises(AssertionError):
        check_labels(name, planted)


def check_padding(collate_rows: Callable[[Sequence[Any]], dict[str, Tensor]]) -> None:
    """A row's tensors are the same in a batch with a longer row as alone, and nothing counts behind them."""
    encode = Encoder(Characters())
    rows = [
        with_language_labels(encoded("value", value(target="tree_q"), row), row, FORMAT, encode, EOS)
        for row in (SMALL_TREE, replace(SMALL_TREE, question="QQQQ"))
    ]
    alone, batch, n = collate_rows(rows[:1]), collate_rows(rows), len(rows[0].ids)
    assert set(alone) == {"input_ids", "attention_mask", "target", "mask", "weight", "written"}
    for name, tensor in alone.items():
        assert torch.equal(batch[name][:1, :n], tensor), name
        if name != "target":
            assert not batch[name][0, n:].any(), name


def padded_left(rows: Sequence[Encoded]) -> dict[str, Tensor]:
    right, width = collate(rows), max(len(row.ids) for row in rows)
    return {
        name: torch.stack([one.roll(width - len(row.ids)) for one, row in zip(tensor, rows, strict=True)])
        for name, tensor in right.items()
    }


def test_padding_stands_on_the_right() -> None:
    check_padding(collate)


def test_padding_on_the_left_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_padding(padded_left)


def test_a_pairs_loss_does_not_depend_on_its_batch(critic: CriticModel) -> None:
    """Padding changes nothing: the mean of two pairs' losses is the loss of both in one batch."""
    made = recipe("orm", orm(target="pairwise"))
    long = PairRow("p", "7 apples?", ("7 and 7 is 14", "14 and 1 is 15", "#### 15"), ("7", "#### 7"))
    pairs = [made.encode(row, critic.prompt_format, Encoder(critic.tokenizer)) for row in (PAIRS[0], long)]

    def loss(*rows: Any) -> float:
        batch = collate(rows)
        with torch.no_grad():
            return made.loss(critic(batch["input_ids"], batch["attention_mask"]), batch).item()

    assert loss(*pairs) == pytest.approx((loss(pairs[0]) + loss(pairs[1])) / 2, abs=1e-4)


# Which rows


@pytest.mark.parametrize(
    ("kind", "losses", "expected"),
    [
        ("value", value(), SolutionRow),
        ("value", value(target="prefix"), SolutionRow),
        ("value", value(target="tree_q"), TreeRow),
        ("value", value(target="td_lambda"), TreeRow),
        ("value", value(target="td_lambda", estimate="model"), SolutionRow),
        ("value", value(target="tree_q", estimate="model"), TreeRow),
        ("prm", prm(), StepRow),
        ("prm", prm(target="hard"), StepRow),
        ("prm", prm(target="pairwise"), PairRow),
        ("prm", orm(target="pairwise"), StepRow),
        ("orm", orm(), SolutionRow),
        ("orm", orm(target="pairwise"), PairRow),
    ],
)
def test_the_rows_that_an_objective_needs(kind: Kind, losses: CriticLossConfig, expected: type) -> None:
    assert needed_rows(kind, losses) is expected


@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (SMALL, {"label": 1.5}, r"label 1\.5 .* in \[0, 1\]"),
        (SMALL, {"label": float("nan")}, r"label nan"),
        (SMALL, {"label": -0.1}, r"label -0\.1"),
        (SMALL, {"steps": ()}, "at least one"),
        (StepRow("p", "Q", ("a",), (1.0,)), {"labels": (1.1,)}, r"label 1\.1"),
        (StepRow("p", "Q", ("a",), (1.0,)), {"steps": ("a", "b")}, "one label a step"),
        (SMALL_TREE, {"q_values": (0.5, 0.25, 1.2)}, r"label 1\.2"),
        (SMALL_TREE, {"q_values": (0.5, 0.25)}, "3, one a prefix"),
        (SMALL_TREE, {"visits": (4, 2)}, "3, one a prefix"),
        (SMALL_TREE, {"visits": (4, 2, -1)}, "visits -1"),
        (PairRow("p", "Q", ("a",), ("b",)), {"rejected": ()}, "at least one"),
        (PairRow("p", "Q", ("a",), ("b",)), {"chosen": ()}, "at least one"),
    ],
)
def test_a_row_refuses_what_it_cannot_hold(row: Row, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(row, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "losses", "row", "message"),
    [
        ("value", value(target="td_lambda"), replace(SMALL_TREE, label=None), "no outcome"),
        ("value", value(target="tree_q"), SMALL, "a SolutionRow .* expected TreeRows for value"),
        ("orm", orm(), PairRow("p", "Q", ("a",), ("b",)), "a PairRow .* expected SolutionRows for orm"),
        ("prm", prm(target="pairwise"), StepRow("p", "Q", ("a",), (1.0,)), "a StepRow .* expected PairRows for prm"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused(
    kind: Kind, losses: CriticLossConfig, row: Row, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        train_critic(kind, TrainCall([row], str(tiny_model), tmp_path / "out", FAST, losses))
    assert not (tmp_path / "out").exists()


ENDLESS = "1 + 1 = 2, " * 60  # more tokens than the tiny model's context of 256
TOO_LONG: dict[str, tuple[Kind, CriticLossConfig, Row, Row]] = {
    "token": ("value", value(), SOLUTIONS[0], replace(SOLUTIONS[1], steps=(ENDLESS, "#### 3"))),
    "tree_q": ("value", value(target="tree_q"), TREES[0], replace(TREES[1], steps=(ENDLESS, "#### 3"))),
    "hard": ("prm", prm(target="hard"), STEPS[0], replace(STEPS[1], steps=(ENDLESS, "#### 3"))),
    "chosen": ("orm", orm(target="pairwise"), PAIRS[0], replace(PAIRS[1], chosen=(ENDLESS,))),
    "rejected": ("orm", orm(target="pairwise"), PAIRS[0], replace(PAIRS[1], rejected=(ENDLESS,))),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_step_longer_than_the_context_is_left_out_and_counted(name: str, tiny_model: Path, tmp_path: Path) -> None:
    kind, losses, short, long = TOO_LONG[name]
    found = train_critic(
        kind, TrainCall([short, long], str(tiny_model), tmp_path / "out", TrainConfig(max_length=10_000), losses)
    )
    assert (found["rows"], found["left_out"]) == (1, 1)
    with pytest.raises(DataError, match="none of 1 rows"):
        train_critic(kind, TrainCall([long], str(tiny_model), tmp_path / "none", TrainConfig(max_length=10_000), losses))


def test_a_models_values_leave_out_what_is_too_long(tiny_model: Path, tmp_path: Path) -> None:
    train_critic("value", TrainCall(SOLUTIONS, str(tiny_model), tmp_path / "start", SHORT))
    rows = [*SOLUTIONS[:3], replace(SOLUTIONS[3], steps=(ENDLESS, "#### 3"))]
    losses = value(target="td_lambda", estimate="model")
    found = train_critic("value", TrainCall(rows, str(tmp_path / "start"), tmp_path / "out", SHORT, losses))
    assert (found["rows"], found["left_out"]) == (3, 1)


def test_a_checkpoint_of_another_kind_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    train_critic("orm", TrainCall(SOLUTIONS, str(tiny_model), tmp_path / "orm", SHORT))
    for kind, losses, rows in (("value", value(target="tree_q"), TREES), ("prm", prm(target="pairwise"), PAIRS)):
        with pytest.raises(ModelError, match=f"kind 'orm'; expected '{kind}'"):
            train_critic(kind, TrainCall(rows, str(tmp_path / "orm"), tmp_path / "out", FAST, losses))  # type: ignore[arg-type]


# Configuration


def test_the_defaults_are_what_was_before() -> None:
    losses = CriticLossConfig()
    assert (losses.value.target, losses.value.loss, losses.value.lm_weight) == ("token", "mse", 0.0)
    assert (losses.prm.target, losses.prm.loss) == ("soft", "cross_entropy")
    assert (losses.orm.target, losses.orm.loss) == ("outcome", "cross_entropy")


@pytest.mark.parametrize(
    ("of", "settings", "message"),
    [
        (ValueObjective, {"target": "q"}, r"critic_loss\.value\.target is 'q'; expected one of prefix"),
        (ValueObjective, {"loss": "l1"}, r"value\.loss is 'l1'"),
        (ValueObjective, {"estimate": "oracle"}, r"value\.estimate"),
        (ValueObjective, {"gamma": 1.1}, r"value\.gamma is 1\.1"),
        (ValueObjective, {"lam": -0.1}, r"value\.lam is -0\.1"),
        (ValueObjective, {"prefixes": -1}, r"value\.prefixes is -1"),
        (ValueObjective, {"lm_weight": -1.0}, r"value\.lm_weight is -1\.0"),
        (ValueObjective, {"lm_weight": float("nan")}, r"value\.lm_weight is nan"),
        (StepObjective, {"target": "soft-ish"}, r"prm\.target"),
        (StepObjective, {"loss": "hinge"}, r"prm\.loss"),
        (StepObjective, {"threshold": 1.0}, r"prm\.threshold is 1\.0"),
        (StepObjective, {"threshold": -0.5}, r"prm\.threshold"),
        (OutcomeObjective, {"target": "soft"}, r"orm\.target"),
        (OutcomeObjective, {"loss": "hinge"}, r"orm\.loss"),
    ],
)
def test_configurations_out_of_range(of: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of(**settings)


def test_objectives_are_set_by_dotted_names(tiny_model: Path, tmp_path: Path) -> None:
    settings = {
        "critic_loss.value.target": "prefix",
        "critic_loss.value.prefixes": 2,
        "critic_loss.prm.threshold": 0.5,
        "critic_loss.orm.loss": "mse",
        "head.kind": "ovm",
    }
    job = load_config(job_config("orm"), None, settings)
    assert job.critic_loss.value == ValueObjective(target="prefix", prefixes=2)
    assert job.critic_loss.prm.threshold == 0.5
    assert job.critic_loss.orm.loss == "mse"
    assert job.head.kind == "ovm"
    with pytest.raises(ConfigError, match="lam"):
        load_config(job_config("value"), None, {"critic_loss.value.lamda": 0.5})


def test_a_file_of_other_rows_is_refused_by_line(tiny_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "Q", "chosen": ["a"], "rejected": ["b"]}\n{"question": "Q", "steps": ["a"], "label": 1}\n')
    job = job_config("orm")(str(tiny_model), critic_loss=orm(target="pairwise"))
    with pytest.raises(DataError, match=r"rows\.jsonl:2: a SolutionRow; expected rows for orm \(PairRow\)"):
        train_from_file("orm", file, tmp_path / "out", job)
    file.write_text('{"question": "Q", "chosen": ["a"], "rejected": ["b"]}\n')
    assert train_from_file("orm", file, tmp_path / "out", job)["rows"] == 1


def test_pickled_weights_are_refused_as_a_start(tiny_model: Path, tmp_path: Path) -> None:
    start = tmp_path / "pickled"
    shutil.copytree(tiny_model, start)
    torch.save(load_file(start / "model.safetensors"), start / "pytorch_model.bin")
    (start / "model.safetensors").unlink()
    for losses in (value(target="prefix"), value(lm_weight=1.0)):
        with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
            train_critic("value", TrainCall(SOLUTIONS, str(start), tmp_path / "out", FAST, losses))
    train_critic("value", TrainCall(SOLUTIONS, str(tiny_model), tmp_path / "critic", SHORT))
    (tmp_path / "critic" / "model.safetensors").rename(tmp_path / "critic" / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        train_critic("value", TrainCall(SOLUTIONS, str(tmp_path / "critic"), tmp_path / "out", FAST))
