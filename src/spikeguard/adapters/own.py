"""spikeguard's own layers: they serve taps themselves, on their fast path, and keep no state."""

from __future__ import annotations

from torch import Tensor, nn

from spikeguard.adapters.base import Layer
from spikeguard.neurons.layer import Spiking
from spikeguard.neurons.request import TapRequest


class OwnLayer(Layer):
    """A ``Spiking`` layer."""

    framework = "spikeguard"
    module: Spiking

    @property
    def threshold(self) -> Tensor:
        return self.module.threshold

    @property
    def whole(self) -> bool:
        return True

    @property
    def sums(self) -> bool:
        return True

    def __init__(self, module: Spiking) -> None:
        super().__init__(module)
        self.requests = module.requests

    def refuses(self, request: TapRequest) -> str:
        return ""

    def open(self, request: TapRequest) -> None:
        self.requests = self.module.requests  # torch.export puts a copy in place of a list
        self.requests.append(request)

    def close(self, request: TapRequest) -> None:
        self.requests = self.module.requests
        self.requests[:] = [r for r in self.requests if r is not request]


def layer(module: nn.Module) -> Layer | None:
    """The module as a layer, or None."""
    return OwnLayer(module) if isinstance(module, Spiking) else None


def reset(module: nn.Module) -> None:
    """Nothing to do: the potential starts anew at each call."""
