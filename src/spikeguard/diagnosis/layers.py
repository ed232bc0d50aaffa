"""A layer's row of a diagnosis: where its potentials lie, step by step, and what flips its spikes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spikeguard.diagnosis.flips import attack_flips, density, noise_flips
from spikeguard.diagnosis.readings import Reading
from spikeguard.kernels.mode import widen
from spikeguard.records.diagnosis import EDGES, LayerGradient, LayerRow, NearRow, StepRow


def layer_rows(
    clean: Reading,
    attacked: Reading,
    noisy: Reading,
    deltas: Sequence[float],
    sigma: float,
    seed: int,
    gradients: dict[str, LayerGradient],
) -> dict[str, LayerRow]:
    """A row for each layer, from three passes: images, attacked images, images under noise of ``sigma``."""
    return {
        name: LayerRow(
            neurons=u.shape[2],
            rate=float(clean.spikes[name].double().mean()),
            spread=float(u.std()),
            near=tuple(_near(u, attacked.u[name], delta) for delta in deltas),
            steps=tuple(_step(*pair, min(deltas)) for pair in zip(u, clean.spikes[name], strict=True)),
            histogram=histogram(u),
            noise=noise_flips(noisy.u[name], noisy.spikes[name], sigma),
            attack=attack_flips(u, attacked.u[name], sigma, seed),
            sensitivity=float(density(u, sigma).mean()),
            noise_lowers=_share(u.abs() < sigma),
            gradient=gradients.get(name),
        )
        for name, u in clean.u.items()
    }


def histogram(u: Tensor) -> tuple[int, ...]:
    """Counts of ``u`` between ``EDGES``; what lies outside them is in no bin."""
    counts = torch.histc(widen(u), len(EDGES) - 1, EDGES[0], EDGES[-1])
    return tuple(int(c) for c in counts)


def _near(u: Tensor, attacked: Tensor, delta: float) -> NearRow:
    size = u.abs()
    spread, shift = float(u.std()), float((attacked - u).abs().mean())
    return NearRow(delta, _share(size < delta), _share(size < delta * spread), _share(size < delta * shift))


def _step(u: Tensor, spikes: Tensor, delta: float) -> StepRow:
    """One time step, ``[N, neurons]``."""
    near = _share(u.abs() < delta)
    return StepRow(float(u.mean()), float(u.std()), float(spikes.double().mean()), near)


def _share(where: Tensor) -> float:
    return float(where.double().mean())
