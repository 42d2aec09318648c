"""Policy gradient: what is sampled is what learns, advantages by hand, and a policy that comes to earn more.

Masks are checked by hand with a tokenizer that makes a token of each character.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch import Tensor

import llm_mcts.engines
import trainers.policy.policy_gradient.train
from critics.model.lora import LoraSpec
from llm_mcts.engines.base import EngineConfig
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, DataError, ModelError
from llm_mcts.models import EMBEDDED, model_folder
from llm_mcts.policy import PolicyConfig, Written
from llm_mcts.prompts import Encoder, PromptConfig, PromptFormat
from llm_mcts.settings import SolverConfig
from llm_mcts.types import Problem, State, Step
from trainers.critic.train import train_critic
from trainers.data.encoding import Encoded, collate
from trainers.data.rows import SolutionRow
from trainers.fit.fit import TrainCall, TrainConfig
from trainers.fit.losses import policy_gradient_loss, token_logprobs
from trainers.policy.policy_gradient.config import PolicyGradientConfig
from trainers.policy.policy_gradient.sampler import Sample, Sampler, encode_sample
from trainers.policy.policy_gradient.train import compared, questions_of, train_policy_gradient
from trainers.policy.policy_gradient.update import PolicyUpdate
from trainers.policy.trainer import PolicyCall

QUESTION = "Ben has 7 coins. Then Ben doubles them. Ben gives 3 to each of 2 friends. How many coins does Ben have now?"
PROBLEMS = [Problem("p0", QUESTION, "2"), Problem("p1", "Mia has 3 boxes with 4 shells each. How many?", "13")]
SHORT = SolverConfig(policy=PolicyConfig(max_solution_tokens=40))
SMALL = PolicyGradientConfig(iterations=2, questions_per_iteration=2, samples_per_question=4)
BATCH = TrainConfig(learning_rate=1e-3, batch_size=8)


@dataclass(frozen=True)
class Rewards:
    """A task that rewards what `right` says of the solution's text."""

    right: Callable[[str], bool]
    name: str = "rewards"

    def load(self, split: str, limit: int | None = None, seed: int = 0) -> list[Problem]:
        return PROBLEMS

    def check(self, solution_text: str, gold: str) -> bool:
        return self.right(solution_text)


SOME = Rewards(lambda text: sum(map(ord, text)) % 2 == 0)
ALL = Rewards(lambda text: True)
SAME_ANSWER = Rewards(lambda text: text.endswith("#### 2"))


def train(out: Path, task: Rewards = SOME, pg: PolicyGradientConfig = SMALL, config: TrainConfig = BATCH, **how: Any) -> Any:
    given = {"start": EMBEDDED, "solver": SHORT, "problems": PROBLEMS, **how}
    return train_policy_gradient(PolicyCall([], out=out, config=config, settings=pg, task=task, **given))


def weights(folder: Path | str) -> dict[str, Tensor]:
    return load_file(Path(model_folder(str(folder))) / "model.safetensors")


def moved(folder: Path, start: Path | str = EMBEDDED) -> set[str]:
    before = weights(start)
    return {name for name, tensor in weights(folder).items() if not torch.equal(tensor, before[name])}


# Learning


def test_a_handful_of_iterations_make_a_rewarded_answer_likely(tmp_path: Path) -> None:
    """A bandit: one question, and one answer pays, which the embedded model gives about once in seven times."""
    pg = PolicyGradientConfig(iterations=5, questions_per_iteration=1, samples_per_question=24)
    config = TrainConfig(learning_rate=1e-3, batch_size=32, warmup=0.0)
    solver = SolverConfig(policy=PolicyConfig(max_solution_tokens=48))
    metrics = train(tmp_path / "out", SAME_ANSWER, pg, config, problems=PROBLEMS[:1], solver=solver)
    assert metrics["reward_first"] < 0.4
    assert metrics["reward_last"] > metrics["reward_first"] + 0.3
    assert (metrics["rows"], metrics["left_out"], metrics["steps"]) == (5 * 24, 0, 5)


