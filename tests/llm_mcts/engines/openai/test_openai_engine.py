"""The OpenAI engine's protocol: what is sent, and what is made of each kind of reply. Faults are in test_http.py."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from llm_mcts.engines import build_engine
from llm_mcts.engines.base import Completion, EngineConfig, OpenAIConfig, Request
from llm_mcts.engines.openai.engine import OpenAIEngine
from llm_mcts.errors import EngineError, QuestionError
from llm_mcts.prompts import PromptConfig, PromptFormat
from llm_mcts.types import State, Step, Usage, metered
from tests.fake_openai import Call, Fault, HashModel, reply, serve, serving

PROMPT = ("Question: 1 + 1?\n", "Answer:\n")
LINE = Request(PROMPT, 1, 20, 1.0, ("\n",), seed=4)


def engine_for(url: str, logprobs: bool = True, **settings: Any) -> OpenAIEngine:
    openai = OpenAIConfig((url,), **{"retries": 0, "backoff": 0.0, "logprobs": logprobs, **settings})
    return OpenAIEngine(EngineConfig(name="openai", model="made-up", openai=openai))


def ask(
    answer: Callable[[Call], Any] | dict[str, Any], request: Request, **settings: Any
) -> tuple[list[Completion], list[Call]]:
    """The completions of one request to a server that answers so, and what it was asked."""
    with serving(answer if callable(answer) else lambda _: answer) as server:
        completions = asyncio.run(engine_for(server.url, **settings).generate(request))
    return completions, server.calls


def score(
    answer: Callable[[Call], Any] | dict[str, Any], prompt: tuple[str, ...], *continuations: str, **settings: Any
) -> tuple[list[list[float]], list[Call]]:
    with serving(answer if callable(answer) else lambda _: answer) as server:
        engine = engine_for(server.url, **settings)
        return asyncio.run(engine.logprobs(prompt, [(text,) for text in continuations])), server.calls


def chat_reply(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    letters = [{"token": letter, "logprob": -0.5, "top_logprobs": []} for letter in content or ""]
    choice = {"message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    usage = {"prompt_tokens": 5, "completion_tokens": len(letters)}
    return {"choices": [{**choice, "logprobs": {"content": letters}}], "usage": usage}


# What is sent


def test_a_plain_request() -> None:
    [completion], [call] = ask(reply("ab", "length"), Request(PROMPT, 1, 2, 0.7, seed=4))
    assert call.path == "/v1/completions"
    seed = call.body.pop("seed")
    assert 0 <= seed < 2**31
    sent = {"model": "made-up", "prompt": "Question: 1 + 1?\nAnswer:\n", "max_tokens": 2, "temperature": 0.7, "logprobs": 1}
    assert call.body == sent  # and nothing that was not asked for: many servers refuse fields they do not know
    assert completion == Completion("ab", -1.0, 2, "length")


def test_settings_are_sent_where_they_are_set() -> None:
    _, [call] = ask(reply("ab", "length"), Request(PROMPT, 1, 2, 0.7, ("\n", ";"), 4, top_k=3, top_p=0.5, min_p=0.25))
    assert {k: call.body[k] for k in ("stop", "top_k", "top_p", "min_p")} == {
        "stop": ["\n", ";"],
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.25,
    }


def test_greedy_needs_no_seed() -> None:
    _, [call] = ask(reply("ab", "length"), Request(PROMPT, 1, 2, 0.0))
    assert "seed" not in call.body
    assert call.body["temperature"] == 0.0


def test_seeds_depend_on_the_request_and_the_place_alone() -> None:
    def seeds(request: Request) -> set[int]:
        _, calls = ask(reply("ab", "length"), request)
        assert all("n" not in call.body for call in calls)
        return {call.body["seed"] for call in calls}

    five, two = seeds(Request(PROMPT, 5, 2, seed=4)), seeds(Request(PROMPT, 2, 2, seed=4))
    assert len(five) == 5
    assert two < five
    assert not five & seeds(Request(PROMPT, 5, 2, seed=5))


def test_chat_messages_and_the_begun_turn() -> None:
    with serving(lambda _: chat_reply("so é", "length")) as server:
        engine = engine_for(server.url, api="chat")
        prompt = PromptFormat(PromptConfig("chat", shots=1, system="Be brief."), engine.chat_template)
        first = State("What is 1 + 1?")
        for state in (first, first.then(Step("It is"), Step("1 + 1"))):
            [completion] = asyncio.run(engine.generate(Request(prompt.segments(state), 1, 4, 1.0)))
            assert completion == Completion("so é", -2.0, 4, "length")
    fresh, begun = (call.body for call in server.calls)
    assert [call.path for call in server.calls] == ["/v1/chat/completions"] * 2
    assert [(m["role"], m["content"][:8]) for m in fresh["messages"]] == [
        ("system", "Be brief"),
        ("user", "A baker "),
        ("assistant", "The bake"),
        ("user", "What is "),
    ]
    assert fresh["logprobs"] is True
    assert "continue_final_message" not in fresh
    assert begun["messages"] == [*fresh["messages"], {"role": "assistant", "content": "It is\n1 + 1\n"}]
    assert (begun["continue_final_message"], begun["add_generation_prompt"]) == (True, False)


def test_chat_takes_a_plain_prompt_for_the_users_words() -> None:
    _, [call] = ask(chat_reply("ab", "length"), Request(("Question?\n", "First.\n"), 1, 2), api="chat")
    assert call.body["messages"] == [
        {"role": "user", "content": "Question?\n"},
        {"role": "assistant", "content": "First.\n"},
    ]


def test_the_chat_template_is_the_chat_apis() -> None:
    config = EngineConfig(name="openai", model="m", openai=OpenAIConfig(("http://127.0.0.1:9/v1",)))
    assert build_engine(config).chat_template is None
    template = build_engine(replace(config, openai=replace(config.openai, api="chat"))).chat_template
    assert template is not None
    one, other = ([{"role": "user", "content": text}] for text in ("a", "b"))
    assert template(one) == template(one) != template(other)


def test_a_refused_begun_turn_names_the_way_out() -> None:
    refusal = Fault(422, '{"detail": "Unexpected fields in the request: continue_final_message"}')
    with pytest.raises(EngineError, match=r"Unexpected fields.*engine\.openai\.api completions does without"):
        ask(lambda _: refusal, Request(("Question?\n", "First.\n"), 1, 2), api="chat")


def test_the_empty_prompt() -> None:
    with serving(lambda _: reply("ab", "length")) as server:
        for prompt in ((), ("", "")):
            with pytest.raises(QuestionError, match="prompt is empty"):
                asyncio.run(engine_for(server.url).generate(Request(prompt, 1, 2)))
            with pytest.raises(QuestionError, match="prompt is empty"):
                asyncio.run(engine_for(server.url).logprobs(prompt, [("a",)]))
        assert server.calls == []


# What is made of the reply. Each letter is a token of log-probability -0.5 unless other tokens are given.

AB = [("a", -0.5), ("b", -0.25)]


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # The text ends before the stop string, whose token is listed.
        (reply("ab", tokens=[*AB, ("\n", -1.0)]), Completion("ab", -1.75, 3, "stop")),
        (reply("ab", tokens=[("a", -0.5), ("b\nc", -1.0)]), Completion("ab", -1.5, 2, "stop")),
        # The end-of-text token is listed.
        (reply("ab", tokens=[*AB, ("</s>", -1.0)]), Completion("ab", -1.75, 3, "eos")),
        # The text holds the stop string, alone or with what its token brought along, or with all that followed.
        (reply("ab\n"), Completion("ab", -1.5, 3, "stop")),
        (reply("ab\nc"), Completion("ab", -1.5, 3, "stop")),
        (reply("ab\n", "length"), Completion("ab", -1.5, 3, "stop")),
        # White space in front belongs to no step.
        (reply(" \n ab", tokens=[(" \n ", -0.5), *AB, ("\n", -1.0)]), Completion("ab", -2.25, 4, "stop")),
        (reply("\n\nab\ncd\n"), Completion("ab", -2.5, 5, "stop")),
        # The server names the end.
        (reply("ab", stop_reason="\n"), Completion("ab", -1.0, 2, "stop")),
        (reply("ab", stop_reason=None), Completion("ab", -1.0, 2, "eos")),
        (reply("ab", matched_stop="\n"), Completion("ab", -1.0, 2, "stop")),
        (reply("ab", matched_stop=7), Completion("ab", -1.0, 2, "eos")),
        (reply("", tokens=[("</s>", -1.0)]), Completion("", -1.0, 1, "eos")),
        (reply("", stop_reason=None), Completion("", 0.0, 1, "eos")),
        # It tells nothing: a stop string.
        (reply("ab"), Completion("ab", -1.0, 2, "stop")),
        (reply("ab", usage={"prompt_tokens": 5, "completion_tokens": 3}), Completion("ab", -1.0, 3, "stop")),
        # Cut off.
        (reply(" ab", "length"), Completion(" ab", -1.5, 3, "length")),
        (reply("", "length", tokens=[(" ", -0.5)]), Completion("", -0.5, 1, "length")),
    ],
)
def test_ends(told: dict[str, Any], expected: Completion) -> None:
    [completion], [_] = ask(told, LINE)
    assert completion == expected


def test_the_first_of_several_stop_strings_counts() -> None:
    [completion], _ = ask(reply("ab;c\n"), replace(LINE, stop=("\n", ";")))
    assert completion == Completion("ab", -1.5, 3, "stop")


def test_without_stop_strings_there_is_no_stop() -> None:
    [completion], _ = ask(reply("ab\n"), replace(LINE, stop=()))
    assert completion == Completion("ab\n", -1.5, 3, "eos")


def test_a_stop_before_the_first_visible_character_does_not_count() -> None:
    """The server stops at once; asked again without stop strings, it goes on, and the cut is made here."""

    def answer(call: Call) -> dict[str, Any]:
        if "stop" in call.body:
            return reply("", tokens=[("\n", -0.125)])
        return reply("\nab\ncd", tokens=[("\n", -0.125), *AB, ("\n", -1.0), ("cd", -2.0), ("</s>", -3.0)])

    with serving(answer) as server, metered() as usage:
        [completion] = asyncio.run(engine_for(server.url).generate(LINE))
    assert completion == Completion("ab", -1.875, 4, "stop")  # -0.125 - 0.5 - 0.25 - 1
    first, second = (call.body for call in server.calls)
    assert {**second, "stop": ["\n"]} == first  # the same seed above all
    assert (usage.lm_calls, usage.generated_tokens, usage.prefilled_tokens) == (1, 7, 10)  # 1 + 6 sampled, 5 + 5 read


def test_what_the_user_may_wonder_about_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    ask(reply("ab"), replace(LINE, n=3))
    assert [r.message for r in caplog.records].count(caplog.records[0].message) == len(caplog.records) == 1
    assert "does not distinguish stop strings from the end of the text" in caplog.text
    caplog.clear()
    ask(reply("ab", stop_reason="\n"), LINE)
    assert caplog.records == []


def expected_completion(model: HashModel, prompt: str, seed: int, max_tokens: int, stop: str) -> Completion:
    """The contract of `Request.stop`, drawn from the model without any server."""
    stream, text, total = random.Random(seed), "", 0.0
    for count in range(1, max_tokens + 1):
        token, logprob = model.draw(prompt + text, 1.0, stream)
        total += logprob
        if token == "<eos>":
            return Completion(text, total, count, "eos")
        text += token
        if stop in text.lstrip():
            return Completion(text.lstrip().split(stop)[0], total, count, "stop")
    return Completion(text, total, max_tokens, "length")


@pytest.mark.parametrize("like", ["vllm", "transformers", "llama.cpp"])
@pytest.mark.parametrize("stop", ["\n", "b\n"])
def test_a_made_up_model_behind_several_servers(like: str, stop: str) -> None:
    """Continuations, leading newlines among them, are those of the model itself, as far as the server tells."""
    model, request = HashModel(), replace(LINE, n=300, max_tokens=6, stop=(stop,))
    found, calls = ask(serve(model, like), request, logprobs=like != "transformers")
    assert len(calls) > 310 if stop == "\n" else len(calls) >= 300  # some began with a newline
    seeds = list(dict.fromkeys(call.body["seed"] for call in calls))
    assert len(seeds) == 300
    expected = {seed: expected_completion(model, "".join(PROMPT), seed, 6, stop) for seed in seeds}
    assert {c.finish_reason for c in expected.values()} == {"stop", "eos", "length"}
    for completion, want in zip(found, by_place(expected), strict=True):
        assert completion.text.strip() == want.text.strip()
        if like == "vllm":
            assert completion == replace(want, logprob=completion.logprob)
            assert completion.logprob == pytest.approx(want.logprob, abs=1e-9)
        elif want.finish_reason == "length":
            assert (completion.finish_reason, completion.num_tokens) == ("length", 6)
        else:  # neither tells an end of text from a stop string, unless it was asked again without stop strings
            blank = want.text[: len(want.text) - len(want.text.lstrip())]
            untold = want.finish_reason == "eos" and want.text.strip() and stop not in blank
            assert completion.finish_reason == ("stop" if untold else want.finish_reason)


def by_place(expected: dict[int, Completion]) -> list[Completion]:
    """The expected completions in the order of the continuations."""
    from llm_mcts.seeding import derive_seed

    return [expected[derive_seed(LINE.seed, i) % 2**31] for i in range(len(expected))]


# Counts and log-probabilities


def test_usage_is_the_servers() -> None:
    counts = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 6}}
    with serving(lambda _: reply("ab", "length", usage=counts)) as server, metered() as usage:
        asyncio.run(engine_for(server.url).generate(Request(PROMPT, 3, 2)))
    assert replace(usage, seconds=0.0) == Usage(6, 9, 18, 1)  # three requests: 2 sampled, 9 - 6 computed, 6 reused each


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 5},
        {"completion_tokens": 2},
        {"prompt_tokens": 5, "completion_tokens": None},
        {"prompt_tokens": 5, "completion_tokens": "2"},
        {"prompt_tokens": 5, "completion_tokens": 2.5},
        {"prompt_tokens": 5, "completion_tokens": True},
        {"prompt_tokens": 5, "completion_tokens": -2},
        {"prompt_tokens": -5, "completion_tokens": 2},
        {"prompt_tokens": 0, "completion_tokens": 2},
        {"prompt_tokens": 5, "completion_tokens": 0},
        {"prompt_tokens": 5, "completion_tokens": 21},
        {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 6}},
        {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": -1}},
    ],
)
def test_missing_or_impossible_counts_are_errors(usage: Any) -> None:
    """Also where no list of log-probabilities could give them away."""
    with pytest.raises(EngineError, match=r"the server's reply holds (usage|-?\d+ .*tokens).*; expected .*"):
        ask(reply("ab", usage=usage), LINE, logprobs=False)


@pytest.mark.parametrize(
    "told",
    [
        reply("ab", logprobs=None),
        reply("ab", logprobs={}),
        reply("ab", logprobs={"tokens": ["a"], "token_logprobs": [-0.5, -0.5]}),
        reply("ab", logprobs={"tokens": ["a", "b"], "token_logprobs": [-0.5, None]}),
        reply("ab", logprobs={"tokens": ["a", "b"], "token_logprobs": [-0.5, "x"]}),
        reply("ab", tokens=[("a", -0.5), ("b", 0.5)]),
        reply("ab", tokens=[("a", -0.5), ("b", float("nan"))]),
        reply("ab", tokens=[("a", -0.5), ("b", float("-inf"))]),
        # More than were sampled, or fewer than the unlisted stop string explains.
        reply("ab", usage={"prompt_tokens": 5, "completion_tokens": 1}),
        reply("ab", usage={"prompt_tokens": 5, "completion_tokens": 4}),
        reply("ab", "length", usage={"prompt_tokens": 5, "completion_tokens": 3}),
    ],
)
def test_missing_or_impossible_logprobs_are_errors(told: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"log-?prob.*; expected .*"):
        ask(told, LINE)


def test_logprobs_may_be_done_without() -> None:
    [completion], [call] = ask(reply("ab\n", logprobs=None), LINE, logprobs=False)
    assert completion == Completion("ab", 0.0, 3, "stop")
    assert "logprobs" not in call.body


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"reasoning_content": "Let me see."}, "reasoning_content"),
        ({"tool_calls": [{"id": "x"}]}, "tool_calls"),
        ({"refusal": "no"}, "refusal"),
    ],
)
def test_text_beside_the_content_is_not_lost_silently(message: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineError, match=said):
        ask(chat_reply("ab", "length", **message), Request(PROMPT, 1, 9), api="chat")


# logprobs()


def test_echoed_logprobs_by_hand() -> None:
    """`<s>` stands in front of the tokens but not of the text; offsets count it. The last token is the sampled one."""
    listed = {
        "tokens": ["<s>", "2+2", "\n", "=", "4", "!"],
        "token_logprobs": [None, -1.0, -2.0, -0.25, -0.125, -9.0],
        "text_offset": [0, 3, 6, 7, 8, 9],
    }
    told = reply("2+2\n=4!", "length", logprobs=listed, usage={"prompt_tokens": 5, "completion_tokens": 1})
    assert score(told, ("2+2", "\n"), "=4")[0] == [[-0.25, -0.125]]
    [found], [call] = score(told, ("2+2",), "\n=4")
    assert found == [-2.0, -0.25, -0.125]
    assert call.body == {
        "model": "made-up",
        "prompt": "2+2\n=4",
        "max_tokens": 1,
        "temperature": 1.0,
        "echo": True,
        "logprobs": 1,
    }
    with pytest.raises(EngineError, match="token boundary"):
        score(told, ("2+",), "2\n=4")


@pytest.mark.parametrize("offsets", [None, [-1, -1, -1, -1], [0, 1], [3, 2, 1, 0], ["0", "1", "2", "3"]])
def test_echo_without_offsets(offsets: Any) -> None:
    """SGLang sends -1; the tokens' texts tell."""
    listed = {"tokens": ["a", "b", "cd", "e"], "token_logprobs": [None, -1.0, -2.0, -4.0], "text_offset": offsets}
    told = reply("abcde", "length", logprobs=listed, usage={"prompt_tokens": 3, "completion_tokens": 1})
    assert score(told, ("a",), "bcd")[0] == [[-1.0, -2.0]]
    with pytest.raises(EngineError, match="token boundary"):
        score(told, ("abc",), "d")


