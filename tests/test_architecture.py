"""Who may import whom, and what no source may contain; read from the syntax trees, not from running code."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("llm_mcts", "critics", "trainers")

# Each package may import itself and these; the command line, scripts and tests may import anything.
ALLOWED: dict[str, set[str]] = {
    "llm_mcts": set(),
    "critics": {"llm_mcts"},
    "trainers": {"critics", "llm_mcts"},
}
# The two places where the base package reaches up, and only inside functions.
EXCEPTIONS: dict[str, set[str]] = {
    "llm_mcts/solver.py": {"critics"},
    "llm_mcts/cli.py": {"critics", "trainers"},
}
# What a search may know: the tree, the data, errors and seeds; neither models nor tasks nor files.
SEARCH_MAY_IMPORT = ("search", "tree", "types", "errors", "seeding", "concurrency")
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("os", "system")}


@dataclass(frozen=True)
class Import:
    """One imported module, absolute, and whether it is imported while its file loads."""

    module: str
    line: int
    at_load: bool


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports(path: Path) -> list[Import]:
    """Every import of a file; those under TYPE_CHECKING or inside a function do not happen at load."""
    return list(_imports(parse(path), path.relative_to(ROOT).parts[:-1], True))


def _imports(node: ast.AST, package: tuple[str, ...], at_load: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, at_load)
    elif isinstance(node, ast.ImportFrom):
        parents = package[: len(package) - node.level + 1] if node.level else ()
        module = ".".join([*parents, *([node.module] if node.module else [])])
        for alias in node.names:  # `from llm_mcts import solver` imports llm_mcts.solver
            is_module = (ROOT / f"{module}.{alias.name}".replace(".", "/")).with_suffix(".py").exists()
            yield Import(f"{module}.{alias.name}" if is_module else module, node.lineno, at_load)
    else:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            at_load = False
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            at_load = False
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package, at_load)


def test_there_is_something_to_check() -> None:
    for package in PACKAGES:
        assert len(sources(package)) >= 3
    assert {name_of(path) for path in sources("llm_mcts")} >= set(EXCEPTIONS)


def test_the_reader_of_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "llm_mcts").mkdir()
    (tmp_path / "llm_mcts" / "solver.py").touch()
    file = tmp_path / "llm_mcts" / "x.py"
    file.write_text(
        "import a.b, c\nfrom llm_mcts import solver, State\nfrom . import solver as s\nfrom .y import z\n"
        "if TYPE_CHECKING:\n    import d\ndef f():\n    import e\nclass C:\n    import g\n"
    )
    found = [(i.module, i.at_load) for i in imports(file)]
    assert found == [
        ("a.b", True),
        ("c", True),
        ("llm_mcts.solver", True),
        ("llm_mcts", True),
        ("llm_mcts.solver", True),
        ("llm_mcts.y", True),
        ("d", False),
        ("e", False),
        ("g", True),
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_direction_of_imports(package: str) -> None:
    wrong = []
    for path in sources(package):
        allowed = {package} | ALLOWED[package] | EXCEPTIONS.get(name_of(path), set())
        for found in imports(path):
            top = found.module.split(".")[0]
            if top in {*PACKAGES, "scripts", "tests"} and top not in allowed:
                wrong.append(f"{name_of(path)}:{found.line} imports {found.module}")
    assert wrong == []


@pytest.mark.parametrize("path", sorted(EXCEPTIONS))
def test_exceptions_are_needed_and_lazy(path: str) -> None:
    upward = [i for i in imports(ROOT / path) if i.module.split(".")[0] in EXCEPTIONS[path]]
    assert {i.module.split(".")[0] for i in upward} == EXCEPTIONS[path]
    assert [i for i in upward if i.at_load] == []


def test_nothing_below_the_command_line_imports_it() -> None:
    wrong = [f"{name_of(p)}:{i.line}" for p in sources(*PACKAGES) for i in imports(p) if i.module.startswith("llm_mcts.cli")]
    assert wrong == []


def test_searches_and_what_they_stand_on_know_nothing_else() -> None:
    wrong = []
    base = [ROOT / "llm_mcts" / f"{name}.py" for name in SEARCH_MAY_IMPORT if name != "search"]
    for path in [*sources("llm_mcts/search"), *base]:
        for found in imports(path):
            inside = any(f"{found.module}.".startswith(f"llm_mcts.{name}.") for name in SEARCH_MAY_IMPORT)
            if not inside and found.module.split(".")[0] not in sys.stdlib_module_names:
                wrong.append(f"{name_of(path)}:{found.line} imports {found.module}")
    assert wrong == []


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after `statement`."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    light = "import llm_mcts, llm_mcts.cli, llm_mcts.search, llm_mcts.tasks, llm_mcts.store, llm_mcts.runner, llm_mcts.solver"
    loaded = loaded_by(light)
    assert "llm_mcts.solver" in loaded
    assert loaded & {"torch", "transformers", "peft", "datasets", "critics", "trainers"} == set()


def test_the_solver_is_loaded_only_when_asked_for() -> None:
    assert "llm_mcts.solver" not in loaded_by("import llm_mcts")
    assert "llm_mcts.solver" in loaded_by("from llm_mcts import Solver")


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_no_source_evaluates_text_or_unpickles() -> None:
    wrong = []
    for path in sources(*PACKAGES):
        for call in calls(parse(path)):
            where = f"{name_of(path)}:{call.lineno}"
            if isinstance(call.func, ast.Name) and call.func.id in FORBIDDEN_CALLS:
                wrong.append(f"{where} calls {call.func.id}")
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
                dotted = (call.func.value.id, call.func.attr)
                if dotted in FORBIDDEN_ATTRIBUTES or dotted[0] == "builtins":
                    wrong.append(f"{where} calls {'.'.join(dotted)}")
        wrong += [
            f"{name_of(path)}:{i.line} imports {i.module}"
            for i in imports(path)
            if i.module.split(".")[0] in {*FORBIDDEN_MODULES, "builtins"}
        ]
    assert wrong == []


def test_no_remote_code_is_trusted() -> None:
    needle = "trust_remote_code"
    wrong = []
    for path in sources(*PACKAGES, "scripts"):
        for call in calls(parse(path)):
            for keyword in call.keywords:
                if keyword.arg == needle and not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False):
                    wrong.append(f"{name_of(path)}:{call.lineno}")
    text_files = [p for p in ROOT.glob("*") if p.suffix in (".md", ".toml", ".yaml")]
    folders = [*PACKAGES, "scripts", "tests", "configs", "docs", "examples"]
    text_files += [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".md", ".yaml", ".json", ".ipynb")]
    assert len(text_files) > 40
    wrong += [name_of(p) for p in text_files if f"{needle}=True" in p.read_text(encoding="utf-8").replace(" ", "")]
    assert wrong == []
