"""Linear layers with their weights in oneDNN's blocked layout: what a CPU multiplies fastest.

A decode step multiplies every weight with a few dozen rows; in PyTorch's row-major layout most of that time goes into
rearranging weights. Packed once, the same products take about half the time. For inference only: a packed model has no
`weight` to train or save.
"""

from typing import Any

import torch
from torch import Tensor, nn

# The layout is chosen for about as many rows as a decode step has; others work as well.
_ROWS = 32


class PackedLinear(nn.Module):
    """x W^T + b."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed: Any = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def pack_linears(model: Any) -> Any:
    """Replace the linear layers of a float32 model on a CPU, where oneDNN is available; other models stay as they are."""
    first = next(model.parameters())
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    usable = available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if first.dtype != torch.float32 or first.device.type != "cpu" or not usable:
        return model
    for parent in list(model.modules()):
        if isinstance(parent, nn.ModuleDict):  # the small matrices of LoRA layers, which need their weights' dtype
            continue
        if any(getattr(parent, "use_dora", {}).values()):  # DoRA reads the base weight at each forward
            continue
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
    return model