@pytest.mark.parametrize(("prompt", "continuation"), [("a\n", "é"), ("é", "a\n")])
def test_echo_of_letters_that_span_tokens(prompt: str, continuation: str) -> None:
    """The halves of a letter are listed as replacement characters; either side alone shows the boundary."""
    halves, plain = ["\ufffd", "\ufffd"], ["a", "\n"]
    listed = {"tokens": plain + halves if continuation == "é" else halves + plain, "token_logprobs": [None, -1.0, -2.0, -4.0]}
    told = reply(prompt + continuation, logprobs=listed, usage={"prompt_tokens": 4, "completion_tokens": 1})
    assert score(told, (prompt,), continuation)[0] == [[-2.0, -4.0]]


def test_echo_with_a_begin_of_text_token_and_half_letters() -> None:
    listed = {"tokens": ["<s>", "a\n", "\ufffd", "\ufffd"], "token_logprobs": [None, -1.0, -2.0, -4.0]}
    told = reply("a\né", logprobs=listed, usage={"prompt_tokens": 4, "completion_tokens": 1})
    assert score(told, ("a\n",), "é")[0] == [[-2.0, -4.0]]


def test_echo_where_letters_hide_the_boundary() -> None:
    listed = {"tokens": ["\ufffd"] * 4, "token_logprobs": [None, -1.0, -2.0, -4.0], "text_offset": [0, 1, 2, 3]}
    told = reply("éé", logprobs=listed, usage={"prompt_tokens": 4, "completion_tokens": 1})
    with pytest.raises(EngineError, match="token boundary"):  # better none than a wrong one
        score(told, ("é",), "é")


