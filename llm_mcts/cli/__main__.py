"""`python -m llm_mcts.cli`."""

import sys

from llm_mcts.cli import main

if __name__ == "__main__":
    sys.exit(main())
