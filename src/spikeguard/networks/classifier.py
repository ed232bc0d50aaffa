"""From images to logits: normalize, run T steps, average."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, without importing the compiler

from spikeguard.errors import UserError
from spikeguard.networks.blocks import Blocks
from spikeguard.neurons import Spiking

if TYPE_CHECKING:
    from spikeguard.attacks.adaptive import AdaptiveAttack


class Folded(nn.Sequential):
    """Layers without state, ``[T, N, ...] -> [T, N, ...]``: time is folded into the batch.

    >>> layers = sg.interchange.Folded(torch.nn.Conv2d(1, 4, 3), torch.nn.AvgPool2d(2))
    >>> layers(torch.rand(3, 2, 1, 8, 8)).shape
    torch.Size([3, 2, 4, 3, 3])
    """

    def forward(self, x: Tensor) -> Tensor:
        folded = x.flatten(0, 1)
        for layer in self:
            folded = layer(folded)
        unfolded: Tensor = folded.unflatten(0, x.shape[:2])
        return unfolded


class Classifier(nn.Module):
    """A spiking network on images ``[N, C, H, W]`` in [0, 1]; logits ``[N, classes]`` are the mean over time.

    ``body`` maps images ``[1, N, C, H, W]``, constant over time, and the number of steps to features
    ``[T, N, F]``; layers before the first neurons run once. (Images are ``[T, N, C, H, W]`` if a module of
    ``before`` changes them from step to step.) ``head`` is linear and maps features to logits.
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
        if torch.compiler.is_dynamo_compiling() and not all(
            m.is_plain() for m in self.modules() if isinstance(m, Spiking)
        ):
            return self._as_written(x, per_step)
        return self._logits(x, per_step)

    @_disable_dynamo
    def _as_written(self, x: Tensor, per_step: bool) -> Tensor:
        """Not compiled: a tap or noise is open, around which a graph would be in pieces."""
        return self._logits(x, per_step)

    def _logits(self, x: Tensor, per_step: bool) -> Tensor:
        if x.dim() != 4 or tuple(x.shape[1:]) != self.in_shape or not x.is_floating_point():
            raise UserError(
                f"images are {x.dtype} of shape {tuple(x.shape)}, must be floats of shape [N, "
                f"{', '.join(map(str, self.in_shape))}]"
            )
        x = x[None].to(self.mean.dtype)
        for change in self.before:
            x = change(x, self.timesteps)
        x = (x - self.mean) / self.std
        if self.channels_last:
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
        with self._precision(x.device.type):
            features = self.body(x, self.timesteps)
            logits: Tensor = self.head(features if per_step else features.mean(0))
        return logits if logits.dtype == torch.float64 else logits.float()

    def _precision(self, device: str) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()  # the caller's own autocast, if one is open
        half = self.autocast != torch.float32
        return torch.autocast(device, dtype=self.autocast if half else torch.bfloat16, enabled=half)

    def prefer(
        self, channels_last: bool = True, autocast: torch.dtype | None = None, checkpoint: bool = False
    ) -> Classifier:
        """Set memory layout and precision of the layers between neurons; logits stay float32.

        ``autocast`` None follows the caller: float32, or what an open ``torch.autocast`` says. A dtype is
        used whatever is open; ``torch.float32`` turns autocast off. ``checkpoint``: training keeps only what
        lies between blocks.
        """
        for module in self.modules():
            if isinstance(module, Blocks):
                module.checkpoint = checkpoint
        self.channels_last, self.autocast = channels_last, autocast
        self.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        return self