@pytest.mark.parametrize(
    ("text", "counts"),
    [("abc", (3, 1)), ("ab", (1, 1)), ("abcde", (4, 0))],
)
def test_an_echo_that_contradicts_itself(text: str, counts: tuple[int, int]) -> None:
    told = reply(text, "length", tokens=[(letter, -0.5) for letter in text])
    told["choices"][0]["text"] = "abcdefg"
    told["usage"] = {"prompt_tokens": counts[0] + 3, "completion_tokens": counts[1]}
    with pytest.raises(EngineError, match="echoed"):
        score(told, ("a",), "b")


def test_the_made_up_models_logprobs() -> None:
    """Token by token from the model; the boundary falls between tokens, as the model's tokeniser splits "ab|cab"."""
    model = HashModel()
    found, _ = score(serve(model), ("7ab", "\n"), "cab+", "b", "")
    first, so_far = [], "7ab\n"
    for token in ("cab", "+"):
        first.append(model.logprobs(so_far)[token])
        so_far += token
    assert found[0] == pytest.approx(first, abs=1e-9)
    assert found[1] == pytest.approx([model.logprobs("7ab\n")["b"]], abs=1e-9)
    assert found[2] == []
    with pytest.raises(EngineError, match="token boundary"):
        score(serve(model), ("7a",), "b")  # "ab" is one token


