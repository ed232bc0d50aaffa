"""Images in, logits out: normalize, encode, run T steps, read out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from spikeguard.errors import UserError
from spikeguard.networks.blocks import Blocks

if TYPE_CHECKING:
    from spikeguard.attacks.adaptive import AdaptiveAttack


class Folded(nn.Sequential):
    """Layers without state: time is folded into the batch, ``[T, N, ...] -> [T, N, ...]``."""

    def forward(self, x: Tensor) -> Tensor:
        folded = x.flatten(0, 1)
        for layer in self:
            folded = layer(folded)
        unfolded: Tensor = folded.unflatten(0, x.shape[:2])
        return unfolded


class Classifier(nn.Module):
    """A spiking network on images ``[N, C, H, W]`` in [0, 1]; logits ``[N, classes]`` are the mean over time.

    ``body`` maps ``[1, N, C, H, W]`` (the image, constant over time: what comes before the first neuron is
    computed once; ``[T, ...]`` if ``before`` makes it differ) and the number of steps to features ``[T, N,
    F]``; ``head`` maps features to logits and is linear.
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Linear,
        in_shape: Sequence[int],
        timesteps: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.body, self.head = body, head
        self.before = nn.ModuleList()  # changes of the input, of class ``Input``
        self.in_shape, self.timesteps = tuple(in_shape), timesteps
        self.adaptive: tuple[AdaptiveAttack, ...] = ()  # the attacks made for its defenses
        self.channels_last = False
        self.autocast: torch.dtype | None = None
        channels = self.in_shape[0]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, channels):
                raise UserError(
                    f"build: {name} has {len(values)} values, must have 1 or {channels} (one a channel)"
                )
            self.register_buffer(name, torch.tensor(tuple(values), dtype=torch.float32).view(1, -1, 1, 1))
        if any(s <= 0 for s in std):
            raise UserError(f"build: std = {tuple(std)} must be above 0")
        self.mean: Tensor
        self.std: Tensor

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Logits ``[N, classes]``, or ``[T, N, classes]``.

        Raises UserError if ``x`` is not ``[N, *in_shape]`` of floats.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != self.in_shape or not x.is_floating_point():
            raise UserError(
                f"images are {x.dtype} of shape {tuple(x.shape)}, must be floats of shape [N, "
                f"{', '.join(map(str, self.in_shape))}]"
            )
        x = x[None]
        for change in self.before:
            x = change(x, self.timesteps)
        x = (x - self.mean) / self.std
        if self.channels_last:
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        with torch.autocast(
            x.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        ):
            features = self.body(x, self.timesteps)
            logits: Tensor = self.head(features if per_step else features.mean(0))
        return logits if logits.dtype == torch.float64 else logits.float()

    def prefer(
        self, channels_last: bool = True, autocast: torch.dtype | None = None, checkpoint: bool = False
    ) -> Classifier:
        """Set memory layout and half precision of the layers between neurons (logits stay float32).

        ``checkpoint``: training keeps less.
        """
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpoint = checkpoint
        self.channels_last, self.autocast = channels_last, autocast
        self.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        return self
