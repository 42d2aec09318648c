"""The three import packages of one distribution, and what may stand in their way."""

from importlib.util import find_spec
from pathlib import Path

from llm_mcts.errors import ConfigError

SIBLINGS = ("critics", "trainers")


def refuse_shadows() -> None:
    """Refuse a module of the user's that hides one of our packages, such as a `critics.py` next to his script.

    Raises:
        ConfigError: the file that is found first is named.
    """
    for name in SIBLINGS:
        try:
            spec = find_spec(name)
        except ValueError:  # a module in sys.modules that came from nowhere
            spec = None
        ours = Path(__file__).parents[1] / name
        places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
        if ours not in places:
            found = "nothing" if spec is None else spec.origin or ", ".join(map(str, places))
            raise ConfigError(f"{found} hides llm-mcts's own package '{name}' ({ours}); rename it, or run from another folder")
