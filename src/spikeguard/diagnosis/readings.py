"""What the neurons of a network do with images: potentials and spikes of all layers, image by image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import Changes, Tap
from spikeguard.errors import UserError
from spikeguard.models import logits_of
from spikeguard.neurons.settings import Noise
from spikeguard.records.schema import Accuracy

Layers = dict[str, Tensor]
"""A value for each layer, step, image and neuron, by name of the layer: ``[T, N, neurons]``."""


@dataclass(frozen=True)
class Reading:
    """Logits ``[N, K]``, and by layer potentials and spikes (bool) ``[T, N, neurons]``."""

    logits: Tensor
    u: Layers
    spikes: Layers

    def right(self, y: Tensor) -> Tensor:
        """Which images are classified as ``y`` ``[N]``."""
        return self.logits.argmax(1) == y

    def accuracy(self, y: Tensor) -> Accuracy:
        """The share of them."""
        return Accuracy.of(float(self.right(y).double().mean()), len(y))


def read(
    net: nn.Module,
    x: Tensor,
    batch_size: int,
    noise: float = 0.0,
    seed: int = 0,
    held: Mapping[str, Tensor] | None = None,
) -> Reading:
    """One pass over the images ``[N, ...]``.

    ``noise``: standard deviation of noise in every comparator, in place of the network's own. ``held``: what
    is added to ``u`` in the comparator, ``[T, N, neurons]`` by layer; infinite, it holds a spike.
    """
    logits, potentials, spikes = [], dict[str, list[Tensor]](), dict[str, list[Tensor]]()
    for start in range(0, len(x), batch_size):
        rows = slice(start, start + batch_size)
        push = None if held is None else {name: v[:, rows] for name, v in held.items()}
        changes = Changes(noise=Noise(noise, at_eval=True) if noise else None, push=push)
        tapped = Tap(net, changes, seed + start, potentials=True, currents=False, grad=False, spikes=True)
        with torch.no_grad(), tapped:
            logits.append(logits_of(net, x[rows]))
        for found, into in ((tapped.potentials, potentials), (tapped.spikes, spikes)):
            for name, value in found.items():
                into.setdefault(name, []).append(value.flatten(2))
    if odd := [name for name in potentials if "#" in name]:
        raise UserError(
            f"diagnose: the layer {odd[0].split('#')[0]!r} runs more than once a pass; a network whose "
            "layers run once can be diagnosed"
        )
    return Reading(
        torch.cat(logits),
        {name: torch.cat(parts, 1) for name, parts in potentials.items()},
        {name: torch.cat(parts, 1) > 0 for name, parts in spikes.items()},
    )
