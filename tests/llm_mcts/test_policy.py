"""LMPolicy: completions of an engine become steps and solutions."""

import itertools
from math import inf, log, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, QuestionError
from llm_mcts.policy import LMPolicy, PolicyConfig
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State, Step, metered
from tests.search_cases import noise_script, run, scripted, shuffled


class FixedEngine:
    """Answers every request with the same completions."""

    chat_template = None

    def __init__(self, *completions: Completion) -> None:
        self.completions = list(completions)
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> list[Completion]:
        self.requests.append(request)
        return self.completions


def fixed(*completions: Completion, config: PolicyConfig | None = None) -> LMPolicy:
    return LMPolicy(FixedEngine(*completions), PromptFormat(PromptConfig()), config)


def line(text: str, p: float = 0.5, tokens: int = 3, reason: str = "stop") -> Completion:
    return Completion(text, log(p), tokens, reason)  # type: ignore[arg-type]


def propose(*completions: Completion) -> list[Step]:
    return run(fixed(*completions).propose(State("q"), len(completions), 0))


def test_a_line_is_a_step() -> None:
    (step,) = propose(line("  2 + 3 = 5 ", p=0.25, tokens=7))
    assert (step.text, step.num_tokens, step.terminal, step.answer) == ("2 + 3 = 5", 7, False, None)
    assert step.logprob == pytest.approx(-1.3862943611)  # ln 0.25 = -2 ln 2


@pytest.mark.parametrize(
    ("completion", "terminal", "answer"),
    [
        (line("#### 12"), True, "12"),
        (line("#### 12", reason="eos"), True, "12"),
        (line("The answer is 1,200.00."), True, "1200"),
        (line("so we get 12", reason="eos"), True, None),
        (line("so we get 12"), False, None),
        (line("so we get 1", reason="length"), True, None),
        (line("#### 1", reason="length"), True, None),  # the number may have been cut in the middle
    ],
)
def test_how_a_solution_ends(completion: Completion, terminal: bool, answer: str | None) -> None:
    (step,) = propose(completion)
    assert (step.terminal, step.answer) == (terminal, answer)


def test_repeated_samples_of_one_line_are_one_step_of_the_same_probability() -> None:
    steps = propose(line("a", 0.25), line("b", 0.5), line("a", 0.25), line("a", 0.25))
    assert [s.text for s in steps] == ["a", "b"]  # in order of first appearance
    assert steps[0].logprob == pytest.approx(log(0.25))


def test_distinct_tokenisations_of_one_line_add_up() -> None:
    (step,) = propose(line("a", 0.25, tokens=2), line("a", 0.125, tokens=3))
    assert step.logprob == pytest.approx(-0.9808292530)  # ln(0.25 + 0.125) = ln 0.375


@pytest.mark.parametrize(
    "samples",
    [
        (0.25, 0.25, 0.125),
        pytest.param((0.25, 0.125, 0.25)),
        pytest.param((0.125, 0.25, 0.25)),
        pytest.param((0.25, 0.125, 0.25, 0.125)),
    ],
)
def test_merging_counts_each_tokenisation_once_in_any_order(samples: tuple[float, ...]) -> None:
    (step,) = propose(*(line("a", p) for p in samples))
    assert step.logprob == pytest.approx(-0.9808292530)  # ln(0.25 + 0.125), however often each was drawn


def test_a_merged_step_ends_the_solution_only_where_all_samples_do_in_any_order() -> None:
    resumes, ends = line("so 3 boxes", 0.5), line("so 3 boxes", 0.125, reason="eos")
    for samples in [(resumes, ends), (ends, resumes)]:
        (step,) = propose(*samples)
        assert not step.terminal
    (step,) = propose(ends, ends)
    assert step.terminal


def rollout(text: str, reason: str = "eos", state: State | None = None) -> State:
    (end,) = run(fixed(line(text, reason=reason)).rollout(state or State("q"), 1, 0))
    return end


def test_a_roll_out_is_split_into_lines_and_ends_at_its_answer() -> None:
    end = rollout("a\n\n b \n#### 7\nmore\n#### 8", state=State("q", (Step("first"),)))
    assert [s.text for s in end.steps] == ["first", "a", "b", "#### 7"]
    assert [s.terminal for s in end.steps] == [False, False, False, True]
    assert end.answer == "7"


@pytest.mark.parametrize("reason", ["eos", "length", "stop"])
@pytest.mark.parametrize("text", ["", "\n", "a\nb"])
def test_a_roll_out_without_an_answer_still_ends(text: str, reason: str) -> None:
    end = rollout(text, reason)
    assert (end.terminal, end.answer) == (True, None)


