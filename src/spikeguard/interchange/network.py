"""A network of spikeguard's layers along a graph, as ``from_nir`` returns it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.arguments import error_line
from spikeguard.errors import UserError
from spikeguard.interchange.wiring import Wiring
from spikeguard.neurons import Spiking

_NONE = torch.empty(0, dtype=torch.float32)


class SumPool(nn.Module):
    """The sum over windows of pixels, ``[N, C, H, W] -> [N, C, H', W']``."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.kernel, self.stride, divisor_override=1)

    def extra_repr(self) -> str:
        return f"{self.kernel}, stride={self.stride}"


class ImportedNetwork(nn.Module):
    """A spiking network along a graph; its scores ``[N, K]`` are the mean of its outputs over time.

    ``layers`` are spiking layers, on ``[T, N, ...]``, and layers without state, on ``[N, ...]``; several
    inputs of a layer are summed. The input is ``[N, *in_shape]``, constant over ``timesteps`` steps, or a
    sequence ``[T, N, *in_shape]``.

    >>> net = sg.interchange.from_nir(sg.interchange.to_nir(net), reset="hard", timesteps=3)
    >>> net(x).shape, net(x, per_step=True).shape, net(x.expand(5, *x.shape)).shape
    (torch.Size([6, 10]), torch.Size([3, 6, 10]), torch.Size([6, 10]))
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], wiring: Wiring, in_shape: Sequence[int], timesteps: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.source, self.inputs, self.outputs = wiring.source, dict(wiring.inputs), wiring.outputs
        self.in_shape, self.timesteps = tuple(in_shape), timesteps

    @property
    def order(self) -> tuple[str, ...]:
        """The names of the layers in the order in which they run."""
        return tuple(self.inputs)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Scores ``[N, K]``, or the outputs ``[T, N, K]``. Raises UserError on another shape of ``x``."""
        dims = len(self.in_shape)
        shape = tuple(x.shape[x.dim() - dims :])
        if shape != self.in_shape or x.dim() not in (dims + 1, dims + 2) or not x.is_floating_point():
            raise UserError(
                f"inputs are {x.dtype} of shape {tuple(x.shape)}, must be floats of shape "
                f"[N, {', '.join(map(str, self.in_shape))}], or [T, N, ...]"
            )
        sequence = x[None] if x.dim() == dims + 1 else x
        steps = self.timesteps if x.dim() == dims + 1 else len(x)
        values = {self.source: sequence}
        for name, sources in self.inputs.items():
            values[name] = self._run(self.layers[name], _total([values[s] for s in sources]), steps)
        outputs = _total([values[s] for s in self.outputs])
        outputs = outputs.expand(steps, *outputs.shape[1:])
        scores: Tensor = outputs if per_step else outputs.mean(0)
        return scores

    def checked(self, where: str) -> Self:
        """Itself, in eval mode; UserError unless its layers fit each other and the input."""
        self.eval()
        try:
            with torch.no_grad():
                self(torch.zeros(1, 1, *self.in_shape, dtype=next(self.parameters(), _NONE).dtype))
        except RuntimeError as error:
            raise UserError(
                f"{where}: layers do not fit inputs {self.in_shape} or each other ({error_line(error)})"
            ) from error
        return self

    def _run(self, layer: nn.Module, x: Tensor, steps: int) -> Tensor:
        if isinstance(layer, Spiking):
            spikes: Tensor = layer(x, steps)
            return spikes
        folded: Tensor = layer(x.flatten(0, 1))
        unfolded: Tensor = folded.unflatten(0, x.shape[:2])
        return unfolded


def _total(values: list[Tensor]) -> Tensor:
    total = values[0]
    for value in values[1:]:
        total = torch.add(total, value)
    return total
