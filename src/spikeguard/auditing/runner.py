"""Running attacks over a set of images: in chunks, survivors only, every success re-checked, everything written down."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spikeguard import draws
from spikeguard.attacks.ascent import at_rest, is_random
from spikeguard.auditing.suite import Member
from spikeguard.auditing.witness import Witnesses, keep, misclassified
from spikeguard.gradients import Model
from spikeguard.neurons import seed_noise, spiking
from spikeguard.records import SCHEMA, machine, wilson, write_json
from spikeguard.threat import Threat, check_images

FRESH_DRAWS = 100
ROBUST, CLEAN_WRONG = -1, -2


@dataclass
class Outcome:
    """What a list of members did to ``[N]`` images under one threat.

    ``first``: the member that broke each sample first, ROBUST or CLEAN_WRONG. ``right``: per sample the share of fresh draws of the
    model's noise that are right at the worst input found (0 or 1 for a model without noise).
    """

    members: Sequence[Member]
    x: Tensor
    first: Tensor
    right: Tensor
    clean_right: Tensor
    random: bool
    alone: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    witnesses: Witnesses | None = None

    @property
    def clean_accuracy(self) -> float:
        return float(self.clean_right.mean())

    @property
    def robust_accuracy(self) -> float:
        return float(self.right.mean())


def run(
    model: Model,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    members: Sequence[Member],
    seed: int = 0,
    index: Tensor | None = None,
    batch_size: int = 250,
    progress: Callable[[str, int, int], None] | None = None,
) -> Outcome:
    """Attack ``x`` ``[N, C, H, W]`` by all members; a success counts if its witness holds. ``progress(member, done, all)``."""
    check_images(x, y)
    index = torch.arange(len(x)) if index is None else index
    with at_rest(model):
        random = is_random(model, x, y)
        clean = fresh_draws(model, x, y, draws.key(seed, "choose")) if random else (~misclassified(model, x, y)).float()
    first = torch.where(clean > 0, ROBUST, CLEAN_WRONG)
    found, right, out = x.clone(), clean.clone(), Outcome(members, x, first, clean, clean, random)
    for number, member in enumerate(members):
        begun, cost = time.perf_counter(), [0, 0]
        rows = torch.nonzero((first != CLEAN_WRONG) if member.on_all or random else (first == ROBUST)).flatten()
        success, at = torch.zeros(len(x), dtype=torch.bool, device=x.device), x.clone()
        for chunk in rows.split(batch_size) if len(rows) else ():
            got = member.run(model, x[chunk], y[chunk], threat.take(chunk), draws.key(seed, member.name), index[chunk.cpu()])
            success[chunk], at[chunk] = got.broken, got.x
            cost[0] += got.forwards
            cost[1] += got.backwards
            if progress:
                progress(member.name, int(chunk[-1]) + 1, len(x))
        if random:
            with at_rest(model):
                share = torch.minimum(clean, fresh_draws(model, at, y, draws.key(seed, "choose")))
            alone, lower = share, share < right
            right[lower], found[lower] = share[lower], at[lower]
            first[lower & (right < 0.5)] = number
        else:
            _, success = keep(model, x, y, at, success, threat, batch_size)
            alone = clean * ~success
            new = success & (first == ROBUST)
            first[new], found[new], right[new] = number, at[new], 0.0
        if member.on_all:
            out.alone[member.name] = float(alone.mean())
        out.after[member.name] = float(right.mean())
        out.cost[member.name] = {"seconds": round(time.perf_counter() - begun, 2), "forwards": cost[0], "backwards": cost[1]}
    out.x, out.first, out.right = found, first, right
    if random:  # chosen on one set of draws, scored on another
        with at_rest(model):
            out.clean_right = fresh_draws(model, x, y, draws.key(seed, "score"))
            out.right = fresh_draws(model, found, y, draws.key(seed, "score"))
    else:
        out.witnesses, confirmed = keep(model, x, y, found, first >= 0, threat, batch_size)
        lost = (first >= 0) & ~confirmed
        first[lost], right[lost] = ROBUST, 1.0
    return out


def fresh_draws(model: Model, x: Tensor, y: Tensor, seed: int, count: int = FRESH_DRAWS) -> Tensor:
    """Per sample the share of fresh draws of the model's noise at which it is right: an adversary knows its law, not the draw."""
    right = torch.zeros(len(x), device=x.device)
    sources = [(layer, layer.source) for layer in spiking(model).values()] if isinstance(model, nn.Module) else []
    try:
        with torch.no_grad():
            for draw in range(count):
                if isinstance(model, nn.Module):
                    seed_noise(model, draws.key(seed, "fresh draw", draw))
                right += torch.cat([model(a).argmax(1) for a in x.split(250)]) == y
    finally:
        for layer, source in sources:
            layer.source = source
    return right / count


def record(outcome: Outcome, threat: Threat, seed: int, index: Tensor, about: dict[str, Any]) -> dict[str, Any]:
    """The outcome as a record; ``about`` says what was attacked. Intervals are 95 % over the sampling of images."""
    n = len(outcome.first)

    def told(share: float) -> dict[str, Any]:
        return {"accuracy": share, "interval": list(wilson(round(share * n), n))}

    return {
        "schema": SCHEMA,
        "kind": "attack",
        **about,
        "threat": {threat.norm: float(threat.eps)},
        "seed": seed,
        "images": n,
        "random_model": outcome.random,
        "scored_by": f"mean share of {FRESH_DRAWS} fresh noise draws" if outcome.random else "witnesses re-checked on the untouched model",
        "clean": told(outcome.clean_accuracy),
        "worst_case": told(outcome.robust_accuracy),
        "alone": {k: told(v) for k, v in outcome.alone.items()},
        "after": dict(outcome.after),
        "members": [m.name for m in outcome.members],
        "first": outcome.first.tolist(),
        "index": index.tolist(),
        "cost": outcome.cost,
        "machine": machine(),
    }


def save(outcome: Outcome, entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the record to ``path`` and the witnesses beside it; returns the record as written."""
    if outcome.witnesses is not None:
        beside = path.with_suffix(".witnesses.npz")
        entry = {**entry, "witnesses": {"file": beside.name, "sha256": outcome.witnesses.save(beside)}}
    write_json(path, entry)
    return entry
