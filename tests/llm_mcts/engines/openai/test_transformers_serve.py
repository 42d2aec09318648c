"""Searches through a real server: `transformers serve` with the embedded policy, as a process of its own on loopback.

What that server (transformers 5) lacks, and these tests pin down: log-probabilities and echo (ignored), top_k and min_p
(refused), `n` (ignored), the assistant's begun turn (refused), a word on what ended the text. It samples only where the
model's generation_config.json says so, keeps stop strings in the text, and sets one seed for all that it does, so that
samples are repeatable only one at a time.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from llm_mcts.engines.base import Completion, EngineConfig, OpenAIConfig, Request
from llm_mcts.engines.openai.engine import OpenAIEngine
from llm_mcts.engines.transformers.engine import TransformersEngine
from llm_mcts.errors import EngineError
from llm_mcts.prompts import PromptConfig
from llm_mcts.settings import SolverConfig
from llm_mcts.solver import Solver
from llm_mcts.types import metered

EMBEDDED = Path(__file__).parents[4] / "llm_mcts" / "embedded"
QUESTIONS = [
    "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?",
    "Tom has 9 coins. Tom gives away 4 of them. How many coins does Tom have now?",
]
# Renders one user message as itself, so that a chat with the plain prompt as the user's words is the plain prompt.
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
STARTING = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded policy, allowed to sample, with a chat template."""
    copy = tmp_path_factory.mktemp("served") / "policy"
    shutil.copytree(EMBEDDED, copy)
    generation = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**generation, "do_sample": True, "top_k": 0}))
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a running server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("served") / "log.txt"
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        _await_health(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def _await_health(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTING
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx2.get(url, trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start within {STARTING:g} s: {log.read_text()}")


def engine_for(url: str, folder: Path, logprobs: bool = False, **settings: object) -> OpenAIEngine:
    """One request at a time, so that seeds hold."""
    openai = OpenAIConfig((url,), **{"concurrency": 1, "retries": 0, "timeout": 30.0, "logprobs": logprobs, **settings})  # type: ignore[arg-type]
    return OpenAIEngine(EngineConfig(name="openai", model=str(folder), openai=openai))


@pytest.fixture(scope="module")
def engine(url: str, folder: Path) -> OpenAIEngine:
    return engine_for(url, folder)


@pytest.fixture(scope="module")
def local() -> TransformersEngine:
    return TransformersEngine(EngineConfig(device="cpu"))


def prompt(question: str) -> tuple[str, ...]:
    return (f"Question: {question}\nAnswer:\n",)


def test_greedy_completions_are_those_of_the_same_model_here(engine: OpenAIEngine, local: TransformersEngine) -> None:
    async def compare() -> None:
        for question in QUESTIONS:
            for request in (Request(prompt(question), 1, 60, 0.0), Request(prompt(question), 1, 60, 0.0, ("\n",))):
                [[here], [there]] = await local.generate(request), await engine.generate(request)
                # Nothing tells an end of text from a stop string, and no log-probabilities come.
                assert there == replace(here, logprob=0.0)
            assert (here.finish_reason, here.text.count("\n")) == ("stop", 0)
            step = (*prompt(question), f"{here.text}\n")
            [[here], [there]] = [await e.generate(Request(step, 1, 60, 0.0)) for e in (local, engine)]
            assert there == replace(here, logprob=0.0)

    asyncio.run(compare())


def test_counts_are_the_servers(engine: OpenAIEngine) -> None:
    async def count() -> None:
        with metered() as usage:
            [completion] = await engine.generate(Request(prompt(QUESTIONS[0]), 1, 3, 0.0))
        assert completion.finish_reason == "length"
        # "Question: Mia has 3 boxes ..." is 24 tokens of the embedded tokenizer: counted by hand from its vocabulary.
        assert (usage.generated_tokens, usage.prefilled_tokens, usage.reused_tokens) == (3, 24, 0)

    asyncio.run(count())


def test_samples_are_repeatable_one_at_a_time(engine: OpenAIEngine) -> None:
    async def sample(n: int, seed: int) -> list[Completion]:
        return await engine.generate(Request(prompt(QUESTIONS[0]), n, 60, 1.5, ("\n",), seed))

    six = asyncio.run(sample(6, 1))
    assert asyncio.run(sample(6, 1)) == six
    assert asyncio.run(sample(2, 1)) == six[:2]
    assert asyncio.run(sample(6, 2)) != six
    assert len({c.text for c in six}) > 1


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_greedy_answer_is_the_same(engine: OpenAIEngine, local: TransformersEngine, question: str) -> None:
    there, here = (Solver(SolverConfig(search="greedy"), engine=e).solve(question) for e in (engine, local))
    assert there.answer == here.answer
    assert there.answer is not None
    assert there.steps == here.steps
    assert there.usage.generated_tokens == here.usage.generated_tokens > 0


def test_self_consistency(engine: OpenAIEngine) -> None:
    solver = Solver(SolverConfig(search={"name": "self_consistency", "num_samples": 5}), engine=engine)
    result = solver.solve(QUESTIONS[0])
    assert result.answer == "17"  # 3 * 4 + 5
    assert len(result.traces) == 5
    assert result.usage.lm_calls >= 1
    again = solver.solve(QUESTIONS[0])
    assert [trace.state for trace in again.traces] == [trace.state for trace in result.traces]


def test_mcts(engine: OpenAIEngine) -> None:
    solver = Solver(SolverConfig(search={"name": "mcts", "num_simulations": 6, "num_parallel": 1}), engine=engine)
    result = solver.solve(QUESTIONS[0])
    assert result.answer == "17"
    assert result.tree is not None
    assert result.tree.root.visit_count == 7  # its own evaluation and six simulations
    assert result.usage.generated_tokens > 0
    assert solver.solve(QUESTIONS[0]).to_dict()["steps"] == result.steps


def test_chat_with_a_template_that_is_the_plain_prompt(url: str, folder: Path, local: TransformersEngine) -> None:
    """Whole solutions work by chat; steps need the assistant's begun turn, which this server refuses."""
    chat = engine_for(url, folder, api="chat")
    config = SolverConfig(prompt=PromptConfig("plain"), search="greedy")
    assert Solver(config, engine=chat).solve(QUESTIONS[0]).steps == Solver(config, engine=local).solve(QUESTIONS[0]).steps
    with pytest.raises(EngineError, match=r"status 422.*continue_final_message.*engine\.openai\.api completions"):
        asyncio.run(chat.generate(Request((*prompt(QUESTIONS[0]), "Step.\n"), 1, 9)))


def test_what_the_server_lacks_is_told(url: str, folder: Path, engine: OpenAIEngine) -> None:
    asking = engine_for(url, folder, logprobs=True)
    with pytest.raises(EngineError, match=r"logprobs None; expected log-probabilities.*engine\.openai\.logprobs"):
        asyncio.run(asking.generate(Request(prompt(QUESTIONS[0]), 1, 9)))
    with pytest.raises(EngineError, match="log-probabilities"):
        asyncio.run(engine.logprobs(prompt(QUESTIONS[0]), [("Then",)]))
    for setting in ({"top_k": 3}, {"min_p": 0.5}):
        with pytest.raises(EngineError, match=f"Unexpected fields in the request: .*{next(iter(setting))}"):
            asyncio.run(engine.generate(replace(Request(prompt(QUESTIONS[0]), 1, 9), **setting)))
    with pytest.raises(EngineError, match="is pinned to"):
        asyncio.run(OpenAIEngine(replace(engine.config, model="other")).generate(Request(("a",), 1, 9)))