def test_every_parameter_moves(tmp_path: Path) -> None:
    metrics = train(tmp_path / "out")
    assert moved(tmp_path / "out") == set(weights(EMBEDDED))
    assert metrics["rows"] == 2 * 2 * 4
    assert metrics["steps"] == 2
    assert metrics["usage"]["generated_tokens"] <= 2 * 2 * 4 * 40
    assert metrics["usage"]["lm_calls"] == 4


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_all_samples_are_alike_leave_one_out_moves_nothing(share: float, tmp_path: Path) -> None:
    task = Rewards(lambda text: share == 1.0)
    pg = replace(SMALL, iterations=1)
    found = train(tmp_path / "out", task, pg, problems=PROBLEMS[:1])
    assert found["reward_first"] == share
    assert moved(tmp_path / "out") == set()
    if share:  # without a baseline, being right is enough
        train(tmp_path / "none", task, replace(pg, baseline="none"), problems=PROBLEMS[:1])
        assert moved(tmp_path / "none") != set()


def test_one_pass_of_ppo_is_reinforce(tmp_path: Path) -> None:
    """The weights that learn are those that sampled: every ratio is 1."""
    for name, pg in (("plain", SMALL), ("clipped", replace(SMALL, ppo_clip=0.2))):
        train(tmp_path / name, pg=replace(pg, iterations=1))
    plain, clipped = weights(tmp_path / "plain"), weights(tmp_path / "clipped")
    for name, before in weights(EMBEDDED).items():
        # Adam's first step is as long for a small gradient as for a large one, and rounding decides the smallest's sign.
        same = torch.isclose(plain[name], clipped[name], atol=1e-5)
        assert same.float().mean() > 0.99, name
        assert not torch.equal(plain[name], before)


def test_more_passes_of_ppo_go_on(tmp_path: Path) -> None:
    found = train(
        tmp_path / "out", pg=replace(SMALL, iterations=1, ppo_clip=0.2, ppo_epochs=3), config=replace(BATCH, batch_size=4)
    )
    assert found["steps"] == 3 * 2


