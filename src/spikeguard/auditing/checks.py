"""Checks of a model before any attack: can it be measured at all? Findings become flags, none is an error."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from spikeguard.auditing.scoring import seeded
from spikeguard.auditing.state import digest
from spikeguard.errors import UserError
from spikeguard.gradients import BPDA, Estimator, Own
from spikeguard.gradients.surrogate import unread_spikes
from spikeguard.losses import margin
from spikeguard.models import Model, bitwise_equal, eval_mode, logits_of
from spikeguard.random import draws

BATCHES = (1, 7, 50)
CHANGED = 0.02
"""Share of classes that may change with the batch: a last-bit difference of a kernel can flip a spike."""
Contents = dict[str, str | bool]


@dataclass
class Checked:
    """Findings by the id of their flag, with the evidence, and traits of the model.

    Traits are 'noise', 'no gradient', 'no logits'.
    """

    findings: dict[str, dict[str, object]] = field(default_factory=dict)
    traits: set[str] = field(default_factory=set)


def check_model(model: Model, x: Tensor, y: Tensor, random: bool) -> Checked:
    """Run all checks on up to 100 images."""
    x, y = x[:100], y[:100]
    found = Checked(traits={"noise"} if random else set())
    with eval_mode(model):
        before = contents(model)
        _outputs(model, x, found)
        _repetition(model, x, random, found)
        if "state-carried-over" not in found.findings:
            _batches(model, x, random, found)
        _decoy(model, x, random, found)
        _gradients(model, x, y, found)
        unchanged(model, before, found)
    return found


def unchanged(model: Model, before: Contents, found: Checked) -> None:
    """Compare the model's tensors and modes with what they were before."""
    after = contents(model)
    if changed := sorted(k for k in {*before, *after} if before.get(k) != after.get(k)):
        found.findings["model-changed"] = {"changed": changed[:5]}


def contents(model: Model) -> Contents:
    """Digests of a module's tensors, and the modes of its parts."""
    if not isinstance(model, nn.Module):
        return {}
    held: Contents = {name: digest(t) for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    return held | {f"mode of {name or 'the model'}": m.training for name, m in model.named_modules()}


def stateful(model: Model, x: Tensor) -> bool:
    """Whether the model gives other logits the second time although all random generators are set again.

    Such a model is not random: it carries state.
    """
    first, again = (same(model, x[:8], True) for _ in range(2))
    return not bitwise_equal(first, again)


def same(model: Model, x: Tensor, random: bool) -> Tensor:
    """Logits, under the same draw each time if the model is random."""
    with torch.no_grad():
        if not random:
            return logits_of(model, x)
        with seeded(model, draws.key("check", 0)):
            return logits_of(model, x)


def _outputs(model: Model, x: Tensor, found: Checked) -> None:
    logits = same(model, x, "noise" in found.traits)
    if not bool(torch.isfinite(logits).all()):
        found.findings["no-logits"] = {"reason": "values that are not finite"}
        return
    sums, low = logits.sum(1), float(logits.min())
    levels = torch.tensor([len(row.unique()) for row in logits])
    if logits.shape[1] > 2 and float((levels <= 2).float().mean()) > 0.9:
        found.findings["no-logits"] = {"reason": "two values an image: classes, not logits"}
    elif low >= 0 and bool(((sums - 1).abs() < 1e-4).all()):
        found.findings["no-logits"] = {"reason": "probabilities (they sum to 1)"}
    else:
        right = torch.softmax(logits.float(), 1).amax(1)
        if (share := float((right == 1).float().mean())) > 0.5:
            found.findings["saturated-logits"] = {"share_of_saturated_images": share}
    if found.findings:
        found.traits.add("no logits")


def _repetition(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Evaluate the same images twice in a row, and once more after other images."""
    first = same(model, x, random)
    again = same(model, x, random)
    same(model, x.flip(0), random)
    later = same(model, x, random)
    if differs := [
        name
        for name, other in (("evaluated twice", again), ("evaluated after other images", later))
        if not bitwise_equal(first, other)
    ]:
        moved = max(float((first - other).abs().max()) for other in (again, later))
        found.findings["state-carried-over"] = {"differs_when": differs, "largest_difference": moved}


def _batches(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Compare classes of the same images alone, in small batches, in reversed order.

    The draws of a random model depend on the batch, so that it is not checked.
    """
    if random:
        return
    whole = same(model, x, False).argmax(1)
    shares = {}
    for b in BATCHES:
        if b < len(x):
            try:
                shares[f"batches of {b}"] = torch.cat(
                    [same(model, part, False).argmax(1) for part in x.split(b)]
                )
            except (
                Exception
            ) as error:  # whatever its code raises: nothing can be measured in batches that it does not take
                raise UserError(
                    f"audit: the model fails on batches of {b} ({type(error).__name__}: {error}); it has to "
                    "take any number"
                ) from error
    shares["reversed order"] = same(model, x.flip(0), False).argmax(1).flip(0)
    changed = {name: float((other != whole).float().mean()) for name, other in shares.items()}
    if max(changed.values()) > CHANGED:
        found.findings["depends-on-batch"] = {"share_of_changed_classes": changed}


def _decoy(model: Model, x: Tensor, random: bool, found: Checked) -> None:
    """Compare logits with and without a gradient at the input."""
    plain = same(model, x, random)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad(), seeded(model, draws.key("check", 0)):
        with_gradient = logits_of(model, leaf).detach()
    if not torch.allclose(plain, with_gradient, rtol=1e-4, atol=1e-5, equal_nan=True):
        found.findings["decoy-logits"] = {"largest_difference": float((plain - with_gradient).abs().max())}


def _gradients(model: Model, x: Tensor, y: Tensor, found: Checked) -> None:
    """Measure how many images have a gradient, and whether detach and rounding change it."""
    own, free = gradient(model, Own(), x, y), gradient(model, BPDA(), x, y)
    share = 0.0 if own is None else float((own.flatten(1).abs().amax(1) > 0).float().mean())
    if share < 0.95:
        found.findings["zero-gradient"] = {"share_with_gradient": share}
    if share <= 0.05:
        found.traits.add("no gradient")
    if unread := unread_spikes(model, x[:8], y[:8]):
        kind = "spikes-unread" if share > 0.05 else "spikes-unreached"
        found.findings[kind] = {"functions": sorted(unread)}
    if own is None or free is None or "noise" in found.traits:
        return
    cosine = float(torch.nn.functional.cosine_similarity(own.flatten(1), free.flatten(1)).median())
    if cosine < 0.9 and share > 0.05:
        found.findings["locked-gradient"] = {"median_cosine_to_bpda": cosine}


def gradient(model: Model, estimator: Estimator, x: Tensor, y: Tensor) -> Tensor | None:
    """The gradient of the margin by an estimator, ``[N, ...]``; None if it has none."""
    try:
        with estimator.open(model) as opened:
            got: Tensor = opened(x, y, margin)[0]
            return got
    except Exception:  # whatever the model raises: there is no gradient this way
        return None
