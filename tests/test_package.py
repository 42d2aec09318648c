"""The installed package: what is in the wheel, presets from any folder, and files of the user's that hide our packages."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import critics
import llm_mcts
import trainers
from llm_mcts.config import load_config, preset_files
from llm_mcts.errors import ConfigError
from llm_mcts.settings import SolverConfig
from trainers.fit.fit import save_atomically

ROOT = Path(__file__).parents[1]
QUESTION = "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"


def python(code: str, folder: Path, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the user's in `folder`, which Python then looks in first; our packages come from `path`."""
    (folder / "script.py").write_text(code)
    environment = {"PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    return subprocess.run([sys.executable, "script.py"], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    assert file.name.startswith(f"llm_mcts-{llm_mcts.__version__}-")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_the_packages_types_model_and_presets(wheel: Path) -> None:
    for package in ("llm_mcts", "critics", "trainers"):
        assert (wheel / package / "py.typed").exists()
        written = {file.relative_to(ROOT / package) for file in (ROOT / package).rglob("*.py")}
        assert {file.relative_to(wheel / package) for file in (wheel / package).rglob("*.py")} == written
    assert (wheel / "llm_mcts" / "embedded" / "model.safetensors").exists()
    shipped = {file.relative_to(wheel / "llm_mcts" / "presets") for file in (wheel / "llm_mcts" / "presets").rglob("*.yaml")}
    assert shipped == {file.relative_to(ROOT / "configs") for file in (ROOT / "configs").rglob("*.yaml")}
    assert not (wheel / "tests").exists()


def test_a_preset_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    argv = ["solve", QUESTION, "--config", "preset:gumbel", "--search.num_simulations", "4"]
    done = python(f"import sys, llm_mcts.cli; print(llm_mcts.__file__); sys.exit(llm_mcts.cli.main({argv!r}))", tmp_path, wheel)
    assert done.returncode == 0, done.stderr
    assert str(wheel) in done.stdout
    assert "answer: " in done.stdout


def test_presets_are_found_by_their_name_or_its_last_part() -> None:
    assert "search/gumbel" in preset_files()
    assert load_config(SolverConfig, "preset:gumbel") == load_config(SolverConfig, ROOT / "configs" / "search" / "gumbel.yaml")
    assert load_config(SolverConfig, "preset:search/mcts_uct").search["selection"] == "uct"  # type: ignore[index]
    with pytest.raises(ConfigError, match="no preset 'gumbl'; did you mean"):
        load_config(SolverConfig, "preset:gumbl")
    with pytest.raises(ConfigError, match=r"could be .*; give the whole name"):
        load_config(SolverConfig, "preset:arith")


@pytest.mark.parametrize("name", ["critics.py", "trainers.py", "critics/other.py"])
@pytest.mark.parametrize("imported_before", [False, True])
def test_a_file_that_hides_a_package_is_named(name: str, imported_before: bool, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("x = 1\n")
    if "/" in name:
        (tmp_path / "critics" / "__init__.py").write_text("")
    module = Path(name).parts[0].removesuffix(".py")
    before = f"import {module}\n" if imported_before else ""
    done = python(f"{before}import sys, llm_mcts.cli; sys.exit(llm_mcts.cli.main(['solve', 'x']))", tmp_path, ROOT)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / Path(name).parts[0]) in line
    assert "rename it, or run from another folder" in line
    assert f"'{module}'" in line


def test_a_solver_without_critics_does_not_mind(tmp_path: Path) -> None:
    (tmp_path / "critics.py").write_text("x = 1\n")
    done = python("import llm_mcts; llm_mcts.Solver(); print('made')", tmp_path, ROOT)
    assert done.stdout == "made\n", done.stderr


def test_the_front_page_names_what_users_extend() -> None:
    for package in (llm_mcts, critics, trainers):
        for name in package.__all__:
            assert getattr(package, name) is not None
    used = "llm_mcts.Tree, llm_mcts.SEARCHES, llm_mcts.TASKS, critics.KINDS, trainers"
    code = f"import sys, critics, llm_mcts, trainers; {used}; print({{'torch', 'transformers'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_get_the_umasks_mode(umask: int, mode: int, tiny_model: Path, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        critics.CriticModel.create("orm", str(tiny_model)).save_pretrained(tmp_path / "critic")
        save_atomically(lambda folder: save_file({"w": torch.ones(1)}, folder / "model.safetensors"), tmp_path / "policy")
    finally:
        os.umask(before)
    files = [*(tmp_path / "critic").iterdir(), *(tmp_path / "policy").iterdir()]
    assert {file.stat().st_mode & 0o777 for file in files} == {mode}
    assert {"head.safetensors", "model.safetensors"} <= {file.name for file in files}
