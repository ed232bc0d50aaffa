"""3x3 convolution whose weight gradient is one matrix product on small maps, if that is faster than torch's.

``dW = g^T cols``: g ``[pixels, outputs]``, cols ``[pixels, 9 inputs]`` the neighborhoods, copied out a few
images at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.kernels.context import Context
from spikeguard.kernels.needs_grad import needs_grad

# pixels; with AVX2 alone the product is 1.2 to 1.5 times faster up to here, and slower above; with AVX-512
# always slower (LAB.md)
SMALL_MAP = 64
_COLUMNS = 2**21  # numbers copied out at a time: they stay in the cache


def weight_gradient(g: Tensor, x: Tensor) -> Tensor:
    """Weight gradient ``[O, C, 3, 3]`` of a 3x3 convolution with padding 1; sums are float32.

    ``g`` is ``[N, O, H, W]``, ``x`` ``[N, C, H, W]``.
    """
    n, c, height, width = x.shape
    outputs = g.shape[1]
    padded, rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)), g.permute(0, 2, 3, 1)
    chunk = max(1, min(n, _COLUMNS // (height * width * 9 * c)))
    held = x.new_empty(chunk, height, width, 3, 3, c)
    total = torch.zeros(outputs, 9 * c, dtype=torch.float32)
    for start in range(0, n, chunk):
        part = padded[start : start + chunk]
        count, s = len(part), part.stride()
        columns = held[:count]
        columns.copy_(part.as_strided((count, height, width, 3, 3, c), (s[0], s[1], s[2], s[1], s[2], s[3])))
        left, right = rows[start : start + count].reshape(-1, outputs).t(), columns.view(-1, 9 * c)
        if x.dtype == torch.float32:
            total.addmm_(left, right)
        else:
            total += left @ right
    return total.view(outputs, 3, 3, c).permute(0, 3, 1, 2).to(x.dtype)


def pays() -> bool:
    """Is the product faster than torch's weight gradient here? A table of measurements, not a timing.

    A timing would change bits from run to run.
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class _Kept(Context, Protocol):
    saved_tensors: tuple[Tensor, Tensor]


class _Small(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Kept, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.conv2d(x, weight, None, 1, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: _Kept, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        g_x = g_weight = None
        if needs_grad(ctx, 0):
            one = [1, 1]
            g_x = torch.ops.aten.convolution_backward(
                g, x, weight, None, one, one, one, False, [0, 0], 1, [True, False, False]
            )[0]
        if needs_grad(ctx, 1):
            g_weight = weight_gradient(g, x)
        return g_x, g_weight


_small: Callable[[Tensor, Tensor], Tensor] = _Small.apply


class Conv(nn.Conv2d):
    """``nn.Conv2d``; on a CPU, 3x3 on small maps, with the weight gradient above.

    ``exact``: computed in float32 under autocast, too. For images: a step of 1/255 is lost in bfloat16, while
    spikes are exact in it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        exact: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding, bias=bias)
        self.exact = exact

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Conv2d``."""
        kind = x.device.type
        if self.exact and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return self.convolve(x).to(torch.get_autocast_dtype(kind))
        return self.convolve(x)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution itself, by the faster way; in a graph of torch.compile, by torch's."""
        if torch.compiler.is_compiling():
            return super().forward(x)
        fits = (
            self.kernel_size == (3, 3)
            and self.stride == self.padding == self.dilation == (1, 1)
            and self.groups == 1
            and self.bias is None
        )
        half = x.dtype in (torch.float32, torch.bfloat16)
        if not (
            pays()
            and fits
            and half
            and x.device.type == "cpu"
            and x.shape[-2] * x.shape[-1] <= SMALL_MAP
            and self.weight.requires_grad
        ):
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
        return _small(x.to(dtype), self.weight.to(dtype))