TOPS = {"+": -0.25, "-": -2.0, "x": -4.0}


@pytest.mark.parametrize("refuses", [False, True])
def test_without_echo_the_likeliest_next_tokens_tell(refuses: bool) -> None:
    def answer(call: Call) -> Any:
        if refuses and call.body.get("echo"):
            return Fault(400, '{"error": {"message": "Only no echo is supported"}}')
        return reply("+", "length", logprobs={"tokens": ["+"], "token_logprobs": [-0.25], "top_logprobs": [TOPS]})

    with serving(answer) as server:
        engine = engine_for(server.url)
        assert asyncio.run(engine.logprobs(("a\n",), [("+",), ("-",)])) == [[-0.25], [-2.0]]
        asked = len(server.calls)
        assert asyncio.run(engine.logprobs(("b\n",), [("-",)])) == [[-2.0]]
        assert len(server.calls) == asked + 1  # it is known by now that there is no echo
        with pytest.raises(EngineError, match="no log-probability of '--', which is not one of the 3 likeliest"):
            asyncio.run(engine.logprobs(("b\n",), [("-",), ("--",)]))
    last = server.calls[-1].body
    assert (last["prompt"], last["max_tokens"], last["logprobs"]) == ("b\n", 1, 20)


def test_chat_logprobs() -> None:
    told = chat_reply("+", "length")
    told["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = [{"token": t, "logprob": p} for t, p in TOPS.items()]
    found, [call] = score(told, ("Is it so?", "First."), "-", "+", api="chat")
    assert found == [[-2.0], [-0.25]]
    assert (call.body["top_logprobs"], call.body["continue_final_message"]) == (20, True)


def test_a_server_without_logprobs_says_so() -> None:
    with pytest.raises(EngineError, match="choose a server that gives them"):
        score(serve(like="transformers"), ("7\n",), "b")


def test_a_long_prompt_is_not_taken_for_a_missing_echo() -> None:
    def answer(call: Call) -> Any:
        return Fault(400, '{"message": "too long"}') if len(call.body["prompt"]) > 20 else serve()(call)

    with serving(answer) as server:
        engine = engine_for(server.url)
        asyncio.run(engine.logprobs(("7\n",), [("b",)]))
        with pytest.raises(EngineError, match="too long"):
            asyncio.run(engine.logprobs(("7\n" * 20,), [("b",)]))
        assert len(server.calls) == 2
        assert len(asyncio.run(engine.logprobs(("7\n",), [("b",)]))[0]) == 1
