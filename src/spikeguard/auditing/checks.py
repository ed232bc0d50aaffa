"""Checks of a model before any attack: can it be measured at all? Findings become flags, none is an error."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeguard.auditing.state import digest
from spikeguard.gradients import BPDA, Estimator, Own
from spikeguard.gradients.surrogate import unread_spikes
from spikeguard.losses import margin
from spikeguard.models import Model, are_scores, eval_mode, logits_of, moved, parts_with_mode, rounding, scale
from spikeguard.random import draws
from spikeguard.wrapping.guess import suggestion
from spikeguard.wrapping.neurons import state_names
from spikeguard.wrapping.repeatable import CHANGED, changed_by_batch, more_than, other_class, same, seeded

ANOTHER = 0.25
"""Share of images with other logits from which on they are those of another function."""
NO_GRADIENT = 0.05
"""Share of images with a gradient up to which a model counts as one without."""
FINEST = 10_000
"""Steps from 0 to the largest score up to which scores on an even grid are counts."""
Contents = dict[str, str | bool]


@dataclass
class Checked:
    """Findings by the id of their flag, with the evidence, and traits of the model.

    Traits are 'noise', 'no gradient', 'no logits'.
    """

    findings: dict[str, dict[str, object]] = field(default_factory=dict)
    traits: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Snapshot:
    """What a model holds, and its logits on the first eight images, for the first and the second time after
    ``eval()``."""

    held: Contents
    first: Tensor
    again: Tensor

    @staticmethod
    def of(model: Model, x: Tensor, random: bool) -> Snapshot:
        """The model as it is now."""
        held = contents(model)
        with eval_mode(model):
            first, again = (same(model, x[:8], random) for _ in range(2))
        return Snapshot(held, first, again)

    def changed(self, later: Snapshot) -> list[str]:
        """The tensors and modes that differ, if the logits do too.

        A counter or a cache that no logit depends on may change.
        """
        pairs = ((self.first, later.first), (self.again, later.again), (later.first, later.again))
        if not any(bool((moved(a, b) > rounding(a)).any()) for a, b in pairs):
            return []
        names = {*self.held, *later.held}
        return sorted(k for k in names if self.held.get(k) != later.held.get(k))


def check_model(model: Model, x: Tensor, y: Tensor, random: bool) -> Checked:
    """Run all checks on up to 100 images."""
    x, y = x[:100], y[:100]
    found = Checked(traits={"noise"} if random else set())
    with eval_mode(model):
        before = Snapshot.of(model, x, random)
        _outputs(model, x, _gradients(model, x, y, found), found)
        _repetition(model, x, random, found)
        if "state-carried-over" not in found.findings:
            _batches(model, x, random, found)
            _decoy(model, x, random, found)
        unchanged(before, Snapshot.of(model, x, random), found)
    return found


def unchanged(before: Snapshot, after: Snapshot, found: Checked) -> None:
    """Compare the model with what it was before."""
    if changed := before.changed(after):
        found.findings["model-changed"] = {"changed": changed[:5]}


def contents(model: Model) -> Contents:
    """Digests of a module's tensors, the state of its neurons aside, and the modes of its parts."""
    if not isinstance(model, nn.Module):
        return {}
    state = state_names(model)
    held: Contents = {
        name: digest(t)
        for name, t in model.state_dict().items()
        if isinstance(t, Tensor) and name not in state
    }
    parts = parts_with_mode(model)
    return held | {f"mode of {name or 'the model'}": m.training for name, m in parts.items()}


def _outputs(model: Model, x: Tensor, with_gradient: float, found: Checked) -> None:
    """Find outputs that are no logits. ``with_gradient``: the share of images that have one."""
    logits = same(model, x, "noise" in found.traits)
    finite = torch.isfinite(logits)
    if not bool(are_scores(logits).all()):
        found.findings["no-logits"] = {"reason": "values that are not finite"}
        found.traits.add("no logits")
        return
    levels = torch.tensor(
        [len(row[kept].unique()) for row, kept in zip(logits, finite, strict=True)], device="cpu"
    )
    flat = logits.shape[1] > 2 and float((levels <= 2).float().mean()) > 0.9
    if flat and with_gradient <= NO_GRADIENT:
        found.findings["no-logits"] = {"reason": "two values an image: classes, not logits"}
    elif _probabilities(logits) and not (_counts(logits) and with_gradient > NO_GRADIENT):
        found.findings["no-logits"] = {"reason": "probabilities (they sum to 1)"}
    else:
        right = torch.softmax(logits.float(), 1).amax(1)
        if (share := float((right == 1).float().mean())) > 0.5:
            found.findings["saturated-logits"] = {"share_of_saturated_images": share}
    if flat or not found.findings.keys().isdisjoint({"no-logits", "saturated-logits"}):
        found.traits.add("no logits")


