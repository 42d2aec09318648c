"""What `--help` says: the settings of a configuration class, each with type, range, default and meaning."""

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_type_hints

from llm_mcts.errors import ConfigError, suggest
from llm_mcts.fields import describe

WIDTH = 100


@dataclass(frozen=True)
class Setting:
    """One setting, by its dotted name."""

    path: str
    hint: Any
    default: Any
    meaning: str

    def text(self) -> str:
        """The name, and indented below it meaning, type and default."""
        default = "none" if self.default is None else list(self.default) if isinstance(self.default, tuple) else self.default
        about = f"{self.meaning} ({describe(self.hint)}; default: {default})"
        return f"  --{self.path}\n" + textwrap.indent(textwrap.fill(" ".join(about.split()), WIDTH), " " * 8)


def settings_of(cls: type[Any], prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration class, those of its sections included."""
    about: Any = cls
    hints, meanings = get_type_hints(cls, include_extras=True), meanings_of(about)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from settings_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield Setting(
                f"{prefix}{field.name}",
                hints[field.name],
                default,
                field.metadata.get("meaning") or meanings.get(field.name, ""),
            )


@cache
def meanings_of(cls: Any) -> dict[str, str]:
    """Field -> the docstring below it, in the class or one of its bases."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        try:
            (node,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        except (OSError, TypeError, SyntaxError, ValueError):  # made by a table, or in C
            continue
        for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    meanings[name] = meaning
    return meanings


def all_settings(cls: type[Any]) -> str:
    """Every setting of a class, and how to see those of a search."""
    found = list(settings_of(cls))
    lines = [setting.text() for setting in found]
    if any(setting.path.endswith("search") for setting in found):
        lines.append("settings of a search: --help-search NAME")
    return "\n".join(lines)


def main_settings(cls: type[Any], paths: Sequence[str]) -> str:
    """The settings at `paths`, in that order; below a search's name those of the default search."""
    found = {setting.path: setting for setting in settings_of(cls)}
    for path in list(found):
        if path.rpartition(".")[2] == "search":
            found |= {setting.path: setting for setting in search_settings("mcts", f"{path}.")}
    return "\n".join(found[path].text() for path in paths)


def search_settings(name: str, prefix: str = "search.") -> list[Setting]:
    """The settings of one search.

    Raises:
        ConfigError: there is no such search.
    """
    from llm_mcts.search import SEARCHES

    if name not in SEARCHES:
        raise ConfigError(f"no search '{name}'{suggest(name, SEARCHES)}")
    return list(settings_of(SEARCHES[name][1], prefix))


def engine_settings(name: str, prefix: str = "engine.") -> list[Setting]:
    """The settings of one engine: those that all have, and its own section.

    Raises:
        ConfigError: there is no such engine.
    """
    from llm_mcts.engines import ENGINES
    from llm_mcts.engines.base import EngineConfig

    if name not in ENGINES:
        raise ConfigError(f"no engine '{name}'{suggest(name, ENGINES)}")
    others = tuple(f"{prefix}{other}." for other in ENGINES if other != name)
    return [setting for setting in settings_of(EngineConfig, prefix) if not setting.path.startswith(others)]