def test_a_roll_out_cut_after_its_answer_line_keeps_the_answer() -> None:
    assert rollout("a\n#### 12\nQuest", "length").answer == "12"


def test_a_roll_out_cut_within_its_answer_line_has_no_answer() -> None:
    assert rollout("a\n#### 1", "length").answer is None  # of "#### 12"; propose gives None as well


def test_a_finished_solution_is_not_continued() -> None:
    policy = fixed()
    state = State("q", (Step("#### 1", terminal=True, answer="1"),))
    assert run(policy.rollout(state, 3, 0)) == [state] * 3
    assert policy.engine.requests == []  # type: ignore[attr-defined]


def test_what_the_engine_is_asked() -> None:
    engine = FixedEngine(line("a"))
    policy = LMPolicy(engine, PromptFormat(PromptConfig()), PolicyConfig(0.7, 11, 22))
    state = State("q", (Step("s"), Step("t")))
    run(policy.propose(state, 5, 6))
    run(policy.rollout(state, 7, 8))
    run(policy.rollout(state, 1, 9, temperature=0.0))
    prompt = ("Question: q\nAnswer:\n", "s\n", "t\n")
    assert engine.requests == [
        Request(prompt, 5, 11, 0.7, ("\n",), 6),
        Request(prompt, 7, 22, 0.7, ("\nQuestion:",), 8),
        Request(prompt, 1, 22, 0.0, ("\nQuestion:",), 9),
    ]


def test_another_temperature_is_the_fast_policys_too() -> None:
    prompt, state = PromptFormat(PromptConfig()), State("q")
    engine, fast = FixedEngine(line("a")), FixedEngine(line("b"))
    config = PolicyConfig(0.7, 11, 22)
    policy = LMPolicy(engine, prompt, config, LMPolicy(fast, prompt, config)).at(1.5)
    run(policy.propose(state, 5, 6))
    assert isinstance(policy.fast, LMPolicy)
    run(policy.fast.rollout(state, 7, 8))
    assert engine.requests == [Request(("Question: q\nAnswer:\n",), 5, 11, 1.5, ("\n",), 6)]
    assert fast.requests == [Request(("Question: q\nAnswer:\n",), 7, 22, 1.5, ("\nQuestion:",), 8)]


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_an_empty_question_is_an_error(question: str) -> None:
    policy = fixed(line("a"))
    with pytest.raises(QuestionError, match="empty"):
        run(policy.propose(State(question), 1, 0))
    with pytest.raises(QuestionError, match="empty"):
        run(policy.rollout(State(question), 1, 0))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"temperature": 0.0}, "0.0"),
        ({"temperature": -0.5}, "-0.5"),
        ({"max_step_tokens": 0}, "max_step_tokens is 0"),
        ({"max_solution_tokens": -3}, "max_solution_tokens is -3"),
        *(pytest.param({"temperature": t}, str(t)) for t in (nan, inf)),
    ],
)
def test_invalid_settings_are_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        PolicyConfig(**values)  # type: ignore[arg-type]


def test_a_long_number_of_samples_begins_with_the_short_one() -> None:
    policy, _ = scripted()
    few, many = (run(policy.rollout(State("q"), n, 3)) for n in (3, 10))
    assert [s.text for s in many[:3]] == [s.text for s in few]
    assert len({s.text for s in many}) > 1


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 2**40), st.integers(1, 6))
def test_proposals_are_distinct_and_depend_on_the_arguments_alone(question: str, seed: int, n: int) -> None:
    question = question.encode("utf-8", "ignore").decode()
    (policy, _), (late, _) = scripted(), scripted(turns=shuffled)
    state = State(f"{question}?")
    steps = run(policy.propose(state, n, seed))
    assert 1 <= len(steps) <= n
    assert len({s.text for s in steps}) == len(steps)
    again = run(late.propose(state, n, seed))
    assert [(s.text, s.logprob) for s in again] == [(s.text, s.logprob) for s in steps]


def test_scripted_draws_have_the_scripts_frequencies() -> None:
    engine = ScriptedEngine(lambda prompt: [("a", 0.7), ("b", 0.3)] if prompt == "p" else [])
    completions = run(engine.generate(Request(("p",), 2000, 5, seed=1)))
    # Standard deviation of the share: sqrt(0.7 * 0.3 / 2000) = 0.0102; the margin is four of them.
    assert sum(c.text == "a\n" for c in completions) / 2000 == pytest.approx(0.7, abs=0.041)
    greedy = run(engine.generate(Request(("p",), 3, 5, temperature=0.0)))
    assert [c.text for c in greedy] == ["a\n"] * 3


