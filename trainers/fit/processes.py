"""Several processes that train one model (`accelerate launch`): who writes, who waits, and the model in one piece again."""

import os

import torch
from torch import nn

from llm_mcts.errors import ConfigError


def is_main_process() -> bool:
    """Whether this process writes and prints: the first of those launched, or the only one."""
    # The launcher sets RANK long before the processes join hands.
    return (torch.distributed.get_rank() if _launched() else int(os.environ.get("RANK", "0"))) == 0


def launched_processes() -> int:
    """How many processes a launcher started, whether or not they have joined hands yet."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_on_cpus() -> bool:
    """Whether several processes were launched and there is no accelerator: unaware of the others, each would train alone."""
    return launched_processes() > 1 and not torch.accelerator.is_available()


def refuse_a_part(joined: int) -> None:
    """Refuse a training that only some of the launched processes have joined.

    Raises:
        ConfigError: `joined` is not the number that was launched.
    """
    if joined != (launched := launched_processes()):
        raise ConfigError(
            f"{launched} processes were launched and {joined} train together; expected all of them: see configs/accelerate"
        )


def wait_for_all() -> None:
    """Return when all processes are here."""
    if _launched():
        torch.distributed.barrier()


def _launched() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def make_whole(model: nn.Module) -> None:
    """Give a model that FSDP has sharded its whole parameters back, on the first process, on the CPU.

    One parameter after the other is gathered, so no device ever holds the whole model. Tied parameters stay tied. The model
    is then for saving alone: its forwards would still want shards.
    """
    from torch.distributed.tensor import DTensor

    whole: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in whole:
                full = parameter.detach().full_tensor()  # all processes take part
                held = full.cpu() if is_main_process() else torch.empty(0)
                whole[id(parameter)] = nn.Parameter(held, requires_grad=parameter.requires_grad)
            module._parameters[name] = whole[id(parameter)]
