"""The run directory: whole or not at all, and the same bytes whoever came first."""

import gzip
import json
import os
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mcts.errors import ConfigError, DataError
from llm_mcts.runs.directory import RoundDirectory, RunDirectory
from llm_mcts.runs.durable import write_atomically
from llm_mcts.runs.journal import Journal
from llm_mcts.runs.provenance import versions

quick = settings(max_examples=50)

RECORDS = [{"id": f"q{i}", "text": "é\u2028\n", "n": i} for i in range(4)]


def part_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def test_atomic_write_makes_folders_and_leaves_no_scratch(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "c.bin"
    write_atomically(file, b"\x00one")
    assert file.read_bytes() == b"\x00one"
    write_atomically(file, b"two")
    assert file.read_bytes() == b"two"
    assert [p.name for p in file.parent.iterdir()] == ["c.bin"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    file = tmp_path / "c.bin"
    write_atomically(file, b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    if failing == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    else:
        monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new and longer")
    assert file.read_bytes() == b"old"


def test_the_data_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(fd: int) -> None:
        calls.append("fsync")
        real_fsync(fd)

    def replace(self: Path, target: Path) -> Path:
        calls.append("replace")
        assert self.read_bytes() == b"data"
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    write_atomically(tmp_path / "f", b"data")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder's list of names


def test_a_journal_grows_and_is_complete_only_when_finished(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "sub" / "log.jsonl")
    assert journal.read() == []
    assert not journal.complete
    for i, record in enumerate(RECORDS, 1):
        journal.append(record)
        assert Journal(journal.path).read() == RECORDS[:i]
    assert not journal.path.exists()
    journal.finish()
    assert journal.complete
    assert journal.read() == RECORDS
    assert [p.name for p in journal.path.parent.iterdir()] == ["log.jsonl"]
    assert [json.loads(line) for line in journal.path.read_bytes().split(b"\n")[:-1]] == RECORDS


@quick
@given(st.integers(1, 40))
def test_a_torn_last_line_is_dropped(tmp_path_factory: pytest.TempPathFactory, lost: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "log.jsonl"
    journal = Journal(path)
    for record in RECORDS[:3]:
        journal.append(record)
    whole = part_of(path).read_bytes()
    last = len(json.dumps(RECORDS[2], ensure_ascii=False).encode()) + 1
    part_of(path).write_bytes(whole[: len(whole) - min(lost, last)])
    assert journal.read() == RECORDS[:2]
    journal.append(RECORDS[3])
    assert journal.read() == [*RECORDS[:2], RECORDS[3]]
    journal.finish()
    assert journal.read() == [*RECORDS[:2], RECORDS[3]]


def test_a_torn_first_line_leaves_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    part_of(journal.path).write_bytes(b'{"id": "q')
    assert journal.read() == []
    journal.append(RECORDS[0])
    assert journal.read() == [RECORDS[0]]


def test_an_empty_part_file_is_fine(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    part_of(journal.path).touch()
    assert journal.read() == []
    journal.append(RECORDS[0])
    assert journal.read() == [RECORDS[0]]


def test_gz_bytes_do_not_tell_who_came_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for i, order in enumerate(permutations(RECORDS)):
        monkeypatch.setattr("time.time", lambda i=i: 1e9 + i)
        journal = Journal(tmp_path / str(i) / "trees.jsonl.gz")
        for record in order:
            journal.append(record)
        journal.finish([r["id"] for r in RECORDS])
        found.add(journal.path.read_bytes())
        assert journal.read() == RECORDS
    assert len(found) == 1
    assert gzip.decompress(found.pop()).decode().split("\n")[0] == '{"id": "q0", "text": "é\u2028\\n", "n": 0}'


def test_gz_bytes_are_the_same_after_a_kill_and_resume(tmp_path: Path) -> None:
    straight, resumed = Journal(tmp_path / "a.jsonl.gz"), Journal(tmp_path / "b.jsonl.gz")
    for record in RECORDS:
        straight.append(record)
    for record in (RECORDS[2], RECORDS[0]):
        resumed.append(record)
    with part_of(resumed.path).open("ab") as file:
        file.write(b'{"id": "q3", "te')
    resumed = Journal(resumed.path)
    done = {r["id"] for r in resumed.read()}
    assert done == {"q0", "q2"}
    for record in RECORDS:
        if record["id"] not in done:
            resumed.append(record)
    order = [r["id"] for r in RECORDS]
    straight.finish(order)
    resumed.finish(order)
    assert straight.path.read_bytes() == resumed.path.read_bytes()


def test_a_kill_between_rename_and_clean_up_counts_as_complete(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.append(RECORDS[1])
    left = part_of(journal.path).read_bytes()
    journal.finish()
    part_of(journal.path).write_bytes(left)
    assert journal.complete
    assert journal.read() == [RECORDS[1]]


def test_finishing_twice_changes_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl.gz")
    journal.write(RECORDS)
    before = journal.path.read_bytes()
    journal.finish([r["id"] for r in RECORDS])
    assert journal.path.read_bytes() == before


def test_a_round_notes_its_stages(tmp_path: Path) -> None:
    here = RoundDirectory(tmp_path / "round_001")
    assert here.metric("search") is None
    here.note("search", {"solved": 3})
    here.note("sft", {"loss": 0.5})
    here.note("search", {"solved": 4})
    assert here.metric("search") == {"stage": "search", "solved": 4}
    assert here.metric("sft") == {"stage": "sft", "loss": 0.5}
    assert here.metric("orm") is None


def test_notes_edited_by_hand(tmp_path: Path) -> None:
    here = RoundDirectory(tmp_path)
    here.note("search", {"n": 1})
    here.metrics_file.write_bytes(here.metrics_file.read_bytes() + b'{"stage": "rows"}')  # without a newline
    assert [row["stage"] for row in here.metrics()] == ["search", "rows"]
    here.note("value", {})
    assert [row["stage"] for row in here.metrics()] == ["search", "rows", "value"]


def test_what_a_finished_stage_left_must_be_there_and_whole(tmp_path: Path) -> None:
    here = RoundDirectory(tmp_path)
    rows = here.rows("policy")
    with pytest.raises(DataError, match=r"policy\.jsonl is gone, .* metrics\.jsonl"):
        rows.whole()
    rows.write([{"a": 1}, {"a": 2}])
    assert rows.whole() == [{"a": 1}, {"a": 2}]
    rows.path.write_bytes(rows.path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"policy\.jsonl:2: half a record; put it back"):
        rows.whole()


def test_the_users_own_files_stay(tmp_path: Path) -> None:
    with RunDirectory.open(tmp_path / "run", {"a": 1}, resume=False) as run:
        (run.path / "notes.tmp").write_text("mine")
        (run.path / "folder.jsonl.tmp").mkdir()
        (run.path / "config.yaml.tmp").write_text("half")
    with RunDirectory.open(tmp_path / "run", {"a": 1}, resume=True):
        assert sorted(file.name for file in run.path.glob("*.tmp")) == ["folder.jsonl.tmp", "notes.tmp"]


def test_names_of_the_files(tmp_path: Path) -> None:
    here = RunDirectory(tmp_path).round(2)
    assert here.path == tmp_path / "round_002"
    assert here.trees.path == tmp_path / "round_002" / "trees.jsonl.gz"
    assert here.rows("orm").path == tmp_path / "round_002" / "rows" / "orm.jsonl"
    assert here.checkpoint("policy") == tmp_path / "round_002" / "checkpoints" / "policy"
    assert here.evaluation("mcts").path == tmp_path / "round_002" / "eval" / "mcts.jsonl"


CONFIG: dict[str, Any] = {"seed": 0, "train": {"lr": 1e-5, "epochs": 2}, "critics": ["value", "orm"], "note": "ä: b\nc"}


def test_a_run_is_started_once_and_resumed_with_the_same_values(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    assert run.config_file.exists()
    with pytest.raises(ConfigError, match="--resume"):
        RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    assert RunDirectory.open(tmp_path / "run", CONFIG, resume=True).path == run.path
    as_tuple = {**CONFIG, "critics": ("value", "orm")}
    assert RunDirectory.open(str(tmp_path / "run"), as_tuple, resume=True).path == run.path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed (was 0, now 1)"),
        ({"train": {"lr": 1e-4, "epochs": 2}}, "train.lr (was 1e-05, now 0.0001)"),
        ({"train": {"lr": 1e-5}}, "train.epochs (was 2, now None)"),
        ({"critics": ["orm", "value"]}, "critics (was ['value', 'orm'], now ['orm', 'value'])"),
        ({"extra": 3}, "extra (was None, now 3)"),
    ],
)
def test_resuming_with_other_values_names_the_keys(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        RunDirectory.open(tmp_path / "run", {**CONFIG, **change}, resume=True)
    assert named in str(caught.value)
    assert str(caught.value).count("(was") == 1
    assert run.config_file.read_bytes() == before


def test_all_differing_keys_are_named(tmp_path: Path) -> None:
    RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    with pytest.raises(ConfigError) as caught:
        RunDirectory.open(tmp_path / "run", {**CONFIG, "seed": 5, "train": {"lr": 1.0, "epochs": 3}}, resume=True)
    assert [key in str(caught.value) for key in ("seed", "train.lr", "train.epochs", "critics")] == [True, True, True, False]


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="not empty"):
            RunDirectory.open(tmp_path, CONFIG, resume)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_of_nothing_starts_a_run(tmp_path: Path) -> None:
    assert RunDirectory.open(tmp_path / "new", CONFIG, resume=True).config_file.exists()
    (tmp_path / "empty").mkdir()
    assert RunDirectory.open(tmp_path / "empty", CONFIG, resume=False).config_file.exists()


def test_a_broken_configuration_is_named(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    run.config_file.write_text("a: [1")
    with pytest.raises(DataError, match=r"config\.yaml"):
        RunDirectory.open(tmp_path / "run", CONFIG, resume=True)


def test_report_and_manifest(tmp_path: Path) -> None:
    run = RunDirectory.open(tmp_path / "run", CONFIG, resume=False)
    run.write_manifest({"seed": 3})
    run.write_report({"gain": 0.25}, "# ok\n")
    assert json.loads((run.path / "manifest.json").read_text())["seed"] == 3
    assert json.loads((run.path / "report.json").read_text()) == {"gain": 0.25}
    assert (run.path / "report.md").read_text() == "# ok\n"


def test_versions_name_the_packages_results_depend_on() -> None:
    found = versions()
    assert {"llm-mcts", "torch", "transformers"} <= set(found)
    assert found["torch"][0].isdigit()


def test_a_kill_while_the_configuration_is_written_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml.tmp").write_text("seed: ")
    RunDirectory.open(tmp_path / "run", CONFIG, resume=True)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError):
        RunDirectory.open(tmp_path / "run", CONFIG, resume=False)


def test_nested_tuples_are_the_lists_they_were_saved_as(tmp_path: Path) -> None:
    config = {"pairs": [("a", "b")]}
    RunDirectory.open(tmp_path / "run", {"pairs": [["a", "b"]]}, resume=False)
    RunDirectory.open(tmp_path / "run", config, resume=True)


def test_a_complete_journal_takes_no_further_record(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "log.jsonl")
    journal.write(RECORDS[:1])
    with pytest.raises(DataError, match="is complete"):
        journal.append(RECORDS[1])
