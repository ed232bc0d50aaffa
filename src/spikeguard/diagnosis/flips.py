"""Spikes that noise and attacks flip: closed forms, and what is seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spikeguard.diagnosis.rank import auc
from spikeguard.records.diagnosis import AttackFlips, NoiseFlips


def fire_chance(u: Tensor, sigma: float) -> Tensor:
    """The chance ``Phi(u/sigma)`` that a neuron fires under noise in the comparator.

    >>> from spikeguard.diagnosis.flips import fire_chance
    >>> fire_chance(torch.tensor([0.0, 9.0]), 0.1).tolist()
    [0.5, 1.0]
    """
    chance: Tensor = torch.special.ndtr(u.double() / sigma)
    return chance


def density(u: Tensor, sigma: float) -> Tensor:
    """``phi(u/sigma)/sigma``: how much that chance moves with ``u``."""
    return torch.exp(-((u.double() / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))


def noise_flips(u: Tensor, spikes: Tensor, sigma: float) -> NoiseFlips:
    """Flips under noise of ``sigma``: potentials and spikes as they are in a network with that noise.

    A neuron flips where it does not fire as ``u`` alone says; given ``u``, that has the chance
    ``Phi(-|u|/sigma)``, for every neuron on its own.
    """
    chance = fire_chance(-u.abs(), sigma)
    sampled = (spikes != (u >= 0)).double().mean()
    error = (chance * (1 - chance)).sum().sqrt() / chance.numel()
    return NoiseFlips(sigma, float(chance.mean()), float(sampled), float(error))


def attack_flips(u: Tensor, attacked: Tensor, sigma: float, seed: int) -> AttackFlips:
    """Flips between potentials ``u`` of images and those of their attacked versions, of one shape."""
    shift, size = attacked - u, u.abs()
    flipped = (u >= 0) != (attacked >= 0)
    dealt = shift.flatten()[torch.randperm(shift.numel(), generator=torch.Generator().manual_seed(seed))]
    by_chance = (u >= 0) != (u + dealt.view_as(u) >= 0)
    first, second = fire_chance(u, sigma), fire_chance(attacked, sigma)
    return AttackFlips(
        flipped=float(flipped.double().mean()),
        shift=float(shift.abs().mean()),
        distance=_mean(size[flipped]),
        distance_others=_mean(size[~flipped]),
        auc=auc(-size, flipped),
        auc_shuffled=auc(-size, by_chance),
        common=float((second - first).abs().mean()),
        independent=float((first * (1 - second) + second * (1 - first)).mean()),
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if values.numel() else 0.0
