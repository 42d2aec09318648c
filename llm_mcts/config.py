"""From YAML, dicts and overrides to frozen dataclasses; the dataclasses' own checks do the rest.

Types and help come from jsonargparse; what it cannot say is added here: which key was probably meant.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from llm_mcts.errors import ConfigError, suggest

C = TypeVar("C")


def load_config(
    cls: type[C], source: str | Path | Mapping[str, Any] | None = None, overrides: Mapping[str, Any] | None = None
) -> C:
    """Build the dataclass `cls` from a YAML file, a "preset:NAME" or a mapping; `overrides` maps dotted names to values.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type, or a value the dataclass refuses.
    """
    data = _read(source) if isinstance(source, str | Path) else dict(source or {})
    for dotted, value in (overrides or {}).items():
        _put(data, dotted, value)
    check_keys(cls, data)
    return _build(cls, data)


def preset_files() -> dict[str, Path]:
    """The presets by name, such as "search/gumbel": what the installed package ships, or a checkout's `configs`."""
    package = Path(__file__).parent
    folder = next((f for f in (package / "presets", package.parent / "configs") if f.is_dir()), None)
    if folder is None:
        return {}
    files = sorted(file for file in folder.rglob("*.yaml") if file.parent.name != "accelerate")  # accelerate's own format
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def preset_file(name: str) -> Path:
    """The file of a preset, by its whole name or the last part of it.

    Raises:
        ConfigError: there is none of that name, or several.
    """
    presets = preset_files()
    if name in presets:
        return presets[name]
    found = [known for known in presets if known.rpartition("/")[2] == name]
    if len(found) > 1:
        raise ConfigError(f"preset '{name}' could be {' or '.join(found)}; give the whole name")
    if not found:
        raise ConfigError(f"no preset '{name}'{suggest(name, [*presets, *(p.rpartition('/')[2] for p in presets)])}")
    return presets[found[0]]


def _read(path: str | Path) -> dict[str, Any]:
    if str(path).startswith("preset:"):
        path = preset_file(str(path).removeprefix("preset:"))
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}; expected a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds a {type(data).__name__}; expected keys and values")
    return data


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        inner = data.get(name)
        # A name given alone ("search: mcts") becomes a mapping as soon as one of its settings is set.
        data[name] = dict(inner) if isinstance(inner, Mapping) else {} if inner is None else {"name": inner}
        data = data[name]
    data[last] = value


def check_keys(cls: type[Any], data: Mapping[str, Any], where: str = "") -> None:
    """Refuse keys that no field of `cls` bears, at any depth, and say which was probably meant."""
    names, hints = [f.name for f in dataclasses.fields(cls)], get_type_hints(cls)
    for key, value in data.items():
        if key not in names:
            raise ConfigError(f"unknown configuration key '{where}{key}'{suggest(str(key), names)}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"configuration key '{where}{key}' is {value!r}; expected settings below it, as {where}{key}.…"
                )
            check_keys(hint, value, f"{where}{key}.")  # type: ignore[arg-type]
        elif get_origin(hint) is Literal and value not in get_args(hint):
            raise ConfigError(f"configuration key '{where}{key}' is {value!r}{suggest(str(value), get_args(hint))}")
        elif value is None and hint is not Any and type(None) not in get_args(hint):
            raise ConfigError(f"configuration key '{where}{key}' has no value; expected {getattr(hint, '__name__', hint)}")


def _build(cls: type[C], data: Mapping[str, Any]) -> C:
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls)
    try:
        return cls(**vars(parser.instantiate(parser.parse_object(dict(data)))))
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from error
