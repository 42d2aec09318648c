"""Imagined questions: by rule and by a scripted model, seeds, resuming, and nothing near a held-out question."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.cli import main
from llm_mcts.engines.base import Completion, Request
from llm_mcts.engines.scripted import ScriptedEngine
from llm_mcts.errors import ConfigError, EngineError, QuestionError
from llm_mcts.policy import LMPolicy
from llm_mcts.prompts import PromptConfig, PromptFormat, read_question
from llm_mcts.runs.journal import Journal
from llm_mcts.tasks.arith import ArithTask
from llm_mcts.tasks.jsonl import JsonlTask
from llm_mcts.types import Problem
from trainers.questions.imagine.command import ImagineTaskConfig, imagine_from_task
from trainers.questions.imagine.imagine import (
    Candidate,
    ImagineConfig,
    as_problems,
    counts,
    held_out_questions,
    imagine,
    imagine_questions,
)
from trainers.questions.imagine.overlap import OverlapConfig, OverlapIndex

KEPT_NUMBERS = OverlapConfig(mask_numbers=False)
BAKER = Problem("a/b", "A baker sells 3 trays of 12 rolls. How many rolls does he sell?", "36", "3 * 12 = 36\n#### 36")
TRAIN = ArithTask("hard").load("train", 12)


def policy(script: Any, style: str = "plain") -> LMPolicy:
    template = (lambda messages: "".join(m["content"] for m in messages)) if style == "chat" else None
    return LMPolicy(ScriptedEngine(script), PromptFormat(PromptConfig(style=style), template))  # type: ignore[arg-type]


def says(*lines: str) -> LMPolicy:
    """A model that writes one of these, all equally likely."""
    return policy(lambda prompt: [(line, 1 / len(lines)) for line in lines])


def made(problems: Sequence[Problem], config: ImagineConfig, model: LMPolicy | None = None, **more: Any) -> list[Candidate]:
    return asyncio.run(imagine(problems, config, model, more.pop("held_out", []), **more))


def test_numbers_have_no_gold_and_safe_unique_ids() -> None:
    config = ImagineConfig(per_question=2, overlap=KEPT_NUMBERS)
    found = made([BAKER, replace(BAKER, id="a_b", question="He has 7 pens and 9 pins. How many?", solution=None)], config)
    assert [c.kept for c in found] == [True] * 4
    assert all(c.gold is None and c.question != BAKER.question for c in found)
    assert [c.parent for c in found] == ["a/b", "a/b", "a_b", "a_b"]
    assert found[2].id == "a_b~numbers-0"
    assert found[0].id.startswith("a_b-")
    assert found[1].id.endswith("~numbers-1")
    assert len({c.id for c in found}) == 4
    assert all("/" not in c.id for c in found)


def test_backward_questions_know_their_answer_and_need_one() -> None:
    config = ImagineConfig(kinds=("backward",), per_question=3)
    first, second, third, unknown = made([BAKER, Problem("u", "He has 7 pens. How many?")], config)[:4]
    assert {first.gold, second.gold} == {"3", "12"}
    assert first.question.endswith("to the above question is 36, what is the value of unknown variable x?")
    assert (third.kept, third.reason) == (False, "no number to change")
    assert (unknown.kept, unknown.reason) == (False, "no known answer")
    assert [p.gold for p in as_problems([first, third])] == [first.gold]


def test_seeds_and_concurrency() -> None:
    config = ImagineConfig(per_question=2, overlap=KEPT_NUMBERS)
    assert made(TRAIN, config, seed=1) == made(TRAIN, replace(config, concurrency=3), seed=1)
    assert made(TRAIN, config, seed=1) != made(TRAIN, config, seed=2)


def test_max_candidates_takes_the_first() -> None:
    config = ImagineConfig(kinds=("numbers", "backward"), per_question=2, overlap=KEPT_NUMBERS)
    assert made(TRAIN, replace(config, max_candidates=5)) == made(TRAIN, config)[:5]


def test_a_rephrased_question_has_the_same_numbers() -> None:
    config = ImagineConfig(kinds=("rephrase",))
    good = "Of rolls on trays, 12 on each, three trays find a buyer. What is the number of rolls that were bought?"
    (kept,) = made([BAKER], config, says(good))
    assert (kept.kept, kept.question, kept.gold, kept.reason) == (True, good, None, None)
    assert kept.usage is not None
    assert kept.usage["lm_calls"] == 1
    (other,) = made([BAKER], config, says(good.replace("12", "13")))
    assert (other.kept, other.reason) == (False, "other numbers than its parent")
    (same,) = made([BAKER], config, says(f"Well, {BAKER.question}"))
    assert (same.kept, same.reason) == (False, "duplicate of a known question")


def test_evolved_questions_are_not_kept_twice() -> None:
    harder = "A baker sells 3 trays of 12 rolls and burns 5 more rolls on the way. How many rolls did he bake in all that day?"
    first, second = made([BAKER], ImagineConfig(kinds=("evolve",), per_question=2), says(harder))
    assert (first.kept, second.kept, second.reason) == (True, False, "duplicate of a known question")


def test_what_is_near_a_held_out_question_is_refused() -> None:
    held_out = [BAKER.question.replace("3", "5").replace("12", "30")]
    (masked,) = made([BAKER], ImagineConfig(), held_out=held_out)
    assert (masked.kept, masked.reason, masked.overlap) == (False, "near a held-out question", 1.0)
    # 11 four-grams, of which the last 4 hold no number.
    (kept,) = made([BAKER], ImagineConfig(overlap=KEPT_NUMBERS), held_out=held_out)
    assert (kept.kept, kept.overlap) == (True, pytest.approx(4 / 11, abs=1e-4))


@settings(max_examples=25)  # the machine may be busy
@given(st.sets(st.integers(0, 11)), st.sampled_from([0.3, 0.5, 0.9]), st.booleans(), st.integers(0, 3))
def test_nothing_kept_is_near_a_held_out_question(places: set[int], threshold: float, mask: bool, seed: int) -> None:
    held_out = [TRAIN[i].question for i in sorted(places)]
    overlap = OverlapConfig(threshold=threshold, mask_numbers=mask)
    found = made(TRAIN[:6], ImagineConfig(kinds=("numbers", "backward"), overlap=overlap), held_out=held_out, seed=seed)
    index = OverlapIndex(held_out, mask_numbers=mask)
    assert all(index.nearest(c.question)[0] < threshold for c in found if c.kept)
    assert all(c.reason == "near a held-out question" for c in found if c.overlap >= threshold)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "A baker sells 3 trays.",
        "Sure! How many rolls are 3 trays of 12?",
        "How many are 3 trays of 12?\n\nHow many are 4?",
        "How many are 3 trays of 12? Answer: 36. Is it?",
        "How many are 3 and 12? #### 15?",
        f"How many are {'3 and ' * 400}12?",
    ],
)
def test_what_is_no_single_question_is_refused(text: str) -> None:
    assert read_question(text) is None


def test_questions_and_imperatives_are_read() -> None:
    assert read_question(" Harder problem: How many are 3 trays of 12? ") == "How many are 3 trays of 12?"
    assert (
        read_question("He sells 3 trays of 12. Find the number of rolls.")
        == "He sells 3 trays of 12. Find the number of rolls."
    )


def test_a_text_that_was_cut_or_talks_is_unparsable() -> None:
    (chatty,) = made([BAKER], ImagineConfig(kinds=("evolve",)), says("Here is a harder one: how many?"))
    assert (chatty.kept, chatty.reason, chatty.question) == (False, "unparsable", "Here is a harder one: how many?")
    model = policy(lambda prompt: [("How many rolls are 4 trays of 9 rolls?", 1.0)], "chat")  # no end but the limit
    (cut,) = made([BAKER], ImagineConfig(kinds=("evolve",), max_tokens=1), model)
    assert (cut.kept, cut.reason) == (False, "unparsable")


def test_prompts_hold_the_question_and_no_answer() -> None:
    for style in ("plain", "few_shot", "chat"):
        model = policy(lambda prompt: [("How many?", 1.0)], style)
        made(
            [replace(BAKER, gold="987654", solution="987654")], ImagineConfig(kinds=("rephrase", "evolve"), max_tokens=1), model
        )
        asked = ["".join(r.prompt) for r in model.engine.requests]  # type: ignore[attr-defined]
        assert len(asked) == 2
        assert all(text.count(BAKER.question) == 1 and "987654" not in text for text in asked)
        assert asked[0] != asked[1]


class Failing:
    """An engine that fails."""

    chat_template = None

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def generate(self, request: Request) -> list[Completion]:
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(QuestionError("long"), "too long for the model's context"), (EngineError("503"), "the model failed: 503")],
)
def test_a_failed_request_is_a_record(error: Exception, reason: str) -> None:
    model = LMPolicy(Failing(error), PromptFormat(PromptConfig()))  # type: ignore[arg-type]
    (found,) = made([BAKER], ImagineConfig(kinds=("rephrase",)), model)
    assert (found.kept, found.reason, found.question) == (False, reason, "")


def test_a_model_is_asked_for_where_one_is_needed() -> None:
    with pytest.raises(ConfigError, match="without a model"):
        made([BAKER], ImagineConfig(kinds=("numbers", "evolve")))


@pytest.mark.parametrize("cut", [0, 1, 5, 9])
def test_a_cut_journal_is_gone_on_with(cut: int, tmp_path: Path) -> None:
    config = ImagineConfig(kinds=("numbers", "evolve"), overlap=KEPT_NUMBERS, concurrency=4)
    harder = [f"Word {'and word ' * i}{i} is what I have in mind. How much is {i} of it?" for i in range(2, 6)]
    whole = Journal(tmp_path / "whole.jsonl")
    kept = imagine_questions(TRAIN[:5], config, says(*harder), [], [], whole, seed=3)
    assert [p.id for p in kept] == [r["id"] for r in whole.read() if r["kept"]]
    lines = [json.dumps(record) for record in whole.read()]
    torn = Journal(tmp_path / "torn.jsonl")
    (tmp_path / "torn.jsonl.part").write_text("".join(f"{line}\n" for line in lines[:cut]) + lines[cut][:20])
    model = says(*harder)
    assert imagine_questions(TRAIN[:5], config, model, [], [], torn, seed=3) == kept

    def untimed(journal: Journal) -> list[dict[str, Any]]:
        return [{**r, "usage": r["usage"] and {**r["usage"], "seconds": 0}} for r in journal.read()]

    assert untimed(torn) == untimed(whole)
    # Of the 10 candidates those with odd places are the model's.
    assert len(model.engine.requests) == 5 - cut // 2  # type: ignore[attr-defined]
    assert imagine_questions(TRAIN[:5], config, None, [], [], torn, seed=3) == kept  # complete: nothing is asked


def test_records_and_counts() -> None:
    found = [
        Candidate("a", "q", "numbers", "p", True),
        Candidate("b", "", "numbers", "p", False, "unparsable"),
        Candidate("c", "q", "backward", "p", True, gold="7"),
    ]
    assert counts([asdict(c) for c in found]) == {
        "candidates": {"numbers": 2, "backward": 1},
        "kept": {"numbers": 1, "backward": 1},
        "refused": {"unparsable": 1},
    }


def test_held_out_texts_come_without_answers() -> None:
    task = ArithTask("easy")
    found = held_out_questions(task, limit=3)
    assert found == [p.question for split in ("dev", "test") for p in task.load(split, 3)]
    assert all(isinstance(text, str) for text in found)


def test_the_command_writes_questions_that_the_jsonl_task_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    settings = ["--num_questions", "6", "--imagine.kinds", "[numbers, backward]", "--imagine.overlap.mask_numbers", "false"]
    argv = ["imagine", "--out", str(out), *settings, "--num_held_out", "20", "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert (report["questions"], report["held_out"], report["candidates"]) == (6, 40, {"numbers": 6, "backward": 6})
    problems = JsonlTask(str(out / "questions.jsonl")).load("train")
    assert len(problems) == sum(report["kept"].values())
    assert all((p.gold is None) == ("~numbers-" in p.id) for p in problems)
    assert main(argv) == 2
    assert "add --resume" in capsys.readouterr().err
    assert main([*argv, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out) == report


def test_a_named_model_writes(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["imagine", "--out", str(tmp_path / "out"), "--num_questions", "2", "--imagine.kinds", "[numbers, rephrase]"]
    argv += ["--held_out", "[]", "--imagine.model", str(tiny_model), "--imagine.max_tokens", "8"]
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert "2 of 4 candidates kept (2 numbers)" in told
    assert "2 too long for the model's context" in told  # it has 256 positions


def test_a_file_that_is_all_splits_at_once_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"question": "He has 7 pens and 9 pins. How many?"}\n')
    config = ImagineTaskConfig()
    own = replace(config, task=replace(config.task, name="jsonl", path=str(tmp_path / "own.jsonl")))
    with pytest.raises(ConfigError, match="all held out as well"):
        imagine_from_task(own, tmp_path / "out")
    assert imagine_from_task(replace(own, held_out=()), tmp_path / "out")["kept"] == {"numbers": 1}


@pytest.mark.parametrize(
    "bad",
    [
        {"kinds": ()},
        {"kinds": ("dream",)},
        {"kinds": ("numbers", "numbers")},
        {"per_question": 0},
        {"max_candidates": 0},
        {"temperature": -1.0},
    ],
)
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="imagine"):
        ImagineConfig(**bad)


def test_test_questions_are_no_source() -> None:
    with pytest.raises(ConfigError, match="split is 'test'"):
        ImagineTaskConfig(split="test")
    with pytest.raises(ConfigError, match="split is 'dev'"):
        ImagineTaskConfig(split="dev")
