"""The help: two levels, every setting somewhere, nothing that is refused when it is used."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from llm_mcts.cli import COMMANDS, GROUPS, main, overview
from llm_mcts.cli.help import settings_of
from llm_mcts.engines import ENGINES
from llm_mcts.engines.base import EngineConfig
from llm_mcts.search import SEARCHES
from trainers.loop.self_improve import SelfImproveConfig
from trainers.loop.train_command import KINDS_OF_TRAINING, job_config


def printed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 0
    return capsys.readouterr().out


def paths(cls: type[Any], prefix: str = "") -> list[str]:
    """Every leaf setting, by a walk of its own."""
    found = []
    for field in dataclasses.fields(cls):
        name = field.name
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        found += paths(type(value), f"{prefix}{name}.") if dataclasses.is_dataclass(value) else [f"{prefix}{name}"]
    return found


@pytest.mark.parametrize("name", SEARCHES)
def test_every_setting_of_a_search_is_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["solve", "--help-search", name], capsys)
    for path in paths(SEARCHES[name][1]):
        assert f"--search.{path}\n" in text


@pytest.mark.parametrize("name", ENGINES)
def test_every_setting_of_an_engine_is_in_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["evaluate", "--help-engine", name], capsys)
    others = tuple(f"{other}." for other in ENGINES if other != name)
    for path in paths(EngineConfig):
        assert (f"--solver.engine.{path}\n" in text) is not path.startswith(others)


@pytest.mark.parametrize("kind", KINDS_OF_TRAINING)
def test_a_trainers_help_shows_its_own_settings_alone(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["train", kind, "--help"], capsys)
    wanted = paths(job_config(kind))
    assert [line.strip()[2:] for line in text.splitlines() if line.startswith("  --") and "." in line] == [
        path for path in wanted if "." in path
    ]
    assert ("--dpo.beta" in text) is (kind == "dpo")


def test_every_setting_of_a_run_is_in_help_all(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["self-improve", "--help-all"], capsys)
    for path in paths(SelfImproveConfig):
        assert f"--{path}\n" in text


CLASSES = [SelfImproveConfig, *(config for _, config in SEARCHES.values()), *map(job_config, KINDS_OF_TRAINING)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_setting_has_a_meaning(cls: type[Any]) -> None:
    assert [setting.path for setting in settings_of(cls) if not setting.meaning] == []


def test_the_short_help_is_short_and_says_how_to_see_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        text = printed([command, "--help"], capsys)
        assert len(text.splitlines()) < 100
        assert "Annotated" not in text
        assert "configuration file" not in text  # no setting is a file to be read
    text = printed(["solve", "--help"], capsys)
    assert text.count("\n  --") < 24
    assert "(a whole number >= 1; default: 32)" in text
    assert "--help-all" in text
    assert "--help-search NAME" in text


def test_the_overview_has_every_command_in_a_group() -> None:
    text = overview()
    assert sorted(name for group in GROUPS.values() for name in group) == sorted(COMMANDS)
    for title, commands in GROUPS.items():
        assert f"\n{title}:\n" in text
        for name in commands:
            assert f"\n  {name} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    import llm_mcts

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llm-mcts {llm_mcts.__version__}\n"


def test_unknown_names_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["solve", "--help-search", "mtcs"]) == 2
    assert "did you mean 'mcts'" in capsys.readouterr().err
    assert main(["train", "orn", "rows.jsonl", "--out", "x"]) == 2
    assert "did you mean 'orm'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["solve", "--help"], ["solve", "--help-search", "gumbel"], ["presets"]])
def test_help_loads_no_model_library(argv: list[str]) -> None:
    code = (
        f"import sys; from llm_mcts.cli import main\ntry: main({argv!r})\nexcept SystemExit: pass\nprint(); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "transformers"} & set(done.stdout.splitlines()[-1].split()) == set()
