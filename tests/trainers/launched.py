"""What `accelerate launch` starts in `test_distributed.py`: several trainings one after the other, for one start-up.

    accelerate launch … tests/trainers/launched.py JOBS.json        JOBS.json: [[the arguments of llm-mcts, …], …]
"""

import json
import sys
from pathlib import Path

from llm_mcts.cli import main

if __name__ == "__main__":
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if status := main(arguments):
            sys.exit(status)
