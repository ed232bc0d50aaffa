"""How much the margin moves: by the surrogate's gradient, and truly, at random points of the ball."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spikeguard.adapters.tap import tap
from spikeguard.diagnosis.readings import Reading, read
from spikeguard.errors import UserError
from spikeguard.losses import margin
from spikeguard.models import logits_of
from spikeguard.records.diagnosis import InputGradient, LayerGradient, Sampled
from spikeguard.threat import Threat


@dataclass(frozen=True)
class Gradients:
    """Of the margin: means over images for pixels and layers, and the l1 norm by pixels of each image."""

    pixels: InputGradient
    layers: dict[str, LayerGradient]
    l1: Tensor


def gradients(net: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> Gradients:
    """Gradients of the margin with the network's own surrogate."""
    pixels, spectral, layers = [], [], dict[str, list[Tensor]]()
    for start in range(0, len(x), batch_size):
        part, labels = x[start : start + batch_size].clone().requires_grad_(), y[start : start + batch_size]
        currents, logits = _with_currents(net, part)
        value = margin(logits, labels).sum()
        wanted = [part, *currents.values()]
        found = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
        pixels.append(_or_zeros(found[0], part).flatten(1))
        for (name, current), g in zip(currents.items(), found[1:], strict=True):
            by_image = _or_zeros(g, current).transpose(0, 1).flatten(1)
            sizes = (by_image == 0).double().mean(1), by_image.norm(1, 1), by_image.norm(2, 1)
            layers.setdefault(name, []).append(torch.stack([s.double() for s in sizes], 1))
        spectral.append(_spectral(logits, part))
    g = torch.cat(pixels).double()
    l1 = g.norm(1, 1)
    means = (float(v.mean()) for v in ((g == 0).double(), l1, g.norm(2, 1), torch.cat(spectral)))
    rows = {name: torch.cat(parts).mean(0).tolist() for name, parts in layers.items()}
    return Gradients(InputGradient(*means), {name: LayerGradient(*row) for name, row in rows.items()}, l1)


def _with_currents(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Logits, and the currents of all layers with a graph; none where a layer has no currents."""
    try:
        tapped = tap(net, currents=True, grad=True)
    except UserError:  # stepped from outside
        return {}, logits_of(net, x)
    with tapped:
        logits = logits_of(net, x)
    return {name: c for name, c in tapped.currents.items() if c.requires_grad}, logits


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.detach()


def _spectral(logits: Tensor, x: Tensor) -> Tensor:
    """The largest singular value of each image's Jacobian ``[K, pixels]``, exact: K is small."""
    rows = []
    for k in range(logits.shape[1]):
        (g,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True, allow_unused=True)
        rows.append(_or_zeros(g, x).flatten(1))
    jacobian = torch.stack(rows, 1).double()
    largest: Tensor = torch.linalg.eigvalsh(jacobian @ jacobian.transpose(1, 2))[:, -1]
    return largest.clamp(min=0).sqrt()


def sampled(
    net: nn.Module,
    clean: Reading,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    *,
    draws: int,
    batch_size: int,
    seed: int,
) -> tuple[Sampled, Tensor]:
    """Random points on the border of the ball: mean size of the margin's change, patterns of spikes, and that
    change for each image ``[N]``. ``clean``: the reading of ``x``."""
    generator = torch.Generator().manual_seed(seed)
    before, change = margin(clean.logits, y), torch.zeros(len(x), dtype=torch.float64)
    mixes = {
        name: torch.randint(-(2**62), 2**62, (u.shape[0], u.shape[2]), generator=generator)
        for name, u in clean.u.items()
    }
    seen = [_patterns(clean.spikes, mixes)]
    for _ in range(draws):
        sign = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        point = threat.project(x + threat.to_border(sign, x), x)
        found = read(net, point, batch_size)
        change += (margin(found.logits, y) - before).abs().double().cpu()
        seen.append(_patterns(found.spikes, mixes))
    different = [len(set(column)) for column in torch.stack(seen, 1).tolist()]
    change /= draws
    return Sampled(draws, float(change.mean()), sum(different) / len(different)), change


def _patterns(spikes: dict[str, Tensor], mixes: dict[str, Tensor]) -> Tensor:
    """A number for each image that depends on all of its spikes ``[N]``: equal patterns, equal numbers."""
    total = torch.zeros(next(iter(spikes.values())).shape[1], dtype=torch.int64)
    for name, fired in spikes.items():
        total += (fired.cpu().to(torch.int64) * mixes[name][:, None]).sum((0, 2))
    return total
