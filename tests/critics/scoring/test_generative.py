"""Verdicts in words: scores by hand from a scripted engine, against plain forwards, and what happens without a verdict."""

import asyncio
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch

from critics import GenerativeVerifier, VerifierConfig, load_critic
from critics.scoring.generative import VERDICTS
from llm_mcts.engines.base import EngineConfig, Request
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import ConfigError, CriticError, ModelError
from llm_mcts.models import load_causal_lm, load_tokenizer
from llm_mcts.prompts import RATIONALE, PromptConfig, PromptFormat
from llm_mcts.types import Critic, State, Step, metered

QUESTION = "Ann has 5 apples and buys 3 more. How many?"
STATES = [
    State(QUESTION, (Step("Ann has 5 + 3 = 8 apples."), Step("#### 8", terminal=True, answer="8"))),
    State(QUESTION, (Step("Ann has 5 + 3 = 9 apples."), Step("#### 9", terminal=True, answer="9"))),
]
PLAIN = PromptFormat(PromptConfig())
ASKED = VERDICTS["genrm"].question


def run(work: Any) -> Any:
    return asyncio.run(work)


class Table:
    """An engine whose log-probabilities come from a function of prompt and word, and whose rationales from a list."""

    chat_template = None

    def __init__(self, p: Any, replies: list[tuple[str, str]] | None = None) -> None:
        self.p, self.replies, self.asked = p, replies or [], list[Any]()

    async def logprobs(self, prompt: Any, continuations: Any) -> list[list[float]]:
        self.asked.append("".join(prompt))
        return [[float(torch.tensor(self.p("".join(prompt), "".join(c))).log())] for c in continuations]

    async def generate(self, request: Request) -> Any:
        from llm_mcts.engines.base import Completion

        self.asked.append(request)
        return [Completion(text, -1.0, 3, reason) for text, reason in self.replies]  # type: ignore[arg-type]


def test_direct_is_the_probability_of_yes() -> None:
    engine = Table(lambda prompt, word: {" Yes": 0.7 if "= 8" in prompt else 0.2, " No": 0.1}[word])
    critic = GenerativeVerifier(engine, PLAIN)  # type: ignore[arg-type]
    assert isinstance(critic, Critic)
    assert run(critic.score(STATES)) == pytest.approx([0.7, 0.2])
    lines = "Ann has 5 + 3 = 8 apples.\n#### 8\n"
    assert engine.asked[0] == f"Question: {QUESTION}\nAnswer:\n{lines}Is the answer correct (Yes/No)?"


def test_the_orm_weighs_its_two_words_against_each_other() -> None:
    engine = Table(lambda _, word: {" correct": 0.3, " wrong": 0.1}[word])
    assert run(GenerativeVerifier(engine, PLAIN, "orm").score(STATES[:1])) == pytest.approx([0.75])  # type: ignore[arg-type]


def test_the_prm_judges_every_step_and_the_question_alone() -> None:
    true = {"?\nAnswer:\n": 0.5, "8 apples.\n": 0.9, "#### 8\n": 0.6}

    def p(prompt: str, word: str) -> float:
        before = prompt.removesuffix("Is the last step True or False?")
        share = next(share for end, share in true.items() if before.endswith(end))
        return share / 2 if word == " True" else (1 - share) / 2

    for aggregate, expected in (("min", 0.6), ("prod", 0.54), ("last", 0.6)):
        critic = GenerativeVerifier(Table(p), PLAIN, "prm", aggregate=aggregate)  # type: ignore[arg-type]
        assert run(critic.step_scores(STATES[:1])) == [pytest.approx([0.5, 0.9, 0.6])]
        assert run(critic.score(STATES[:1])) == pytest.approx([expected])


def test_a_vote_is_the_mean_over_rationales_that_came_to_a_verdict() -> None:
    replies = [("5 + 3 = 8.\n", "stop"), ("5 + 3 = 9?\n", "stop"), ("5 + 3 and on and on", "length"), ("Hm.", "eos")]
    engine = Table(lambda prompt, _: 0.9 if "5 + 3 = 8.\nIs" in prompt else 0.4, replies)
    critic = GenerativeVerifier(engine, PLAIN, config=VerifierConfig(rationales=4))  # type: ignore[arg-type]
    assert run(critic.score(STATES[:1])) == pytest.approx([0.65])  # (0.9 + 0.4) / 2: two abstain
    assert critic.abstentions == 2
    request, first, _ = engine.asked
    assert (request.n, request.stop, request.temperature) == (4, (ASKED,), 0.7)
    assert first.endswith(f"#### 8\n{RATIONALE}\n5 + 3 = 8.\n{ASKED}")


