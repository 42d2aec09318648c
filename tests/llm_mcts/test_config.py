"""Configuration: what is refused, what is suggested, and what overrides what."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from llm_mcts.cli.help import all_settings
from llm_mcts.config import load_config
from llm_mcts.errors import ConfigError
from llm_mcts.settings import SolverConfig


@dataclass(frozen=True)
class Inner:
    """Inner settings."""

    width: int = 4
    """How wide, at least 1."""
    rate: float = 0.5
    mode: Literal["fast", "slow"] = "fast"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"inner.width is {self.width}; expected at least 1")


@dataclass(frozen=True)
class Middle:
    """Middle settings."""

    inner: Inner = field(default_factory=Inner)
    label: str | None = None


@dataclass(frozen=True)
class Outer:
    """Outer settings."""

    middle: Middle = field(default_factory=Middle)
    search: str | dict[str, Any] = "mcts"
    markers: tuple[str, ...] = ("a",)
    count: int = 1

    def __post_init__(self) -> None:
        if self.count == 13:
            raise ConfigError("count is 13; expected a luckier number")


@dataclass(frozen=True)
class Demanding:
    """A setting without a default."""

    path: str


def refused(source: Any = None, overrides: Any = None, cls: type = Outer) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(cls, source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_gives_the_defaults() -> None:
    assert load_config(Outer) == Outer()
    assert load_config(Outer, {}, {}) == Outer()


def test_yaml_and_mapping_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("middle:\n  inner: {width: 7, rate: 1.0e-3, mode: slow}\n  label: ünï\nmarkers: [x, y]\n", encoding="utf-8")
    expected = Outer(Middle(Inner(7, 0.001, "slow"), "ünï"), markers=("x", "y"))
    assert load_config(Outer, file) == expected
    assert load_config(Outer, str(file)) == expected
    mapping = {"middle": {"inner": {"width": 7, "rate": 0.001, "mode": "slow"}, "label": "ünï"}, "markers": ["x", "y"]}
    assert load_config(Outer, mapping) == expected


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("# nothing\n")
    assert load_config(Outer, tmp_path / "c.yaml") == Outer()


@pytest.mark.parametrize(
    ("source", "key", "meant"),
    [
        ({"midle": {}}, "'midle'", "'middle'"),
        ({"middle": {"iner": {}}}, "'middle.iner'", "'inner'"),
        ({"middle": {"inner": {"widht": 3}}}, "'middle.inner.widht'", "'width'"),
    ],
)
def test_unknown_key_is_named_with_its_path_and_a_suggestion(source: dict[str, Any], key: str, meant: str) -> None:
    message = refused(source)
    assert key in message
    assert f"did you mean {meant}?" in message


def test_unknown_key_far_from_all_others_lists_them() -> None:
    assert "'middle.zzz'; expected one of inner, label" in refused({"middle": {"zzz": 1}})
    assert "'7'" in refused({7: 1})


def test_unknown_override_is_named() -> None:
    assert "'middle.inner.widht'; did you mean 'width'?" in refused(None, {"middle.inner.widht": 3})


def test_overrides_win_and_leave_their_neighbours() -> None:
    source = {"middle": {"inner": {"width": 7, "rate": 0.25}, "label": "x"}, "count": 2}
    config = load_config(Outer, source, {"middle.inner.width": 9, "count": 3})
    assert config == Outer(Middle(Inner(9, 0.25), "x"), count=3)
    assert source == {"middle": {"inner": {"width": 7, "rate": 0.25}, "label": "x"}, "count": 2}


def test_later_overrides_see_the_earlier_ones() -> None:
    config = load_config(Outer, None, {"middle": {"label": "x"}, "middle.inner.width": 2})
    assert config.middle == Middle(Inner(2), "x")


def test_a_name_becomes_a_mapping_when_a_setting_is_added() -> None:
    assert load_config(Outer, {"search": "uct"}, {"search.depth": 3}).search == {"name": "uct", "depth": 3}
    assert load_config(Outer, {"search": {"name": "uct", "c": 1}}, {"search.c": 2}).search == {"name": "uct", "c": 2}
    assert load_config(Outer, {"search": {"name": "uct", "c": 1}}, {"search": "greedy"}).search == "greedy"
    assert load_config(Outer, None, {"search.depth": 3}).search == {"depth": 3}


@pytest.mark.parametrize(
    ("source", "key", "found"),
    [
        ({"count": "many"}, "count", "many"),
        ({"count": 1.5}, "count", "1.5"),
        ({"count": [1]}, "count", "1"),
        ({"middle": {"inner": {"width": "wide"}}}, "middle.inner.width", "wide"),
        ({"middle": {"inner": {"mode": "medium"}}}, "middle.inner.mode", "medium"),
        ({"middle": {"label": 7}}, "middle.label", "7"),
        ({"markers": "abc"}, "markers", "abc"),
        ({"search": 5}, "search", "5"),
    ],
)
def test_wrong_type_names_key_and_value(source: dict[str, Any], key: str, found: str) -> None:
    message = refused(source)
    assert f'"{key}"' in message or f"'{key}'" in message
    assert found in message


def test_a_choice_that_does_not_exist_is_suggested() -> None:
    assert refused({"middle": {"inner": {"mode": "fasst"}}}).endswith("'middle.inner.mode' is 'fasst'; did you mean 'fast'?")


def test_the_dataclass_check_speaks_for_itself_at_any_depth() -> None:
    assert refused({"middle": {"inner": {"width": 0}}}) == "inner.width is 0; expected at least 1"
    assert refused(None, {"middle.inner.width": -2}) == "inner.width is -2; expected at least 1"
    assert refused({"count": 13}) == "count is 13; expected a luckier number"


def test_a_missing_setting_is_named() -> None:
    assert "path" in refused({}, cls=Demanding)


def test_strings_stay_strings() -> None:
    for text in ("5", "true", "a: b", "", "[x]", "1e3"):
        assert load_config(Outer, {"middle": {"label": text}}).middle.label == text


@pytest.mark.parametrize("content", [b"a: [1", b"a: b: c", b"\xff\xfe\xfa", b"- 1\n- 2\n", b"just text"])
def test_unreadable_files_are_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    assert "broken.yaml" in refused(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "none.yaml" in refused(tmp_path / "none.yaml")
    assert str(tmp_path) in refused(tmp_path)


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("count: !!python/object/apply:os.getpid []\n")
    assert "c.yaml" in refused(tmp_path / "c.yaml")


def test_search_settings_are_checked_inside_the_solver_configuration() -> None:
    message = refused({"search": {"name": "mcts", "num_simulatons": 3}}, cls=SolverConfig)
    assert "search mcts" in message
    assert "did you mean 'num_simulations'?" in message
    assert "num_simulations is 0" in refused({"search": "mcts"}, {"search.num_simulations": 0}, SolverConfig)
    assert "did you mean 'greedy'?" in refused({"search": "gredy"}, cls=SolverConfig)


def test_help_names_every_setting_with_its_meaning_and_default() -> None:
    text = all_settings(Outer)
    for key in ("--middle.inner.width", "--middle.inner.rate", "--middle.inner.mode", "--middle.label", "--search", "--count"):
        assert key in text
    assert "How wide, at least 1." in text
    assert "default: 4" in text


@pytest.mark.parametrize("value", [5, None, [1]])
def test_a_value_in_place_of_nested_settings(value: object) -> None:
    assert "middle" in refused({"middle": value})


def test_a_text_in_place_of_nested_settings_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("label: read from elsewhere\n")
    refused({"middle": str(tmp_path / "other.yaml")})


def test_an_empty_value_is_no_number() -> None:
    refused({"count": None})
