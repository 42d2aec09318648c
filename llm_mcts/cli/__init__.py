"""The command line: each command parses its words and calls the function that does the work."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from llm_mcts import __version__
from llm_mcts.cli import improve, inspect, use
from llm_mcts.errors import ConfigError, LLMMCTSError, suggest
from llm_mcts.packages import refuse_shadows
from llm_mcts.runs.interrupts import USER_ERROR, end, signals_raise, tell

GROUPS: dict[str, dict[str, Callable[[list[str]], None]]] = {
    "use": {"solve": use.solve, "evaluate": use.evaluate, "serve": use.serve},
    "improve": {
        "self-improve": improve.self_improve,
        "train": improve.train,
        "label": improve.label,
        "rationales": improve.rationales,
        "imagine": improve.imagine,
    },
    "inspect": {
        "runs": inspect.runs,
        "status": inspect.status,
        "report": inspect.report,
        "compare": inspect.compare,
        "diagnose": inspect.diagnose,
        "presets": inspect.presets,
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0; 2 after a user error; 128 + N after signal N."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return 0
    if argv[0] == "--version":
        print(f"llm-mcts {__version__}")
        return 0
    command, rest = argv[0], argv[1:]
    _quiet_libraries("--verbose" in rest)
    try:
        if command not in COMMANDS:
            raise ConfigError(f"no command '{command}'{suggest(command, COMMANDS)}")
        refuse_shadows()
        with signals_raise():
            COMMANDS[command](rest)
    except (Exception, KeyboardInterrupt) as error:
        if (status := end(error, argv)) is not None:
            return status
        if not isinstance(error, LLMMCTSError):
            raise
        tell(str(error))
        return USER_ERROR
    return 0


def overview() -> str:
    """What `llm-mcts --help` prints."""
    lines = [
        "usage: llm-mcts COMMAND ...",
        "",
        "Search over a language model's reasoning steps, and learn from what the search finds.",
    ]
    for title, commands in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<14} {(command.__doc__ or '').splitlines()[0]}" for name, command in commands.items()]
    lines += [
        "",
        "Settings come from --config FILE.yaml (or preset:NAME) and from --KEY VALUE with dotted keys, such as",
        "--search.num_simulations 64. llm-mcts COMMAND --help shows the settings that matter most, --help-all shows all.",
        "--json prints JSON. Errors are one line, with exit status 2.",
        "",
        "examples:",
        '  llm-mcts solve "Mia has 3 boxes with 4 shells each. Then Mia buys 5 more. How many shells does Mia have now?"',
        "  llm-mcts evaluate --num_questions 50",
        "  llm-mcts self-improve --config preset:quickstart --out runs/first",
    ]
    return "\n".join(lines)


def _quiet_libraries(verbose: bool) -> None:
    """Keep the libraries' progress bars and advice off the screen unless asked for."""
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.INFO if verbose else logging.ERROR)
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
