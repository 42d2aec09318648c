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

# The rooms: a folder, or some files that stand directly in a package, and the rooms each may import from.
# A room is named by its path; ROOM_OF names the rooms of single files. `+` joins a row of this table to another's.
BASE = ("base",)
ENGINES = (*BASE, "models", "tasks", "prompts", "engines")
SEARCHING = (*ENGINES, "engines/*", "tree", "search", "policy", "settings", "solver")  # all that a solver is made of
ROOMS: dict[str, tuple[str, ...]] = {
    # llm_mcts
    "base": (),
    "tree": BASE,
    "search": (*BASE, "tree"),
    "models": BASE,
    "tasks": BASE,
    "prompts": (*BASE, "tasks"),
    "engines": (*BASE, "models", "prompts"),
    "engines/scripted": (*BASE, "engines"),
    "engines/transformers": ENGINES,
    "engines/openai": ENGINES,
    "engines/vllm": ENGINES,
    "engines/openvino": ENGINES,
    "policy": (*BASE, "tasks", "prompts", "engines"),
    "settings": (*BASE, "search", "prompts", "engines", "policy"),
    "solver": (*BASE, "models", "tree", "search", "prompts", "engines", "engines/*", "policy", "settings", "critics/assemble"),
    "runner": (*BASE, "tree"),
    "scores": (*BASE, "runner"),
    "runs": (*BASE, "tree", "models", "runner", "scores"),
    "evaluate": (*BASE, "tree", "tasks", "runner", "scores", "runs", "settings", "solver"),
    "viewer": (*BASE, "tree"),
    "serving": (*BASE, "tree", "prompts", "runs", "settings", "solver"),
    # critics
    "critics": BASE,
    "critics/model": (*ENGINES, "engines/transformers", "critics"),
    "critics/scoring": (*SEARCHING, "runs", "critics", "critics/model"),
    "critics/published": (*SEARCHING, "critics", "critics/model", "critics/scoring"),
    "critics/assemble": (*SEARCHING, "critics", "critics/model", "critics/scoring", "critics/published"),
    "critics/diagnosis": (*SEARCHING, "runner", "runs", "evaluate", "critics", "critics/scoring", "critics/assemble"),
    # trainers
    "trainers/data": (*BASE, "tree", "search", "tasks", "prompts", "critics"),
    "trainers/fit": (*ENGINES, "runs", "critics", "critics/model", "trainers/data"),
    "trainers/policy": (*SEARCHING, "runs", "critics", "critics/*", "trainers/data", "trainers/fit"),
    "trainers/critic": (*SEARCHING, "runs", "critics", "critics/*", "trainers/data", "trainers/fit"),
    "trainers/questions": (*SEARCHING, "runner", "runs", "evaluate"),
    "trainers/labels": (*SEARCHING, "runner", "runs", "evaluate", "critics", "critics/scoring", "trainers/data"),
    "trainers/report": (*BASE, "tree", "tasks", "runner", "scores", "runs", "viewer", "critics"),
    "trainers/loop": (*SEARCHING, "runner", "scores", "runs", "evaluate", "critics", "critics/*", "trainers/*"),
}
# Files that stand directly in a package: the name of their room, where it is not their own.
IN_BASE = ("types", "errors", "seeding", "concurrency", "config", "fields", "stats", "packages")
ROOM_OF = {f"llm_mcts.{name}": "base" for name in IN_BASE} | {"llm_mcts.result": "tree"}
# The command line and the packages' own front doors may import anything, and nothing imports them.
CLI = tuple(f"llm_mcts.cli{name}" for name in ("", ".__main__", ".help", ".parsing", ".use", ".improve", ".inspect"))
FRONT_DOORS = (*CLI, "llm_mcts", "critics", "trainers")
# What a search may know: the tree, the data, errors and seeds; neither models nor tasks nor files.
SEARCH_MAY_IMPORT = ("search", "tree", "result", "types", "errors", "seeding", "concurrency", "fields")
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


def module_of(path: Path) -> str:
    name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module of ours: the deepest row of the table that its path lies in."""
    if module in ROOM_OF:
        return ROOM_OF[module]
    path = module.removeprefix("llm_mcts.").replace(".", "/")
    while path not in ROOMS and "/" in path:
        path = path.rpartition("/")[0]
    return path


def allowed(room: str) -> set[str]:
    """The rooms that a room may import from, itself among them."""
    rooms = {room}
    for name in ROOMS[room]:
        rooms |= {r for r in ROOMS if r.startswith(name.removesuffix("*"))} if name.endswith("*") else {name}
    return rooms


def our_imports(path: Path) -> list[Import]:
    """Imports of our own modules, also those inside functions and under TYPE_CHECKING."""
    return [i for i in imports(path) if i.module.split(".")[0] in {*PACKAGES, "scripts", "tests"}]


def test_every_file_is_in_a_room_and_every_room_has_files() -> None:
    rooms = {room_of(module_of(path)) for path in sources(*PACKAGES) if module_of(path) not in FRONT_DOORS}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_those_in_its_row(room: str) -> None:
    wrong = []
    for path in sources(*PACKAGES):
        module = module_of(path)
        if module in FRONT_DOORS or room_of(module) != room:
            continue
        for found in our_imports(path):
            if found.module in FRONT_DOORS or room_of(found.module) not in allowed(room):
                wrong.append(f"{name_of(path)}:{found.line} imports {found.module}")
    assert wrong == []


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some names that lead back to the first one; empty where there are none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return way[way.index(name) :]
        if name in done:
            return []
        for other in sorted(arrows.get(name, ())):
            if found := walk(other, [*way, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(arrows) if (found := walk(name, []))), [])


def test_the_reader_of_circles() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]


def test_no_circle_among_rooms() -> None:
    # The solver loads critics, which are searched with: the one arrow that leads up, and only inside a function.
    arrows = {room: allowed(room) - {room} - ({"critics/assemble"} if room == "solver" else set()) for room in ROOMS}
    assert circle(arrows) == []


def test_no_circle_among_files() -> None:
    """Not even inside functions or under TYPE_CHECKING."""
    files = {module_of(path): path for path in sources(*PACKAGES)}
    arrows = {
        name: {i.module for i in our_imports(path) if i.module in files and i.module != name} for name, path in files.items()
    }
    assert circle({name: others for name, others in arrows.items() if name not in FRONT_DOORS}) == []


def test_what_leads_up_is_lazy() -> None:
    for module in ("llm_mcts.solver", "llm_mcts.cli.improve"):
        path = (ROOT / module.replace(".", "/")).with_suffix(".py")
        up = [i for i in our_imports(path) if i.module.split(".")[0] in ("critics", "trainers")]
        assert up != []
        assert [i.line for i in up if i.at_load] == []


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
    names = ("cli", "search", "tasks", "runs.directory", "runner", "solver")
    light = "import llm_mcts, " + ", ".join(f"llm_mcts.{name}" for name in names)
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