def test_no_verdict_at_all_is_an_error_that_names_the_question_never_a_zero() -> None:
    critic = GenerativeVerifier(Table(lambda *_: 1.0, [("on and on", "length")]), PLAIN, config=VerifierConfig(1, 0.0))  # type: ignore[arg-type]
    with pytest.raises(CriticError, match=r"none of 1 rationales .* 'Ann has 5 apples"):
        run(critic.score(STATES[:1]))
    neither = GenerativeVerifier(Table(lambda *_: 0.0), PLAIN, "orm")  # type: ignore[arg-type]
    with pytest.raises(CriticError, match="neither"):
        run(neither.score(STATES[:1]))


def test_known_states_are_not_asked_again_and_calls_are_counted() -> None:
    engine = Table(lambda *_: 0.5)
    critic = GenerativeVerifier(engine, PLAIN)  # type: ignore[arg-type]
    with metered() as usage:
        assert run(critic.score([STATES[0], STATES[0]])) == pytest.approx([0.5, 0.5])
        run(critic.score(STATES[:1]))
    assert len(engine.asked) == 1
    assert usage.critic_calls == 3
    assert run(critic.score([])) == []


def test_scores_are_those_of_a_plain_forward(tiny_model: Path) -> None:
    """The word's tokens behind the prompt's, each segment tokenised by itself."""
    model, tokenizer = load_causal_lm(str(tiny_model), torch.float32, torch.device("cpu")), load_tokenizer(str(tiny_model))
    expected = []
    for state in STATES:
        segments = [f"Question: {QUESTION}\nAnswer:\n", *(f"{s.text}\n" for s in state.steps), ASKED]
        prompt = [t for segment in segments for t in tokenizer(segment, add_special_tokens=False).input_ids]
        word = tokenizer(" Yes", add_special_tokens=False).input_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + word])).logits[0].log_softmax(-1)
        expected.append(exp(sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(word))))
    critic = GenerativeVerifier(TransformersEngine(EngineConfig(str(tiny_model))), PLAIN)
    assert run(critic.score(STATES)) == pytest.approx(expected, rel=1e-4)


def test_rationales_depend_on_seed_and_state_alone() -> None:
    def script(prompt: str) -> list[tuple[str, float]]:
        return [("fine.", 0.5), ("hm.", 0.3), (f"no{len(prompt) % 3}.", 0.2)]

    class Scripted(ScriptedEngine):
        async def generate(self, request: Request) -> Any:
            found = await super().generate(Request(request.prompt, request.n, 1, 1.0, ("\n",), request.seed))
            self.texts = [c.text for c in found]
            return found

        async def logprobs(self, prompt: Any, continuations: Any) -> list[list[float]]:
            return [[-1.0] for _ in continuations]

    config = VerifierConfig(rationales=8)
    seen = []
    for state in (STATES[0], STATES[0], STATES[1]):
        engine = Scripted(script)
        run(GenerativeVerifier(engine, PLAIN, config=config).score([state]))
        seen.append(engine.texts)
    assert seen[0] == seen[1] != seen[2]
    assert len(set(seen[0])) > 1


def test_settings_that_make_no_sense_are_refused() -> None:
    engine: Any = Table(lambda *_: 0.5)
    with pytest.raises(ConfigError, match=r"verifier\.rationales is -1"):
        VerifierConfig(-1)
    with pytest.raises(ConfigError, match="all alike"):
        VerifierConfig(2, 0.0)
    with pytest.raises(ConfigError, match="only genrm"):
        GenerativeVerifier(engine, PLAIN, "prm", VerifierConfig(2))
    with pytest.raises(ConfigError, match="expected one of genrm, orm, prm"):
        GenerativeVerifier(engine, PLAIN, "value")  # type: ignore[arg-type]


def test_a_chat_puts_everything_into_one_message() -> None:
    chat = PromptFormat(
        PromptConfig("chat", shots=0), lambda messages: "".join(f"<{m['role']}>{m['content']}" for m in messages)
    )
    [direct] = chat.verification(STATES[0], ASKED)
    assert direct == f"<user>Problem: {QUESTION}\n\nSolution:\nAnn has 5 + 3 = 8 apples.\n#### 8\n\n{ASKED}"
    [reasoned] = chat.verification(STATES[0], ASKED, rationale=True)
    assert reasoned.endswith(f"{RATIONALE} End with the line '{ASKED}' and your verdict.")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "verifier.json").write_text("{}")
    with pytest.raises(ModelError, match="damaged"):
        load_critic(tmp_path)
    with pytest.raises(ModelError, match="not a critic checkpoint"):
        load_critic(tmp_path / "none")
