"""Normal draws from integer keys, by plain arithmetic, so that every compiler gives the same bits.

A keyed integer hash gives 32 bits a position; Box-Muller turns them into two normal values.
``neuron.cpp`` draws the same, to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from spikeguard.kernels import compiler, cpp_build
from spikeguard.kernels.cpp_build import SMALL, Args


def signed(c: int) -> int:
    return c - (1 << 32) if c >= 1 << 31 else c


_LOG = (0.4054481, 0.66608875, -0.22135511, 0.10774801, -0.05657175)  # ln m, of m - 1.5
_SIN = (6.28128008, -41.09524268, 73.58551461)  # sin(2 pi f) / f, of f squared
GOLDEN, _A, _B = signed(0x9E3779B1), signed(0x21F0AAAD), signed(0xD35A2D97)


def mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * _A
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _B
    return x ^ ((x >> 15) & 0x1FFFF)


def bits_of(keys: Tensor, count: int) -> Tensor:
    """32 bits a position, ``[N, P, count]`` for keys ``[N, 1 + P]``.

    One mix shared by the sample, one more for each further word.
    """
    position = torch.arange(count, dtype=torch.int32, device=keys.device)
    return mix(mix(position * GOLDEN + keys[:, :1])[:, None] + keys[:, 1:, None])


def _log(x: Tensor) -> tuple[Tensor, Tensor]:
    """``k`` and ``ln m`` of ``x = 2^k m``, to 6e-5.

    Plain arithmetic, so that every compiler gives the same bits.
    """
    word = x.view(torch.int32)
    power = ((word >> 23) - 127).to(torch.float32)
    z = ((word & 0x7FFFFF) | 0x3F800000).view(torch.float32) - 1.5
    p = torch.full_like(z, _LOG[-1])
    for c in reversed(_LOG[:-1]):
        p = c + z * p
    return power, p


def _turn(f: Tensor) -> Tensor:
    """sin(2 pi f) for |f| <= 1/4, to 7e-5: no coarser than the 16 bits of f."""
    s = f * f
    p = torch.full_like(f, _SIN[-1])
    for c in reversed(_SIN[:-1]):
        p = c + s * p
    return f * p


def _pairs(keys: Tensor, count: int) -> Tensor:
    bits = bits_of(
        keys, count
    )  # Box-Muller: 16 bits for the radius, 16 for the angle; reaches 4.85 standard deviations
    power, log = _log((bits & 0xFFFF).float() + 0.5)
    square = ((16.0 - power) * 1.38629436 - 2.0 * log).clamp(min=0.0)
    radius = (
        square.double().sqrt().float()
    )  # rounded as it should be; torch's own float32 root is one unit off now and then
    f = (((bits >> 16) & 0xFFFF).float() - 32767.5) * 2.0**-16
    back = f - 0.25
    back = torch.where(back < -0.5, back + 1.0, back)
    return torch.stack([radius * _turn(0.25 - f.abs()), radius * _turn(0.25 - back.abs())])


@lru_cache(maxsize=2)
def _ready(compiled: bool) -> Callable[[Tensor, int], Tensor]:
    return compiler.compile(_pairs) if compiled else _pairs


def native(name: str, keys: Tensor, sizes: tuple[int, int, int], sigma: float = 1.0) -> Tensor:
    drawn = torch.empty(sizes, dtype=torch.float32, device="cpu")
    keys = keys.contiguous()
    args = Args(
        samples=sizes[1],
        length=sizes[2],
        threads=torch.get_num_threads(),
        sigma=sigma,
        keys=keys.data_ptr(),
        u=drawn.data_ptr(),
    )
    cpp_build.function(name, SMALL, "u", STEPS=sizes[0], CONSTANT=0, BFLOAT16=0, INNER=0)(ctypes.byref(args))
    return drawn


def normal(keys: Tensor, count: int, steps: int, sigma: float = 1.0) -> Tensor:
    """Normal draws ``[steps, N, count]`` of deviation ``sigma``, float32, for ``step_keys``.

    ``kernels/neuron.cpp`` draws the same, to the bit.
    """
    if keys.device.type == "cpu" and cpp_build.use(steps * len(keys) * count):
        return native("normal", keys, (steps, len(keys), count), sigma)
    drawn: Tensor = _ready(keys.device.type != "cpu" and compiler.use(256 * count, keys.device))(keys, count)
    drawn = drawn.permute(2, 0, 1, 3).reshape(-1, len(keys), count)[:steps]
    return drawn if sigma == 1.0 else drawn.mul_(sigma)
