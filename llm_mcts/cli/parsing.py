"""The words of a command line: a command's own arguments, and settings as --KEY VALUE, which override a --config file."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from llm_mcts.cli.help import all_settings, engine_settings, main_settings, search_settings
from llm_mcts.config import load_config
from llm_mcts.errors import ConfigError

C = TypeVar("C")
Names = tuple[str, ...]
HELP_OPTIONS = ("-h", "--help", "--help-all", "--help-search", "--help-engine")


class CommandParser(argparse.ArgumentParser):
    """A parser of one command; whatever --KEY is not an option of its own is a setting."""

    def __init__(self, command: str, about: str, example: str, main: Sequence[str] = (), settings: bool = True) -> None:
        """`main`: the settings that `--help` shows; the others are shown by --help-all."""
        self.own: set[str] = set(HELP_OPTIONS)
        self.main = main
        super().__init__(
            f"llm-mcts {command}",
            description=about,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        if settings:
            self.add_argument("--config", help="YAML file with settings, or preset:NAME (see llm-mcts presets)")
        self.add_argument("--json", action="store_true", help="print JSON for machines, and no progress")
        self.add_argument("--verbose", action="store_true", help="show the libraries' warnings")

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As argparse's, and remember the option."""
        action = super().add_argument(*names, **options)
        self.own |= set(action.option_strings)
        return action

    def add_out(self, what: str, required: bool = True, resume: bool = True) -> None:
        """--out, and --resume."""
        self.add_argument("--out", type=Path, required=required, help=what)
        if resume:
            self.add_argument("--resume", action="store_true", help="continue what was begun in --out")

    def error(self, message: str) -> Any:
        """Raise instead of exiting."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse(self, argv: Sequence[str], cls: type[C]) -> tuple[argparse.Namespace, C]:
        """The command's own arguments, and its settings from --config and --KEY VALUE pairs."""
        self._help(argv, cls)
        own, settings = self._split(argv)
        args, rest = self.parse_known_args(own)
        if rest:
            raise ConfigError(f"unexpected argument '{rest[0]}'; expected --KEY VALUE (put a question in quotes)")
        if getattr(args, "resume", False) and not args.out:
            raise ConfigError("--resume needs --out FOLDER, what it should continue")
        overrides: dict[str, Any] = {}
        for key, value in settings.items():
            try:
                overrides[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"value of --{key} is not readable: {value!r}; quote it") from error
        return args, load_config(cls, args.config, overrides)

    def parse_own(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments of a command that has no settings."""
        self._help(argv, None)
        return self.parse_args(argv)

    def _split(self, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command's own words and options, and the settings, wherever they stand among them."""
        own: list[str] = []
        settings: dict[str, str] = {}
        words = iter(argv)
        for word in words:
            key, equals, value = word.partition("=")
            if not word.startswith("--") or key in self.own:
                own.append(word)
                continue
            following = value if equals else next(words, None)
            if following is None:
                raise ConfigError(f"setting {key} has no value; expected {key} VALUE")
            settings[key[2:]] = following
        return own, settings

    def _help(self, argv: Sequence[str], cls: type[Any] | None) -> None:
        """Print the help that is asked for, and exit."""
        asked = next((word for word in argv if word in HELP_OPTIONS), None)
        if asked is None:
            return
        name = next(iter(argv[list(argv).index(asked) + 1 :]), "")
        prefix = "" if cls is None or hasattr(cls, "search") else "solver."
        if asked == "--help-search":
            print("\n".join(setting.text() for setting in search_settings(name, f"{prefix}search.")))
        elif asked == "--help-engine":
            print("\n".join(setting.text() for setting in engine_settings(name, f"{prefix}engine.")))
        else:
            print(self.format_help())
            if cls is not None:
                print("settings:" if asked == "--help-all" or not self.main else "the settings that matter most:")
                print(all_settings(cls) if asked == "--help-all" or not self.main else main_settings(cls, self.main))
            if cls is not None and self.main and asked != "--help-all":
                print("\nall settings: --help-all; those of a search or an engine: --help-search NAME, --help-engine NAME")
        raise SystemExit(0)
