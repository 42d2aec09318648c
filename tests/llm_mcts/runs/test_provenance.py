"""What a run was made from, and what a later session may not change."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs import provenance
from llm_mcts.runs.directory import RunDirectory
from llm_mcts.runs.provenance import code_commit, hash_model, hash_problems, new_session, next_manifest
from llm_mcts.types import Problem

CONFIG = {"seed": 0, "concurrency": 4}
FACTS = {"seed": 0, "data": {"train": "aaaa", "dev": "bbbb"}, "parents": {"policy": "cccc"}}


def test_problems_hash_by_text_and_gold_alone() -> None:
    one = [Problem("1", "a?", "2"), Problem("2", "b?", None)]
    expected = hashlib.sha256(b'["a?", "2"]\n["b?", null]\n').hexdigest()
    assert hash_problems(one) == expected
    assert hash_problems([Problem("x", "a?", "2", "worked"), Problem("y", "b?")]) == expected
    others = [one[::-1], one[:1], [Problem("1", "a?", "3"), one[1]], [Problem("1", "a??", "2"), one[1]]]
    assert len({hash_problems(other) for other in others} | {expected}) == 5


def test_a_model_hashes_by_its_files(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(tiny_model, copy)
    assert hash_model(str(copy)) == hash_model(str(tiny_model))
    (copy / "notes.txt").write_text("of no account")
    assert hash_model(str(copy)) == hash_model(str(tiny_model))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert hash_model(str(copy)) != hash_model(str(tiny_model))
    assert hash_model("org/model") == "org/model"
    assert len(hash_model("embedded")) == 64


def test_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_mcts"
    package.mkdir()
    file = package / "provenance.py"
    file.write_text("1")
    monkeypatch.setattr(provenance, "__file__", str(file))
    assert code_commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert code_commit() is None  # in somebody else's checkout
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert code_commit() == {"commit": head, "dirty": False}
    file.write_text("2")
    assert code_commit() == {"commit": head, "dirty": True}


def test_a_later_session_is_appended_with_what_changed() -> None:
    first, second = new_session(), new_session({"concurrency": [4, 2]})
    first |= {"code": {"commit": "1", "dirty": False}, "python": "3.11.0"}
    second |= {"code": {"commit": "2", "dirty": False}, "python": "3.11.0"}
    begun = next_manifest(None, FACTS, first)
    after = next_manifest(begun, FACTS, second)
    assert [s["changed"] for s in after["sessions"]] == [{}, {"code.commit": ["1", "2"]}]
    assert after["sessions"][1]["settings"] == {"concurrency": [4, 2]}
    assert after["sessions"][0] == begun["sessions"][0]
    assert {k: after[k] for k in FACTS} == FACTS


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"train": "dddd", "dev": "bbbb"}}, r"other data: data\.train \(hash was aaaa, now dddd\)"),
        ({"parents": {"policy": "eeee"}}, r"other parents: parents\.policy \(hash was cccc, now eeee\)"),
    ],
)
def test_other_questions_or_models_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG, resume=False).write_manifest(FACTS)
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=True)
    before = run.manifest_file.read_bytes()
    with pytest.raises(ConfigError, match=named):
        run.write_manifest({**FACTS, **change})
    assert run.manifest_file.read_bytes() == before


def test_sessions_say_how_they_ended(tmp_path: Path) -> None:
    endings: list[BaseException | None] = [KeyboardInterrupt(), ValueError("two\nlines"), None]
    for i, error in enumerate(endings):
        try:
            with RunDirectory.open(tmp_path / "run", CONFIG, resume=True) as run:
                run.write_manifest(FACTS)
                assert ((run.manifest() or {})["sessions"][-1]["outcome"], i) == (None, i)
                if error:
                    raise error
        except (KeyboardInterrupt, ValueError):
            pass
    sessions = json.loads((tmp_path / "run" / "manifest.json").read_text())["sessions"]
    assert [s["outcome"] for s in sessions] == ["stopped", "failed: ValueError: two lines", "finished"]
    assert all(s["started"] <= s["ended"] for s in sessions)


def test_settings_that_do_not_matter_may_change(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG, resume=False).close()
    with pytest.raises(ConfigError, match="concurrency"):
        RunDirectory.open(tmp_path / "run", {**CONFIG, "concurrency": 1}, resume=True)
    with pytest.raises(ConfigError, match="seed") as caught:
        RunDirectory.open(tmp_path / "run", {"seed": 1, "concurrency": 1}, resume=True, free=("concurrency",))
    assert "concurrency" not in str(caught.value)
    with RunDirectory.open(tmp_path / "run", {**CONFIG, "concurrency": 1}, resume=True, free=("concurrency",)) as run:
        run.write_manifest(FACTS)
        assert (run.manifest() or {})["sessions"][-1]["settings"] == {"concurrency": [4, 1]}
        assert run.config() == CONFIG


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    for text in ("{", "[]"):
        run.manifest_file.write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json"):
            run.write_manifest(FACTS)


@pytest.mark.parametrize(("version", "found"), [(2, "format version 2"), (None, "format version None")])
def test_a_run_of_another_release_is_refused(version: int | None, found: str, tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    run.write_manifest(FACTS)
    manifest = json.loads(run.manifest_file.read_text())
    assert manifest.pop("version") == 1
    run.manifest_file.write_text(json.dumps(manifest if version is None else {"version": version, **manifest}))
    with pytest.raises(DataError, match=f"{found}; expected 1: use the release"):
        RunDirectory.open(tmp_path / "run", CONFIG, resume=True).write_manifest(FACTS)
