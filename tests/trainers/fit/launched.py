"""What `accelerate launch` starts in `test_distributed.py`: several trainings one after the other, for one start-up.

    accelerate launch … tests/trainers/fit/launched.py JOBS.json        JOBS.json: [[the arguments of llm-mcts, …], …]

accelerate shards over GPUs alone. torch's FSDP shards over CPU processes as well, and so does accelerate where it is told
that they are GPUs: FSDP_ON_CPU=1, in the environment, tells it. What is then tested is all but the GPUs.
"""

import json
import os
import sys
from pathlib import Path

from llm_mcts.cli import main


def call_cpus_gpus() -> None:
    """Let accelerate take the processes for GPUs of device type cpu, joined by gloo."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    torch.accelerator.is_available = lambda: True
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    if os.environ.get("FSDP_ON_CPU") == "1":
        call_cpus_gpus()
    for arguments in json.loads(Path(sys.argv[1]).read_text()):
        if status := main(arguments):
            sys.exit(status)