def _probabilities(logits: Tensor) -> bool:
    return float(logits.min()) >= 0 and bool(((logits.sum(1) - 1).abs() < 1e-4).all())


def _counts(logits: Tensor) -> bool:
    """Whether all scores are multiples of one step, as counts and rates of spikes are.

    Probabilities of a softmax are not, not even saturated ones.
    """
    values = logits.double().unique()
    gaps = values.diff()
    gaps = gaps[gaps > 1e-6 * scale(logits)]
    if not len(gaps):
        return bool((values == values.round()).all())
    steps = values / gaps.min()
    off = (steps - steps.round()).abs() > 1e-5 * steps.abs()
    return not bool(off.any()) and float(steps.abs().max()) <= FINEST


def _repetition(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Evaluate the same images twice in a row, and once more after other images."""
    first = same(model, x, random)
    again = same(model, x, random)
    same(model, 1 - x.flip(0), random)
    later = same(model, x, random)
    if differs := [
        name
        for name, other in (("evaluated twice", again), ("evaluated after other images", later))
        if more_than(CHANGED, moved(first, other) > rounding(first))
    ]:
        most = max(float(moved(first, other).max()) for other in (again, later)) * scale(first)
        evidence: dict[str, object] = {"differs_when": differs, "largest_difference": most}
        found.findings["state-carried-over"] = evidence | hint(model, x)


def hint(model: Model, x: Tensor) -> dict[str, object]:
    """What to write instead of the model, if trying finds it."""
    use = suggestion(model, x, carries_state=True)
    return {"use": f"({use})"} if use else {}


def _batches(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Compare classes of the same images alone, in small batches, in reversed order.

    The draws of a random model depend on the batch, so that it is not checked.
    """
    if random:
        return
    changed = changed_by_batch(model, x)
    if any(more_than(CHANGED, rows) for rows in changed.values()):
        shares = {name: float(rows.float().mean()) for name, rows in changed.items()}
        found.findings["depends-on-batch"] = {"share_of_changed_classes": shares}


def _decoy(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Compare logits with and without a gradient at the input."""
    plain = same(model, x, random)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), seeded(model, draws.key("check", 0)):
        with_gradient = logits_of(model, leaf).detach()
    apart = moved(plain, with_gradient)
    differs = float((apart > rounding(plain)).float().mean()) > ANOTHER
    if differs or more_than(CHANGED, other_class(plain, with_gradient)):
        most = float(apart.max()) * scale(plain)
        found.findings["decoy-logits"] = {"largest_difference": most}


def _gradients(model: Model, x: Tensor, y: Tensor, found: Checked) -> float:
    """Measure whether detach and rounding change the gradient; returns the share of images that have one."""
    own, free = gradient(model, Own(), x, y), gradient(model, BPDA(), x, y)
    has = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    if own is not None:
        has = own.flatten(1).abs().amax(1) > 0
    share = float(has.float().mean())
    if share < 0.95:
        found.findings["zero-gradient"] = {"share_with_gradient": share}
    if share <= NO_GRADIENT:
        found.traits.add("no gradient")
    if unread := unread_spikes(model, x[:8], y[:8]):
        kind = "spikes-unread" if share > NO_GRADIENT else "spikes-unreached"
        found.findings[kind] = {"functions": sorted(unread)}
    if share > NO_GRADIENT and own is not None and free is not None and "noise" not in found.traits:
        cosines = torch.nn.functional.cosine_similarity(own[has].flatten(1), free[has].flatten(1))
        if (cosine := float(cosines.median())) < 0.9:
            found.findings["locked-gradient"] = {"median_cosine_to_bpda": cosine}
    return share


def gradient(model: Model, estimator: Estimator, x: Tensor, y: Tensor) -> Tensor | None:
    """The gradient of the margin by an estimator, ``[N, ...]``; None if it has none."""
    try:
        with estimator.open(model) as opened:
            got: Tensor = opened(x, y, margin)[0]
            return got
    except Exception:  # whatever the model raises: there is no gradient this way
        return None
