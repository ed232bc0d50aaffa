"""Random numbers as a function of what they are for, not of how many were drawn before.

A draw depends on a key (made of seed, purpose, step, ...), on the sample's number and on the position inside
the sample, as it lies in memory. So batch size, sharding, dropping samples and resuming change nothing.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from spikeguard.kernels import cpp_build
from spikeguard.kernels.gaussian import GOLDEN, bits_of, mix, native, normal, signed

__all__ = ["generator", "key", "normal", "sample_keys", "step_keys", "uniform"]


def key(*parts: int | str) -> int:
    """A 63-bit key from any parts; also fit as the seed of a ``torch.Generator``."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by ``key(*parts)``."""
    return torch.Generator("cpu").manual_seed(key(*parts))


def sample_keys(seed: int, samples: Tensor) -> Tensor:
    """Two 32-bit words for every sample number (int64, ``[N]``): ``[N, 2]`` int32."""
    word = (samples ^ (samples >> 32)).to(torch.int32)
    low, high = signed(seed & 0xFFFFFFFF), signed((seed >> 32) & 0xFFFFFFFF)
    first = mix(mix(word + low) + high)
    return torch.stack([first, mix(mix(first ^ GOLDEN) + word)], 1)


def step_keys(seed: int, samples: Tensor, steps: int) -> Tensor:
    """Keys of ``steps`` draws for every sample number (``[N]``), a shared one and one for two steps.

    ``[N, 1 + (steps + 1) // 2]``.
    """
    first, word = sample_keys(seed, samples).split(1, 1)
    return torch.cat(
        [
            first,
            mix(word + GOLDEN * torch.arange((steps + 1) // 2, dtype=torch.int32, device=samples.device)),
        ],
        1,
    )


def uniform(seed: int, samples: Tensor, count: int) -> Tensor:
    """Uniform draws in (0, 1), ``[N, count]``, float32, on the device of ``samples``."""
    keys = sample_keys(seed, samples)
    if keys.device.type == "cpu" and cpp_build.use(len(keys) * count):
        return native("uniform", keys, (1, len(keys), count))[0]
    bits = bits_of(keys, count)[:, 0]
    return (((bits >> 9) & 0x7FFFFF).float() + 0.5) * 2.0**-23
