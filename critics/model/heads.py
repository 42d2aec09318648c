"""What turns a hidden state into a logit: the critics' heads.

mlp         w2 . dropout(relu(W1 h + b1)) + b2
ovm         w . dropout(gain h + bias), gain and bias numbers (OVM, arXiv 2311.09724, authors' code)
surprisal   the mlp of [h, f]: f tells how likely the language model's head found what was written (`surprisal.py`)
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from critics.model.surprisal import FEATURES
from llm_mcts.fields import AtLeast, Settings, Within

HeadKind = Literal["mlp", "ovm", "surprisal"]


@dataclass(frozen=True)
class HeadConfig(Settings, section="head"):
    """What turns a hidden state into a logit."""

    width: Annotated[int, AtLeast(1)] = 128
    """Hidden units of the mlp and surprisal heads."""
    dropout: Annotated[float, Within(0, 1, open_high=True)] = 0.0
    """Dropout in front of the output. OVM: 0.2."""
    kind: HeadKind = "mlp"
    """mlp: one hidden layer; ovm: OVM's own, a learnable gain and bias in front of a linear map without bias; surprisal: one
    hidden layer that also reads how likely the backbone, as a language model, found the tokens written so far."""

    def build(self, hidden: int) -> nn.Sequential:
        """A new head for hidden states of that size, random by torch's generator."""
        if self.kind == "ovm":
            return nn.Sequential(GainAndBias(), nn.Dropout(self.dropout), nn.Linear(hidden, 1, bias=False))
        read = hidden + FEATURES * (self.kind == "surprisal")
        return nn.Sequential(nn.Linear(read, self.width), nn.ReLU(), nn.Dropout(self.dropout), nn.Linear(self.width, 1))


class GainAndBias(nn.Module):
    """gain h + bias, two learnable numbers; they start as 1 and 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Of any shape."""
        return self.gain * hidden + self.bias
