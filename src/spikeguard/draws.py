"""Random numbers as a function of what they are for, not of how many were drawn before.

A draw depends on a key (made of seed, purpose, step, ...), on the sample's number and on the position inside the sample.
Batch size, sharding, dropping samples and resuming therefore change nothing. A keyed integer hash gives 32 bits a position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from spikeguard.kernels import compiler


def _signed(c: int) -> int:
    return c - (1 << 32) if c >= 1 << 31 else c


_GOLDEN, _A, _B = _signed(0x9E3779B1), _signed(0x21F0AAAD), _signed(0xD35A2D97)


def key(*parts: int | str) -> int:
    """A 63-bit key from any parts; also fit as the seed of a ``torch.Generator``."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``key(*parts)``."""
    return torch.Generator().manual_seed(key(*parts))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * _A
    x = (x ^ ((x >> 15) & 0x1FFFF)) * _B
    return x ^ ((x >> 15) & 0x1FFFF)


def _bits(keys: Tensor, count: int) -> Tensor:
    position = torch.arange(count, dtype=torch.int32, device=keys.device)
    return _mix(_mix(position * _GOLDEN + keys[:, :1]) + keys[:, 1:])


def _pairs(keys: Tensor, count: int) -> Tensor:
    bits = _bits(keys, count)  # Box-Muller: 16 bits for the radius, 16 for the angle; reaches 4.85 standard deviations
    radius = torch.sqrt(-2.0 * torch.log(((bits & 0xFFFF).float() + 0.5) * 2.0**-16))
    angle = (((bits >> 16) & 0xFFFF).float() + 0.5) * (2.0**-15 * math.pi)
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)


@lru_cache(maxsize=2)
def _ready(compiled: bool) -> Callable[[Tensor, int], Tensor]:
    return compiler.compile(_pairs) if compiled else _pairs


def sample_keys(seed: int, samples: Tensor) -> Tensor:
    """Two 32-bit words for every sample number (int64, ``[N]``): ``[N, 2]`` int32."""
    word = (samples ^ (samples >> 32)).to(torch.int32)
    low, high = _signed(seed & 0xFFFFFFFF), _signed((seed >> 32) & 0xFFFFFFFF)
    first = _mix(_mix(word + low) + high)
    return torch.stack([first, _mix(_mix(first ^ _GOLDEN) + word)], 1)


def normal(seed: int, samples: Tensor, count: int) -> Tensor:
    """Standard normal draws ``[N, count]``, float32, on the device of ``samples``."""
    keys, half = sample_keys(seed, samples), (count + 1) // 2
    compiled = compiler.use(256 * count, samples.device)  # by what one sample needs, never by how many come together
    pairs: Tensor = _ready(compiled)(keys, half)
    return pairs.flatten(1)[:, :count]


def uniform(seed: int, samples: Tensor, count: int) -> Tensor:
    """Uniform draws in (0, 1), ``[N, count]``, float32, on the device of ``samples``."""
    bits = _bits(sample_keys(seed, samples), count)
    return (((bits >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
