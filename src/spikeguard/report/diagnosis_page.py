"""A diagnosis' page: one self-contained HTML file from the records of one network or of two."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spikeguard.auditing.export import budget_text
from spikeguard.records.diagnosis import DiagnosisRecord, HeldRow, LayerRow
from spikeguard.records.files import write_bytes
from spikeguard.report.text import environment, percent
from spikeguard.runtime.picture import INK, figure, svg
from spikeguard.runtime.shown import printable

SHADES = ("#1f6f8b", "#b4532a")
"""Colors of the first and of the second network."""
LAYER_HEADER = (
    "layer",
    "neurons",
    "spikes a step, %",
    "near, %",
    "flipped by noise, %",
    "flipped by the attack, %",
    "nearness separates them (AUC)",
    "the same by chance",
)
CLEAR = 0.05  # a difference of accuracies that is more than an image or two of a hundred
FEW = 5  # broken images, or unbroken ones, of which a sentence says nothing


def layer_cells(name: str, row: LayerRow) -> tuple[str, ...]:
    """A row of the table of layers."""
    attack = row.attack
    return (
        name,
        f"{row.neurons:,}",
        percent(row.rate),
        f"{percent(row.near[0].absolute)} (|u| < {row.near[0].delta:g})",
        percent(row.noise.sampled),
        percent(attack.flipped),
        "" if attack.auc is None else f"{attack.auc:.2f}",
        "" if attack.auc_shuffled is None else f"{attack.auc_shuffled:.2f}",
    )


def findings(record: DiagnosisRecord) -> list[str]:
    """What the numbers say, in sentences."""
    return [_held_says(record), _nearness_says(record), _predictors_say(record), _noise_says(record)]


def _held_says(record: DiagnosisRecord) -> str:
    if round((record.clean.value - record.attacked.value) * record.images) < FEW:
        return "The attack breaks too few images to say whether holding spikes saves any."
    row = max(record.held, key=lambda r: r.nearest.value - r.at_random.value)
    gain = row.nearest.value - row.at_random.value
    numbers = (
        f"with {percent(row.share)} % of all spikes held at their clean values, the nearest ones bring "
        f"accuracy from {percent(record.attacked.value)} to {percent(row.nearest.value)} %, random ones to "
        f"{percent(row.at_random.value)} %, the farthest to {percent(row.farthest.value)} %"
    )
    if gain > CLEAR:
        return f"The neurons near the threshold carry the attack: {numbers}."
    return f"Holding near neurons saves no more than holding others: {numbers}."


def _nearness_says(record: DiagnosisRecord) -> str:
    pairs = [
        (row.attack.auc, row.attack.auc_shuffled)
        for row in record.layers.values()
        if row.attack.auc is not None and row.attack.auc_shuffled is not None
    ]
    if not pairs:
        return "The attack flips no spike."
    seen, chance = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return (
        "A spike that flips lies nearer to the threshold than one that does not with a chance of "
        f"{seen:.2f}; shifts dealt out at random give {chance:.2f}, so the attack chooses "
        + ("near neurons beyond what geometry explains." if seen > chance + 0.02 else "no nearer neurons.")
    )


def _predictors_say(record: DiagnosisRecord) -> str:
    ranked = [
        (p.auc, p.name) for p in record.predictors if p.auc is not None and min(p.broken, p.held) >= FEW
    ]
    if not ranked:
        return "Too few images break, or too few do not, to say what predicts which."
    best, name = max(ranked, key=lambda pair: abs(pair[0] - 0.5))
    near = next((auc for auc, n in ranked if n.startswith("share of potentials")), None)
    tail = "" if near is None else f"; the share of potentials near the threshold: {near:.2f}"
    return f"Which images break is best predicted by the {name} (AUC {best:.2f}, 0.5 is chance){tail}."


def _noise_says(record: DiagnosisRecord) -> str:
    lowered = sum(row.noise_lowers for row in record.layers.values()) / len(record.layers)
    where = "all layers" if all(r.noise.agrees for r in record.layers.values()) else "not all layers"
    return (
        f"Noise of {record.sigma:g} lowers the sensitivity of {percent(lowered)} % of the potentials, those "
        f"nearer than that, and raises that of the others; its flips agree with the closed form in {where}."
    )


def write_page(records: Sequence[DiagnosisRecord], path: Path) -> Path:
    """Render one network, or two side by side, to ``path``; returns it."""
    page = (
        environment()
        .get_template("diagnosis.html")
        .render(
            records=records,
            names=_names(records),
            budget=f"{records[0].threat.norm} {budget_text(records[0].threat)}",
            header=LAYER_HEADER,
            rows=[[layer_cells(n, row) for n, row in r.layers.items()] for r in records],
            findings=[findings(r) for r in records],
            potentials=potentials(records),
            held=held(records),
        )
    )
    write_bytes(path, printable(page).encode())
    return path


def _names(records: Sequence[DiagnosisRecord]) -> list[str]:
    return [record.origin.target or f"network {k}" for k, record in enumerate(records, 1)]


def potentials(records: Sequence[DiagnosisRecord]) -> str:
    """Potentials before reset by layer; the widest distance that counts as near is shaded."""
    layers = max((list(r.layers) for r in records), key=len)
    columns = min(4, len(layers))
    rows = -(-len(layers) // columns)
    picture, axes = figure(2.6 * columns, 2.2 * rows, rows, columns)
    cells = [axis for row in axes for axis in row]
    for axis in cells[len(layers) :]:
        axis.set_visible(False)
    for number, (layer, axis) in enumerate(zip(layers, cells, strict=False)):
        for record, name, color in zip(records, _names(records), SHADES, strict=False):
            if (row := record.layers.get(layer)) is None:
                continue
            edges, counts = np.array(record.edges), np.array(row.histogram, dtype=float)
            density = counts / max(counts.sum(), 1) / (edges[1] - edges[0])
            axis.plot((edges[1:] + edges[:-1]) / 2, density, color=color, lw=1.4, label=name)
            if record is records[0]:
                delta = row.near[0].delta
                axis.axvspan(-delta, delta, color="#f3e3b3", lw=0)
        axis.axvline(0, color=INK, lw=0.8)
        axis.set_title(layer, fontsize=8)
        axis.set_xlim(-2, 2)
        axis.set_ylim(0, None)
        if number // columns == rows - 1:
            axis.set_xlabel("u = potential - threshold")
    if len(records) > 1:
        cells[0].legend(frameon=False, fontsize=7)
    return svg(picture)


def held(records: Sequence[DiagnosisRecord]) -> str:
    """Accuracy on attacked images against the share of spikes that is held."""
    picture, axes = figure(4.2 * len(records), 3.0, 1, len(records))
    kinds = (("nearest", "-o"), ("at_random", "--s"), ("farthest", ":^"))
    for record, name, color, axis in zip(records, _names(records), SHADES, axes[0], strict=False):
        for kind, style in kinds:
            points = [(0.0, record.attacked.value), *((r.share, _value(r, kind)) for r in record.held)]
            share, accuracy = zip(*points, strict=True)
            label = kind.replace("_", " ")
            axis.plot(
                [100 * s for s in share],
                [100 * a for a in accuracy],
                style,
                color=color,
                lw=1.5,
                ms=4,
                label=label,
            )
        axis.axhline(100 * record.clean.value, color="#9aa1a9", lw=0.8)
        axis.set_title(name, fontsize=9)
        axis.set_ylim(0, 100)
        axis.set_xlabel("spikes held at their clean value, %")
    axes[0][0].set_ylabel("accuracy on attacked images, %")
    axes[0][0].legend(frameon=False, fontsize=8)
    return svg(picture)


def _value(row: HeldRow, kind: str) -> float:
    found: float = getattr(row, kind).value
    return found