def test_scripted_completions_end_for_a_reason() -> None:
    engine = ScriptedEngine(lambda prompt: [("a", 0.5)] if prompt.count("\n") < 3 else [])
    with metered() as usage:
        for tokens, stop, expected in [
            (5, ("\n",), Completion("a", log(0.5), 1, "stop")),
            (2, (), Completion("a\na\n", 2 * log(0.5), 2, "length")),
            (5, (), Completion("a\na\na\n", 3 * log(0.5), 3, "eos")),
        ]:
            (completion,) = run(engine.generate(Request(("",), 1, tokens, 0.0, stop)))
            assert completion == expected
    assert (usage.lm_calls, usage.generated_tokens) == (3, 6)


def test_proposing_and_rolling_out_draw_the_same_first_line() -> None:
    """The step a policy proposes is the beginning of the solution it would write with that seed."""
    policy, _ = scripted(noise_script(width=4))
    for seed in range(20):
        (step,) = run(policy.propose(State("q"), 1, seed))
        (end,) = run(policy.rollout(State("q"), 1, seed))
        assert end.steps[0].text == step.text


def test_a_prompt_is_a_prefix_of_every_later_prompt() -> None:
    _, engine = scripted()
    policy = LMPolicy(engine, PromptFormat(PromptConfig(style="few_shot")))
    state = State("q")
    for seed in range(6):
        (step,) = run(policy.propose(state, 1, seed))
        if not step.terminal:
            state = state.then(step)
    prompts = [r.prompt for r in engine.requests]
    assert len(prompts) > 1
    for earlier, later in itertools.pairwise(prompts):
        assert later[: len(earlier)] == earlier


@pytest.mark.parametrize(
    ("reply", "same"), [("yes", True), (" Yes, they do.", True), ("no", False), ("maybe yes", False), ("", False)]
)
def test_a_model_judges_whether_two_steps_say_the_same(reply: str, same: bool) -> None:
    policy = fixed(line(reply))
    state = State("How many?", (Step("first"),))
    assert run(policy.equivalent(state, Step("2 + 3 = 5"), Step("3 + 2 = 5"))) is same
    (request,) = policy.engine.requests  # type: ignore[attr-defined]
    prompt = "".join(request.prompt)
    for part in ("How many?", "first", "2 + 3 = 5", "3 + 2 = 5"):
        assert part in prompt
    assert (request.n, request.temperature) == (1, 0.0)


def test_a_judge_of_the_chat_style_is_asked_in_a_chat() -> None:
    def template(messages: list[dict[str, str]]) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages)

    policy = LMPolicy(FixedEngine(line("yes")), PromptFormat(PromptConfig(style="chat"), template))
    assert run(policy.equivalent(State("q"), Step("a"), Step("b")))
    (request,) = policy.engine.requests  # type: ignore[attr-defined]
    assert request.prompt[0].startswith("<user>Here is")


def test_truncations_reach_the_engine_where_something_is_sampled() -> None:
    policy = fixed(line("#### 1"), config=PolicyConfig(top_k=5, top_p=0.9, min_p=0.1))
    run(policy.propose(State("q"), 1, 0))
    run(policy.rollout(State("q"), 1, 0, temperature=0.0))
    asked = [(r.temperature, r.top_k, r.top_p, r.min_p) for r in policy.engine.requests]  # type: ignore[attr-defined]
    assert asked == [(0.8, 5, 0.9, 0.1), (0.0, 0, 1.0, 0.0)]
    for wrong in ({"top_k": -1}, {"top_p": 0.0}, {"min_p": 2.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PolicyConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "reason", "lines", "ended", "cut", "answer"),
    [
        ("2 + 3 = 5\n#### 5\n", "eos", 2, True, False, "5"),
        ("2 + 3 = 5\n#### 5", "eos", 2, False, True, "5"),  # without the newline that the written form has
        ("2 + 3 = 5", "eos", 1, False, True, None),
        ("", "eos", 1, True, False, None),
        ("#### 5\nand more", "eos", 1, False, False, "5"),  # the end stands behind lines that were dropped
        ("#### 5\nand mo", "length", 1, False, False, "5"),
        ("2 + 3 = 5\n#### 1", "length", 2, False, True, None),  # perhaps the beginning of 12
        ("#### 5\n", "length", 1, False, False, "5"),
        ("#### 5", "stop", 1, False, False, "5"),  # a new question
    ],
)
def test_how_a_written_text_ended(text: str, reason: str, lines: int, ended: bool, cut: bool, answer: str | None) -> None:
    (written,) = run(fixed(line(text, reason=reason)).write(State("q"), 1, 0))
    assert (len(written.state.steps), written.ended, written.cut, written.state.answer) == (lines, ended, cut, answer)
    assert written.state.terminal
