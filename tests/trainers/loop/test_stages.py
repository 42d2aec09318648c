"""A stage is done once, by the first process; the others wait for its note."""

from pathlib import Path
from typing import Any

import pytest

from llm_mcts.errors import ModelError
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.progress import Reporter
from llm_mcts.settings import SolverConfig
from trainers.loop.stages import Round, Stage, StageRunner


def test_a_stage_is_done_once_and_says_what_came_of_it(tmp_path: Path) -> None:
    done: list[int] = []

    def work(current: Round) -> dict[str, Any]:
        done.append(current.number)
        return {"searched": 7}

    said: list[str] = []

    class Notes(Reporter):
        def say(self, message: str) -> None:
            said.append(message)

    runner, current = StageRunner(Notes(quiet=True)), Round(3, RunDirectory(tmp_path).round(3), SolverConfig())
    stage = Stage("search", work, lambda facts: f"searched {facts['searched']}")
    first, again = runner.once(stage, current), runner.once(stage, current)
    assert (first["searched"], again["searched"], again["stage"]) == (7, 7, "search")
    assert (done, said) == ([3], ["round_003 searched 7"])


def test_a_waiting_process_reads_the_first_ones_note_and_takes_part_in_trainings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    done: list[str] = []
    runner, current = StageRunner(Reporter(quiet=True)), Round(1, RunDirectory(tmp_path).round(1), SolverConfig())

    def first_process(seconds: float) -> None:
        current.files.note("search", {"questions": 5})

    monkeypatch.setattr("trainers.loop.stages.time.sleep", first_process)
    waited = runner.once(Stage("search", lambda _: {"never": 1}), current)
    assert waited["questions"] == 5

    def train(_: Round) -> dict[str, Any]:
        done.append("policy")
        return {"rows": 2}

    runner.once(Stage("policy", train, together=True), current)
    assert done == ["policy"] and current.files.metric("policy") is None  # the first process notes it
    monkeypatch.setattr("os.getppid", lambda: 1)
    with pytest.raises(ModelError, match="the launcher of this process is gone"):
        runner.once(Stage("rows", lambda _: {}), current)
