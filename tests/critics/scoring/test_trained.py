"""A trained critic in use: cached and batched scores against plain forwards of whole sequences."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from critics.model.heads import HeadConfig
from critics.model.model import CriticModel
from critics.scoring.trained import AGGREGATES, ModelCritic
from llm_mcts.errors import ConfigError, QuestionError
from llm_mcts.prompts import Encoder
from llm_mcts.types import Critic, State, Step, metered
from trainers.data.encoding import encode_outcome_at_end, encode_outcome_everywhere, encode_steps
from trainers.data.rows import SolutionRow, StepRow

QUESTION = "Ann has 5 apples and buys 3 more. How many apples does Ann have now?"
LINES = ["Ann has 5 + 3 = 8 apples.", "Then Ann has 8 - 1 = 7 apples left.", "#### 8"]


def state(*lines: str, question: str = QUESTION) -> State:
    return State(question, tuple(Step(line) for line in lines))


STATES = [
    state(),
    state(LINES[0]),
    state(*LINES[:2]),
    state(*LINES),
    state(LINES[0], LINES[2]),
    state(LINES[1]),
    state("", "5"),
    state(question="7?"),
    state("7", "8", question="7?"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> CriticModel:
    """A value model with larger weights, so that its scores differ and depend on all that stands before."""
    return lively(CriticModel.create("value", str(tiny_model), HeadConfig(width=16)))


@pytest.fixture(scope="module")
def prm(tiny_model: Path) -> CriticModel:
    return lively(CriticModel.create("prm", str(tiny_model), HeadConfig(width=16)))


def lively(model: CriticModel) -> CriticModel:
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            if parameter.dim() > 1:
                parameter.mul_(15.0)
        model.head[3].weight.mul_(4.0)
    return model.eval()


def tokens_of(model: CriticModel, one: State) -> list[int]:
    return [token for token, _ in positions(model, one)]


def positions(model: CriticModel, one: State) -> list[tuple[int, bool]]:
    """Each token of the state's text, and whether it is the last one of the question or of a line."""
    segments = [f"Question: {one.question}\nAnswer:\n", *(f"{step.text}\n" for step in one.steps)]
    pieces = [model.tokenizer(segment, add_special_tokens=False).input_ids for segment in segments]
    return [(token, i == len(piece) - 1) for piece in pieces for i, token in enumerate(piece)]


def plain_scores(model: CriticModel, one: State) -> list[float]:
    """Scores of the question and of each prefix by one whole forward without a cache."""
    found = positions(model, one)
    with torch.no_grad():
        scores = torch.sigmoid(model(torch.tensor([[token for token, _ in found]])))[0].tolist()
    return [score for score, (_, last) in zip(scores, found, strict=True) if last]


def step_scores(critic: ModelCritic, *states: State) -> list[list[float]]:
    return asyncio.run(critic.step_scores(states))


@pytest.fixture
def forwards(model: CriticModel) -> Iterator[list[Any]]:
    """The token ids of every forward of the backbone."""
    seen: list[Any] = []
    handle = model.backbone.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["input_ids"].clone()), with_kwargs=True
    )
    yield seen
    handle.remove()