def test_with_lora_the_base_stays_and_the_checkpoint_is_whole(tmp_path: Path) -> None:
    config = replace(BATCH, lora=LoraSpec(rank=2))
    train(tmp_path / "out", pg=replace(SMALL, iterations=2, kl_weight=0.1), config=config)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert moved(tmp_path / "out") == {name for name in weights(EMBEDDED) if "_proj" in name}


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        torch.manual_seed(len(found))  # what the process drew before must not matter
        found.append(train(tmp_path / name, seed=seed, pg=replace(SMALL, iterations=1)))
    assert found[0] == found[1]
    one, two, three = (weights(tmp_path / name) for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


# What samples is what learns


def update_of(start: str, config: TrainConfig = BATCH, pg: PolicyGradientConfig = SMALL) -> PolicyUpdate:
    return PolicyUpdate(start, config, pg, PromptConfig(), 0)


def shaken(update: PolicyUpdate) -> Any:
    """The policy with whatever learns changed."""
    model = update.policy.model
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    return model


@pytest.mark.parametrize("rank", [0, 4])
def test_the_engine_samples_by_the_weights_in_training(rank: int, tiny_model: Path) -> None:
    update = update_of(str(tiny_model), replace(BATCH, lora=LoraSpec(rank=rank)))
    sampler = Sampler(SHORT, str(tiny_model), update.policy.tokenizer, 1.0, None)
    shaken(update)
    before = {name: p.clone() for name, p in update.policy.model.state_dict().items()}
    sampler.refresh(update.policy.model)
    assert sampler._solver is not None
    prompt, steps = f"Question: {QUESTION}\nAnswer:\n", ("2 + 3 = 5\n", "#### 5\n")
    [found] = asyncio.run(sampler._solver.engine.logprobs([prompt], [steps]))
    ids = torch.tensor([update.policy.encode([prompt, *steps])])
    with torch.no_grad():
        logits = update.policy.model(input_ids=ids).logits
    assert found == pytest.approx(token_logprobs(logits, ids)[0, -len(found) :].tolist(), abs=1e-4)
    assert all(torch.equal(p, before[name]) for name, p in update.policy.model.state_dict().items())
    assert all(p.requires_grad for name, p in update.policy.model.named_parameters() if rank == 0 or "lora_" in name)
    sampler.close()


class OnDisk(TransformersEngine):
    """An engine that reads checkpoints, as those of other libraries do."""

    read: ClassVar[list[str]] = []

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(replace(config, name="transformers"))
        self.read.append(config.model)


class Swapping(OnDisk):
    """One that takes over another checkpoint."""

    async def swap(self, model: str) -> None:
        self.__init__(replace(self.config, model=model))  # type: ignore[misc]


@pytest.mark.parametrize("kind", [OnDisk, Swapping])
def test_engines_that_read_from_disk_give_the_same_policy(
    kind: type[OnDisk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "memory")
    monkeypatch.setattr(kind, "read", [])
    monkeypatch.setitem(llm_mcts.engines.ENGINES, "vllm", f"{__name__}:{kind.__name__}")
    on_disk = replace(SHORT, engine=EngineConfig(name="vllm"))
    train(tmp_path / "disk", solver=on_disk)
    assert [Path(folder).name for folder in kind.read] == ["policy_1", "policy_2"]
    memory, disk = weights(tmp_path / "memory"), weights(tmp_path / "disk")
    assert all(torch.equal(memory[name], disk[name]) for name in memory)


def test_samples_are_of_the_whole_distribution_at_the_temperature() -> None:
    policy = PolicyConfig(temperature=0.3, top_k=5, top_p=0.5, min_p=0.1, max_solution_tokens=7)
    update = update_of(EMBEDDED)
    sampler = Sampler(replace(SHORT, policy=policy, search="mcts"), EMBEDDED, update.policy.tokenizer, 1.5, None)
    assert sampler.config.policy == PolicyConfig(temperature=1.5, max_solution_tokens=7, max_step_tokens=100)
    sampler.close()


def test_a_cut_answer_earns_nothing() -> None:
    """ "#### 2", cut off, may have been the beginning of 25."""
    update = update_of(EMBEDDED)
    solver = SolverConfig(policy=PolicyConfig(max_solution_tokens=16))
    sampler = Sampler(solver, EMBEDDED, update.policy.tokenizer, 1.0, None)
    sampler.refresh(update.policy.model)
    [samples] = sampler.sample(PROBLEMS[:1], 4, ALL, 0)  # whatever is stated is right
    sampler.close()
    assert any(s.written.cut for s in samples)
    assert [s.reward for s in samples] == [float(s.state.answer is not None) for s in samples]
    assert sampler.usage.lm_calls == 1


def test_each_question_is_judged_by_its_own_answer() -> None:
    @dataclass(frozen=True)
    class ByGold(Rewards):
        def check(self, solution_text: str, gold: str) -> bool:
            return gold == PROBLEMS[0].gold

    update = update_of(EMBEDDED)
    sampler = Sampler(SHORT, EMBEDDED, update.policy.tokenizer, 1.0, None)
    sampler.refresh(update.policy.model)
    for problems in (PROBLEMS, PROBLEMS[::-1]):
        groups = sampler.sample(problems, 4, ByGold(lambda text: False), 0)
        assert [[s.state.question for s in group] for group in groups] == [[p.question] * 4 for p in problems]
        assert [any(s.reward for s in group) for group in groups] == [p.gold == PROBLEMS[0].gold for p in problems]
    sampler.close()


def test_weights_that_are_spread_over_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ConfigError, match="accelerate is set to FSDP"):
        update_of(EMBEDDED)


def test_a_question_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    long = Problem("long", "7 apples? " * 300, "7")
    found = train(tmp_path / "out", problems=[PROBLEMS[0], long], pg=replace(SMALL, iterations=1))
    assert (found["rows"], found["left_out"]) == (4, 4)
    with pytest.raises(DataError, match="none of 4 samples"):
        train(tmp_path / "none", problems=[long], pg=replace(SMALL, iterations=1))
    assert not (tmp_path / "none").exists()


def test_what_is_no_number_is_not_saved(tiny_model: Path, tmp_path: Path) -> None:
    hot = update_of(str(tiny_model), replace(BATCH, learning_rate=1e30, batch_size=4, accumulation=1))
    with pytest.raises(ModelError, match=r"in step 2; .* lower learning_rate"):
        hot.learn(ROWS, len(ROWS), 0)
    update = update_of(EMBEDDED)
    next(iter(update.policy.model.parameters())).data[0] = torch.nan
    with pytest.raises(ModelError, match="is NaN or infinite"):
        update.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Tokens and masks by hand


class Characters:
    """A tokenizer that makes a token of each character."""

    bos_token_id = None

    @dataclass
    class Output:
        input_ids: list[int]

    def __call__(self, text: str, add_special_tokens: bool = True) -> "Characters.Output":
        return self.Output([ord(c) for c in text])


EOS = 3


def encoded(
    steps: tuple[str, ...], ended: bool = False, cut: bool = False, advantages: tuple[float, ...] = (0.5, -1.0)
) -> Encoded:
    state = State("Q", tuple(Step(text, terminal=i == len(steps) - 1) for i, text in enumerate(steps)))
    sample = Sample(Written(state, ended, cut), 0.0)
    return encode_sample(sample, advantages, PromptFormat(PromptConfig()), Encoder(Characters()), EOS)


# "Question: Q\nAnswer:\n" is 20 characters, places 0 to 19; "a\n" 20 and 21; "bc\n" 22 to 24.
TEXT = [*map(ord, "Question: Q\nAnswer:\na\nbc\n")]


def test_each_step_has_its_advantage_and_the_end_the_last_ones() -> None:
    row = encoded(("a", "bc"), ended=True)
    assert row.ids == [*TEXT, EOS]
    assert row.columns["advantage"][20:] == [0.5, 0.5, -1.0, -1.0, -1.0, -1.0]
    assert row.mask == [False] * 20 + [True] * 6


def test_nothing_is_learnt_that_the_model_did_not_write() -> None:
    further = encoded(("a", "bc"))  # other lines followed, and are dropped: no end
    assert (further.ids, further.mask) == (TEXT, [False] * 20 + [True] * 5)
    cut = encoded(("a", "bc"), cut=True)  # neither end nor newline
    assert (cut.ids, cut.mask) == (TEXT, [False] * 20 + [True] * 4 + [False])
    at_once = encoded(("",), ended=True, advantages=(0.25,))  # the end alone, without a line
    assert at_once.ids == [*TEXT[:20], EOS]
    assert at_once.columns["advantage"][20:] == [0.25]
    assert at_once.mask == [False] * 20 + [True]


# Advantages by hand


def test_returns_less_their_baselines() -> None:
    rewards, steps = [1.0, 0.0, 1.0, 0.0], [2, 1, 3, 1]
    assert compared(rewards, steps, "none", 1.0) == [[1.0, 1.0], [0.0], [1.0, 1.0, 1.0], [0.0]]
    assert compared(rewards, steps, "mean", 1.0) == [[0.5, 0.5], [-0.5], [0.5, 0.5, 0.5], [-0.5]]
    # others: (0 + 1 + 0) / 3 for a right one, (1 + 1 + 0) / 3 for a wrong one
    found = compared(rewards, steps, "leave_one_out", 1.0)
    assert found[0] == pytest.approx([2 / 3, 2 / 3])
    assert found[1] == pytest.approx([-2 / 3])
    # gamma 1/2: u = (1/2, 1), (0), (1/4, 1/2, 1), (0); the mean of their first is 3/16
    found = compared(rewards, steps, "mean", 0.5)
    assert found[0] == pytest.approx([5 / 16, 13 / 16])
    assert found[2] == pytest.approx([1 / 16, 5 / 16, 13 / 16])


def test_a_question_without_samples_has_no_advantages() -> None:
    for baseline in ("none", "mean", "leave_one_out"):
        assert compared([], [], baseline, 1.0) == []  # type: ignore[arg-type]


class Fixed:
    """A value model that knows three prefixes."""

    kind, aggregate = "value", staticmethod(max)
    values: ClassVar = {(): 0.5, ("a",): 0.25, ("a", "b"): 0.75}

    async def score(self, states: Any) -> list[float]:
        raise AssertionError("prefixes are asked for")

    async def step_scores(self, states: Any) -> list[list[float]]:
        texts = [tuple(step.text for step in state.steps) for state in states]
        return [[self.values[text[:i]] for i in range(len(text) + 1)] for text in texts]


def test_a_value_model_in_front_of_each_step() -> None:
    update = update_of(EMBEDDED)
    state = State("q", (Step("a"), Step("b"), Step("#### 1", terminal=True, answer="1")))
    groups = [[Sample(Written(state, True, False), 1.0)], []]
    pg = replace(SMALL, baseline="value", gamma=0.5, lam=0.25)
    # gamma 1/2, lambda 1/4; V = 0.5, 0.25, 0.75; r = 0, 0, 1: as in test_returns
    # A_2 = 1 - 0.75 = 0.25; A_1 = 0.5 * 0.75 - 0.25 + 0.25 / 8 = 0.15625; A_0 = 0.5 * 0.25 - 0.5 + 0.15625 / 8 = -0.35546875
    found = trainers.policy.policy_gradient.train._advantages(groups, pg, Fixed(), update)
    assert found[0][0] == pytest.approx([-0.35546875, 0.15625, 0.25])
    assert found[1] == []


def test_normalised_by_the_standard_deviation() -> None:
    update = update_of(EMBEDDED)
    right, wrong = (Sample(Written(State("q", (Step("x", terminal=True),)), True, False), r) for r in (1.0, 0.0))
    groups = [[right, wrong, wrong, wrong], [right, right, right, right]]
    advantages = trainers.policy.policy_gradient.train._advantages
    # mean 1/4: 3/4 and -1/4, deviation sqrt(3)/4; the second question's are all 0 and stay
    found = advantages(groups, replace(SMALL, baseline="mean", normalise_advantage="question"), None, update)
    assert [a for [a] in found[0]] == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert [a for [a] in found[1]] == [0.0] * 4
    # over both: the sum of squares is 9/16 + 3/16 = 3/4 of 8, deviation sqrt(3/32)
    found = advantages(groups, replace(SMALL, baseline="mean", normalise_advantage="batch"), None, update)
    assert [a for [a] in found[0]] == pytest.approx([0.75 * (32 / 3) ** 0.5, *[-0.25 * (32 / 3) ** 0.5] * 3])


def test_training_with_a_value_model(tiny_model: Path, tmp_path: Path) -> None:
    rows = [SolutionRow("p", QUESTION, ("2 + 3 = 5", "#### 5"), label) for label in (1.0, 0.0)]
    train_critic("value", TrainCall(rows, str(tiny_model), tmp_path / "value", TrainConfig()))
    pg = replace(SMALL, baseline="value", samples_per_question=1, iterations=1)
    found = train(tmp_path / "out", pg=pg, value_start=str(tmp_path / "value"))
    assert found["rows"] == 2
    assert moved(tmp_path / "out") == set(weights(EMBEDDED))  # also where no sample is right: V is above 0


# The update


ROWS = [
    Encoded([5, 6, 7, 8][: 2 + i % 3], [False, *[True] * (1 + i % 3)], {"advantage": [0.0, 1.0, -0.5, 2.0][: 2 + i % 3]})
    for i in range(8)
]


def gradient(update: PolicyUpdate, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Of the first optimiser step on ROWS."""
    seen: list[dict[str, Tensor]] = []

    def spy(*_: Any) -> Tensor:
        seen.append({n: p.grad.clone() for n, p in update.policy.model.named_parameters() if p.grad is not None})
        return torch.tensor(1.0)

    monkeypatch.setattr(update.accelerator, "clip_grad_norm_", spy)
    update.learn(ROWS, len(ROWS), 0)
    return seen[0]


@pytest.mark.parametrize(
    "pg", [SMALL, replace(SMALL, ppo_clip=0.2), replace(SMALL, kl_weight=0.5), replace(SMALL, ppo_clip=0.2, temperature=2.0)]
)
def test_8_forwards_of_1_row_have_the_gradient_of_1_of_8(
    pg: PolicyGradientConfig, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of different lengths: it is a mean over tokens, whatever the forwards."""
    found = [
        gradient(update_of(str(tiny_model), replace(BATCH, batch_size=size, accumulation=8 // size), pg), monkeypatch)
        for size in (8, 1)
    ]
    update = update_of(str(tiny_model))
    batch = collate(ROWS)
    logits = update.policy.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    policy_gradient_loss(
        token_logprobs(logits, batch["input_ids"], pg.temperature), batch["advantage"], batch["mask"]
    ).backward()
    for name, p in update.policy.model.named_parameters():  # ratio 1, and KL 0 to the start: both are REINFORCE's
        assert p.grad is not None
        for one in found:
            assert torch.allclose(one[name], p.grad, atol=1e-6), name


def test_the_ratio_is_to_the_weights_that_sampled(tiny_model: Path) -> None:
    update = update_of(str(tiny_model), replace(BATCH, batch_size=3), replace(SMALL, ppo_clip=0.2))
    old = update._old_logprobs(ROWS)
    shaken(update)
    assert [len(row) for row in old] == [len(row.ids) for row in ROWS]
    start = update_of(str(tiny_model)).policy.model
    for row, found in zip(ROWS, old, strict=True):
        ids = torch.tensor([row.ids])
        assert torch.allclose(found, token_logprobs(start(input_ids=ids).logits, ids)[0], atol=1e-5)


@pytest.mark.parametrize("rank", [0, 4])
def test_the_leash_is_to_the_start(rank: int, tiny_model: Path) -> None:
    update = update_of(str(tiny_model), replace(BATCH, lora=LoraSpec(rank=rank)), replace(SMALL, kl_weight=0.1))
    shaken(update)
    batch = collate(ROWS[:1])
    with torch.no_grad():
        expected = update_of(str(tiny_model)).policy.model(input_ids=batch["input_ids"]).logits
        now = update.policy.model(input_ids=batch["input_ids"]).logits
    assert torch.allclose(update._start_logits(batch), expected, atol=1e-5)
    assert not torch.allclose(now, expected, atol=1e-2)


def test_a_tight_leash_keeps_the_policy_where_it_was(tmp_path: Path) -> None:
    away = {}
    for weight in (0.0, 100.0):
        update = update_of(EMBEDDED, replace(BATCH, warmup=0.0), replace(SMALL, kl_weight=weight))
        for i in range(6):
            update.learn(ROWS, len(ROWS), i)
        batch = collate(ROWS)
        with torch.no_grad():
            start, now = (
                token_logprobs(model(input_ids=batch["input_ids"]).logits, batch["input_ids"])[batch["mask"]]
                for model in (update_of(EMBEDDED).policy.model, update.policy.model)
            )
        away[weight] = float((start - now).abs().mean())
    assert away[100.0] < 0.3 * away[0.0]


def test_the_learning_rate_rises_and_stays(tiny_model: Path) -> None:
    update = update_of(str(tiny_model), replace(BATCH, batch_size=2, warmup=0.5), replace(SMALL, iterations=2))
    rates = []
    real = update.optimiser.step

    def step() -> None:
        rates.append(update.optimiser.param_groups[0]["lr"])
        real()

    update.optimiser.step = step
    for i in range(2):
        update.learn(ROWS, len(ROWS), i)
    # 8 steps in all, of which half warm up
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3])


# Questions, failures, settings


def test_an_iterations_questions_differ_and_all_come() -> None:
    problems = [Problem(f"p{i}", f"{i}?", "0") for i in range(7)]
    laps = [[questions_of(problems, i, 3, 5) for i in (2 * lap, 2 * lap + 1)] for lap in range(2)]
    for lap in laps:
        assert len({p.id for batch in lap for p in batch}) == 6
    assert laps[0] != laps[1]
    assert questions_of(problems, 3, 3, 5) == laps[1][1]
    assert len(questions_of(problems, 4, 20, 5)) == 7


def test_a_crash_leaves_no_checkpoint(tmp_path: Path) -> None:
    calls = []

    def check(text: str) -> bool:
        calls.append(text)
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError, match="the power went"):
        train(tmp_path / "out", Rewards(check))
    assert calls
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"iterations": 0}, "iterations is 0; expected a whole number >= 1"),
        ({"samples_per_question": 1}, "samples_per_question is 1 with baseline leave_one_out"),
        ({"samples_per_question": 1, "baseline": "none", "normalise_advantage": "question"}, "samples_per_question is 1"),
        ({"temperature": 0.0}, r"temperature is 0\.0; expected a number > 0"),
        ({"kl_weight": -1.0}, r"kl_weight is -1\.0"),
        ({"ppo_clip": 1.0}, r"ppo_clip is 1\.0; expected a number in \[0, 1\)"),
        ({"ppo_epochs": 2}, "ppo_epochs is 2 with ppo_clip 0"),
        ({"gamma": 1.5}, r"gamma is 1\.5"),
        ({"lam": -0.1}, r"lam is -0\.1"),
        ({"baseline": "best"}, "baseline is 'best'"),
        ({"normalise_advantage": "yes"}, "normalise_advantage is 'yes'"),
    ],
)
def test_settings_out_of_range(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyGradientConfig(**how)


def test_what_cannot_be_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question"):
        train(tmp_path / "out", problems=[])
    with pytest.raises(DataError, match="questions to sample solutions of have no answer, p9 for one"):
        train(tmp_path / "out", problems=[Problem("p9", "7?")])
    with pytest.raises(ConfigError, match="'openai', whose servers do not get the weights"):
        train(tmp_path / "out", solver=SolverConfig(engine=EngineConfig(name="openai")))
    with pytest.raises(ConfigError, match="baseline is value and there is no value model"):
        train(tmp_path / "out", pg=replace(SMALL, baseline="value"))
    assert list(tmp_path.iterdir()) == []
