"""Plant one-line errors, one at a time, and see that a test fails for each.

    python scripts/mutants.py [--only search] [--processes 2]

Every `tests/mutants/NAME.py` has a list MUTANTS of (file, old text, new text, tests). The tree is copied to scratch folders,
never touched itself. Results go to docs/results/mutants.json and mutants.md; exit status 1 if a mutant survives or no longer
applies.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[1]
Mutant = tuple[str, str, str, str]
COPIED = (
    "llm_mcts",
    "critics",
    "trainers",
    "tests",
    "configs",
    "scripts",
    "docs",
    "pyproject.toml",
    "README.md",
    "CHANGELOG.md",
)
TIME_LIMIT = 600
"""Seconds for the tests of one mutant; a mutant that makes them hang is caught."""


def main() -> int:
    """Run all mutants; 0 if every one is caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="the mutants of tests/mutants/ONLY.py")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    mutants = [mutant for area in read(arguments.only) for mutant in area]
    folders: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as scratch:
        for i in range(arguments.processes):
            folders.put(copy_to(Path(scratch) / str(i)))
        with ThreadPoolExecutor(arguments.processes) as pool:
            results = []
            for mutant, result in zip(mutants, pool.map(lambda mutant: judge(mutant, folders), mutants), strict=True):
                results.append(result)
                print(f"{len(results)} of {len(mutants)} {result}: {mutant[0]}: {mutant[1]!r}", flush=True)
    if not arguments.only:
        write(mutants, results, time.perf_counter() - started)
    missed = [(m, r) for m, r in zip(mutants, results, strict=True) if r != "caught"]
    for (file, old, new, tests), result in missed:
        print(f"{result}: {file}: {old!r} -> {new!r} ({tests})")
    print(f"{len(mutants) - len(missed)} of {len(mutants)} mutants caught in {time.perf_counter() - started:.0f} s")
    return 1 if missed else 0


def read(only: str | None) -> list[list[Mutant]]:
    """The lists of mutants."""
    files = sorted((ROOT / "tests" / "mutants").glob(f"{only or '*'}.py"))
    areas = []
    for file in files:
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        areas.append(list(module.MUTANTS))
    return areas


def copy_to(folder: Path) -> Path:
    """A copy of the sources and tests."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        else:
            shutil.copy(source, folder / name)
    return folder


def judge(mutant: Mutant, folders: "Queue[Path]") -> str:
    """caught, survived, or why it cannot be planted."""
    file, old, new, tests = mutant
    folder = folders.get()
    try:
        path = folder / file
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            return f"found {text.count(old)} times"
        path.write_text(text.replace(old, new), encoding="utf-8")
        try:
            return "survived" if passes(folder, tests) else "caught"
        finally:
            path.write_text(text, encoding="utf-8")
    finally:
        folders.put(folder)


def passes(folder: Path, tests: str) -> bool:
    """Whether the tests pass in that folder."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests.split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # no test found, or the planted line does not even import
        print(done.stdout.decode()[-500:], file=sys.stderr)
    return done.returncode == 0


def write(mutants: list[Mutant], results: list[str], seconds: float) -> None:
    """The results, as JSON and as a table."""
    folder = ROOT / "docs" / "results"
    about = {"date": datetime.now(UTC).date().isoformat(), "command": "make mutants", "seconds": round(seconds)}
    rows = [{"file": m[0], "old": m[1], "new": m[2], "tests": m[3], "result": r} for m, r in zip(mutants, results, strict=True)]
    (folder / "mutants.json").write_text(json.dumps({**about, "mutants": rows}, indent=1) + "\n", encoding="utf-8")
    by_file: dict[str, list[str]] = {}
    for (file, *_), result in zip(mutants, results, strict=True):
        by_file.setdefault(file, []).append(result)
    lines = ["# Planted errors", "", f"{about['date']}, `{about['command']}`, {about['seconds']} s.", ""]
    lines += ["| file | planted | caught |", "|---|---:|---:|"]
    lines += [f"| `{file}` | {len(found)} | {found.count('caught')} |" for file, found in sorted(by_file.items())]
    lines.append(f"| all | {len(results)} | {results.count('caught')} |")
    (folder / "mutants.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
