"""Replies, by hand from a result."""

from typing import Any

import pytest

from llm_mcts.result import SearchResult
from llm_mcts.serving.chat import ChatRequest
from llm_mcts.serving.reply import Reply, TokenCounts, event
from llm_mcts.types import State, Step, Usage

STEPS = (Step("1 + 1 = 2."), Step("#### 2", terminal=True, answer="2"))
TOKENS = TokenCounts(prompt=10, shown=20)
RESULT = SearchResult("1 + 1?", "2", State("1 + 1?", STEPS), 0.75, [], usage=Usage(50, 9, 8, 4, 3, 2, 1.5))


def reply(result: SearchResult = RESULT, tokens: TokenCounts | None = TOKENS, **limits: Any) -> Reply:
    return Reply("m", ChatRequest("1 + 1?", {"name": "mcts", **limits}, include_usage=True), result, tokens)


def test_usage_by_hand() -> None:
    assert reply().usage == {
        "prompt_tokens": 10,
        "completion_tokens": 50,
        "total_tokens": 60,
        "completion_tokens_details": {"reasoning_tokens": 30},  # 50 sampled, 20 of them shown
    }
    assert reply(tokens=None).usage is None


def test_the_cost_by_hand() -> None:
    assert reply().search == {
        "name": "mcts",
        "answer": "2",
        "confidence": 0.75,
        "generated_tokens": 50,
        "prefilled_tokens": 9,
        "reused_tokens": 8,
        "lm_calls": 4,
        "critic_calls": 3,
        "critic_tokens": 2,
        "seconds": 1.5,
        "ignored": [],
    }


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({}, "stop"),
        ({"max_tokens": 51, "max_lm_calls": 5, "max_seconds": 1.6}, "stop"),
        ({"max_tokens": 50}, "length"),
        ({"max_lm_calls": 4}, "length"),
        ({"max_seconds": 1.5}, "length"),
        ({"max_seconds": None}, "stop"),
    ],
)
def test_why_it_ends(limits: dict[str, Any], reason: str) -> None:
    assert reply(**limits).finish_reason == reason


def test_an_unfinished_solution_ends_by_length() -> None:
    assert reply(SearchResult("q", None, State("q", STEPS[:1]), 0.0, [])).finish_reason == "length"


def test_nothing_found_is_an_empty_reply() -> None:
    nothing = SearchResult("q", None, State("q"), 0.0, [])
    assert reply(nothing).whole()["choices"][0]["message"]["content"] == ""
    first, end, _ = reply(nothing).chunks()
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert end["choices"][0]["finish_reason"] == "stop"


def test_an_event() -> None:
    assert event({"a": "é"}) == 'data: {"a": "é"}\n\n'.encode()