def assert_close(found: list[list[float]], expected: list[list[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


def test_the_scores_tell_states_apart(model: CriticModel) -> None:
    """Else an error in positions or masks would not show below."""
    scores = sorted(score for one in STATES for score in plain_scores(model, one)[-1:])
    assert min(b - a for a, b in itertools.pairwise(scores)) > 1e-4


def test_it_is_a_critic(model: CriticModel) -> None:
    assert isinstance(ModelCritic(model), Critic)


@pytest.mark.parametrize("cache_mb", [0, 64])
@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_cached_scores_are_those_of_a_plain_forward(model: CriticModel, cache_mb: int, max_batch: int) -> None:
    critic = ModelCritic(model, cache_mb=cache_mb, max_batch=max_batch)
    expected = [plain_scores(model, one) for one in STATES]
    assert_close(step_scores(critic, *STATES), expected)
    assert_close(step_scores(critic, *STATES[::-1])[::-1], expected)


@settings(max_examples=25, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(
    calls=st.lists(st.tuples(st.lists(st.integers(0, len(STATES) - 1), max_size=4), st.integers(0, 20)), max_size=5),
    max_batch=st.sampled_from([1, 2, 8]),
    cached_tokens=st.sampled_from([0, 50, 100_000]),
)
def test_any_schedule_gives_what_a_plain_forward_gives(
    model: CriticModel, calls: list[tuple[list[int], int]], max_batch: int, cached_tokens: int
) -> None:
    critic = ModelCritic(model, max_batch=max_batch)
    critic.batch.tree.byte_limit = cached_tokens * 256  # 2 layers, keys and values, 2 heads of 8 float32

    async def later(chosen: list[int], wait: int) -> list[list[float]]:
        for _ in range(wait):
            await asyncio.sleep(0)
        return await critic.step_scores([STATES[i] for i in chosen])

    async def run() -> list[list[list[float]]]:
        return list(await asyncio.gather(*(later(*call) for call in calls)))

    for (chosen, _), found in zip(calls, asyncio.run(run()), strict=True):
        assert_close(found, [plain_scores(model, STATES[i]) for i in chosen])


def test_a_step_at_a_time(model: CriticModel, forwards: list[Any]) -> None:
    """Each call computes the new step's tokens and no other, at their right positions."""
    critic = ModelCritic(model)
    known = 0
    for n in range(4):
        with metered() as usage:
            assert_close(step_scores(critic, state(*LINES[:n])), [plain_scores(model, state(*LINES[:n]))])
        length = len(tokens_of(model, state(*LINES[:n])))
        assert usage.critic_tokens == length - known
        assert usage.critic_calls == 1
        known = length
    with metered() as usage:
        step_scores(critic, state(*LINES))
    assert usage.critic_tokens == 0
    assert usage.critic_calls == 1
    assert usage.total_tokens == 0


def test_positions_by_hand(model: CriticModel, forwards: list[Any]) -> None:
    """The scored tokens are the last of each segment: here all of them newlines."""
    one = state("5 apples.", "#### 5", question="7?")
    newline = model.tokenizer("\n").input_ids[0]
    ends = [i for i, token in enumerate(tokens_of(model, one)) if token == newline]
    assert len(ends) == 4  # one stands after the question, one after "Answer:", one after each line
    with torch.no_grad():
        whole = torch.sigmoid(model(torch.tensor([tokens_of(model, one)])))[0].tolist()
    forwards.clear()
    assert_close(step_scores(ModelCritic(model), one), [[whole[i] for i in ends[1:]]])
    assert [ids.tolist() for ids in forwards] == [[tokens_of(model, one)]]


@pytest.mark.parametrize("encode_row", [encode_outcome_everywhere, encode_outcome_at_end, encode_steps])
def test_the_scorers_tokens_are_the_trainers(model: CriticModel, forwards: list[Any], encode_row: Any) -> None:
    row: Any = SolutionRow("p", QUESTION, tuple(LINES))
    if encode_row is encode_steps:
        row = StepRow("p", QUESTION, tuple(LINES), (1.0, 0.0, 1.0))
    encoded = encode_row(row, model.prompt_format, Encoder(model.tokenizer))
    [scores] = step_scores(ModelCritic(model), state(*LINES))
    assert [ids.tolist() for ids in forwards] == [[encoded.ids]]
    assert encoded.ids == tokens_of(model, state(*LINES))
    # and each score is the model's own at the trainer's last trained position
    with torch.no_grad():
        trained = torch.sigmoid(model(torch.tensor([encoded.ids])))[0, encoded.mask.index(True) :].tolist()
    assert scores[-1] == pytest.approx(trained[-1], abs=1e-5)


def test_concurrent_callers_share_forwards(model: CriticModel, forwards: list[Any]) -> None:
    async def run(critic: ModelCritic, states: list[State]) -> list[list[float]]:
        return list(await asyncio.gather(*(critic.score([one]) for one in states)))

    apart = [state(LINES[1], question=f"{digit}?") for digit in "56789"]  # they share no more than the prompt's first word
    for states in (STATES[:5], apart):
        wanted = [[plain_scores(model, one)[-1]] for one in states]
        forwards.clear()
        assert_close(asyncio.run(run(ModelCritic(model), states)), wanted)
        if states is apart:
            assert [len(ids) for ids in forwards] == [5]
        forwards.clear()
        assert_close(asyncio.run(run(ModelCritic(model, max_batch=2), states)), wanted)
        assert max(len(ids) for ids in forwards) <= 2


def test_a_shared_prefix_is_read_once_whoever_asks_for_it(model: CriticModel) -> None:
    """Callers at once: what they share is computed by one of them; fewer than four common tokens are not waited for."""

    async def run(critic: ModelCritic) -> None:
        await asyncio.gather(*(critic.score([one]) for one in STATES[:6]))

    with metered() as usage:
        asyncio.run(run(ModelCritic(model)))
    rows = [tokens_of(model, one) for one in STATES[:6]]
    distinct = len({tuple(row[: i + 1]) for row in rows for i in range(len(row))})
    assert distinct <= usage.critic_tokens <= distinct + 3 * len(rows)
    assert usage.critic_tokens < sum(map(len, rows)) / 2


def test_repeated_states_are_computed_once(model: CriticModel, forwards: list[Any]) -> None:
    with metered() as usage:
        scores = step_scores(ModelCritic(model), STATES[3], STATES[3], STATES[3])
    assert scores[0] == scores[1] == scores[2]
    assert [len(ids) for ids in forwards] == [1]
    assert usage.critic_tokens == len(tokens_of(model, STATES[3]))
    assert usage.critic_calls == 3


def test_a_state_two_callers_ask_for_at_once_is_computed_once(model: CriticModel, forwards: list[Any]) -> None:
    critic = ModelCritic(model)

    async def run() -> None:
        await asyncio.gather(critic.score([STATES[3]]), critic.score([STATES[3]]))

    asyncio.run(run())
    assert sum(len(ids) for ids in forwards) == 1


def test_nothing_to_score(model: CriticModel, forwards: list[Any]) -> None:
    assert asyncio.run(ModelCritic(model).score([])) == []
    assert forwards == []


def test_scores_lie_in_the_unit_interval_and_keep_order(model: CriticModel) -> None:
    scores = asyncio.run(ModelCritic(model).score(STATES))
    assert scores == pytest.approx([plain_scores(model, one)[-1] for one in STATES], abs=1e-5)
    assert all(0 < score < 1 for score in scores)


def test_aggregates_by_hand() -> None:
    found = {name: aggregate([0.5, 0.8, 0.2]) for name, aggregate in AGGREGATES.items()}
    # mean (0.5 + 0.8 + 0.2) / 3 = 0.5; product 0.5 * 0.8 * 0.2 = 0.08
    assert found == pytest.approx({"last": 0.2, "min": 0.2, "mean": 0.5, "prod": 0.08}, abs=1e-12)
    assert AGGREGATES["last"]([0.1, 0.9]) == 0.9
    assert AGGREGATES["min"]([0.1, 0.9]) == 0.1


@pytest.mark.parametrize("name", ["last", "min", "mean", "prod"])
def test_a_prms_score_aggregates_the_steps_without_the_question(prm: CriticModel, name: str) -> None:
    a, b, c = plain_scores(prm, state(*LINES))[1:]
    expected = {"last": c, "min": min(a, b, c), "mean": (a + b + c) / 3, "prod": a * b * c}
    [found] = asyncio.run(ModelCritic(prm, name).score([state(*LINES)]))
    assert found == pytest.approx(expected[name], abs=1e-5)


def test_other_kinds_take_the_last_score_whatever_the_aggregate(model: CriticModel) -> None:
    [found] = asyncio.run(ModelCritic(model, "prod").score([state(*LINES)]))
    assert found == pytest.approx(plain_scores(model, state(*LINES))[-1], abs=1e-5)


def test_an_unknown_aggregate_is_refused(model: CriticModel) -> None:
    with pytest.raises(ConfigError, match=r"'meen'; did you mean 'mean'\?"):
        ModelCritic(model, "meen")


TOO_LONG = state("7" * 250)
"""The tiny model's context is 256 tokens; each digit is one."""


def test_too_long_is_refused(model: CriticModel) -> None:
    length = len(tokens_of(model, TOO_LONG))
    assert length > 256
    with pytest.raises(QuestionError, match=f"{length} tokens; expected at most the critic's context of 256"):
        step_scores(ModelCritic(model), TOO_LONG)


def test_the_critic_goes_on_after_a_refusal(model: CriticModel) -> None:
    critic = ModelCritic(model)
    with pytest.raises(QuestionError):
        step_scores(critic, TOO_LONG)
    assert_close(step_scores(critic, STATES[2]), [plain_scores(model, STATES[2])])


def test_a_state_that_is_too_long_harms_no_one(model: CriticModel) -> None:
    critic = ModelCritic(model)

    async def run() -> list[Any]:
        calls = (critic.step_scores([one]) for one in (TOO_LONG, STATES[2]))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    refused, scored = asyncio.run(run())
    assert type(refused) is QuestionError
    assert_close(scored, [plain_scores(model, STATES[2])])


def fill(model: CriticModel, length: int) -> State:
    """A question with two lines, of `length` tokens in all."""
    start = len(tokens_of(model, state("7" * 100, "", question="7?")))
    return state("7" * 100, "7" * (length - start), question="7?")


def test_a_state_that_fills_the_context(model: CriticModel) -> None:
    """Two of its tokens are new beside a row with many: that row's padding must not touch it."""
    full, other = fill(model, 256), state("8" * 60)
    assert len(tokens_of(model, full)) == 256
    expected = [plain_scores(model, full), plain_scores(model, other)]
    critic = ModelCritic(model)
    step_scores(critic, State(full.question, full.steps[:1]))
    critic.batch.tree.insert(tokens_of(model, full)[:-2], stored(model, tokens_of(model, full)[:-2]))
    assert_close(step_scores(critic, full, other), expected)


def stored(model: CriticModel, tokens: list[int]) -> torch.Tensor:
    """Keys and values [layers, 2, heads, len, dim] by the model's own cache."""
    with torch.no_grad():
        layers = model.backbone(torch.tensor([tokens]), use_cache=True).past_key_values.layers
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in layers])


def test_a_failing_forward_reaches_every_caller_and_the_critic_goes_on(
    model: CriticModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    critic = ModelCritic(model)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the model broke")

    async def run() -> list[Any]:
        calls = (asyncio.wait_for(critic.score([one]), 10) for one in STATES[:3])
        return list(await asyncio.gather(*calls, return_exceptions=True))

    with monkeypatch.context() as patched:
        patched.setattr(model.backbone, "forward", broken)
        assert [(type(e), str(e)) for e in asyncio.run(run())] == [(RuntimeError, "the model broke")] * 3
    assert_close(asyncio.run(run()), [[plain_scores(model, one)[-1]] for one in STATES[:3]])


def test_a_cancelled_caller_harms_no_one(model: CriticModel) -> None:
    critic = ModelCritic(model)

    async def run() -> list[list[float]]:
        leaving, staying = (asyncio.create_task(critic.step_scores([STATES[i]])) for i in (3, 4))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert_close(asyncio.run(run()), [plain_scores(model, STATES[4])])


def test_a_short_memory_forgets_but_never_fails(model: CriticModel) -> None:
    critic = ModelCritic(model)
    critic.memo.size = 3
    for one in STATES:
        assert_close(step_scores(critic, one), [plain_scores(model, one)])


def test_a_reading_that_never_began_leaves_nothing_behind(model: CriticModel) -> None:
    critic = ModelCritic(model)

    async def fire_and_forget() -> None:
        task = asyncio.create_task(critic.score([STATES[3]]))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(fire_and_forget())
    assert_close(step_scores(critic, STATES[3]), [plain_scores(model, STATES[3])])
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    left = loop.create_task(critic.score([STATES[2]]))
    loop.run_until_complete(asyncio.sleep(0))  # and no further
    assert_close(step_scores(critic, STATES[2]), [plain_scores(model, STATES[2])])
    left.cancel()
    loop.run_until_complete(asyncio.gather(left, return_exceptions=True))
    loop.close()
