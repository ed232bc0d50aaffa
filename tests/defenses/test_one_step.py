"""Adversaries of one step, against the papers' formulas written out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from narrow import kept, present
from torch import Tensor

from spikeguard.data.batches import Placement, TrainingBatch
from spikeguard.defenses import NFGSM, PGI, Step
from spikeguard.defenses.one_step import packed, unpacked
from spikeguard.errors import UserError
from spikeguard.random import draws

EPS = 16 / 255


def slope(step: Step, x: Tensor) -> Tensor:
    """Sign of the input gradient of the cross-entropy, network in eval mode."""
    net = step.net.eval()
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(net(x), step.y, reduction="sum"), x)
    net.train()
    return gradient.sign()


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_nfgsm_takes_a_full_step_from_noise_and_does_not_project(step: Step, warmup: float) -> None:
    NFGSM(eps=EPS, warmup=warmup).start(step.net).craft(step)
    eps = EPS * (0.5 if warmup else 1.0)  # half-way
    (view,) = step.views.values()
    noise = draws.uniform(step.draw("noise"), torch.arange(8), 64).view_as(step.x)
    start = (step.x + 2 * eps * (2 * noise - 1)).clamp(0, 1)
    assert torch.equal(view.x, (start + eps * slope(step, start)).clamp(0, 1))
    assert 1.5 * eps < float((view.x - step.x).abs().max()) <= 3 * eps + 1e-6
    assert view.weight == 1.0
    assert step.net.training


def with_batch(step: Step, rows: list[int], placement: Placement | None = None) -> Step:
    """The step with images that know their places among twelve."""
    chosen = torch.tensor(rows)
    return replace(step, views={}, batch=TrainingBatch(step.x, step.y, chosen, placement, 12))


def test_pgi_starts_where_the_same_image_ended(step: Step) -> None:
    hooks = PGI(eps=EPS).start(step.net)
    first = with_batch(step, [3, 1, 4, 0, 5, 9, 2, 6])
    hooks.craft(first)
    assert set(kept(hooks, "prior").unique().tolist()) <= {-1, 0, 1}
    found = ((first.views["adversarial"].x - step.x) / EPS).clamp(-1, 1)
    again = with_batch(step, [3, 1, 4, 0, 5, 9, 2, 6])
    hooks.craft(again)
    inside = (step.x > EPS) & (step.x < 1 - EPS)  # not cut off at black or white
    started = (again.views["start"].x - step.x) / EPS
    assert torch.allclose(started[inside], found[inside], atol=1e-4)
    start = again.views["start"].x
    expected = (started + slope(step, start)).clamp(-1, 1)
    assert torch.allclose(again.views["adversarial"].x[inside], (step.x + EPS * expected)[inside], atol=1e-5)
    assert float((again.views["adversarial"].x - step.x).abs().max()) <= EPS + 1e-6


def test_pgi_pulls_outputs_to_those_at_the_start(step: Step) -> None:
    hooks = PGI(eps=EPS, pull=3.0).start(step.net)
    step = with_batch(step, list(range(8)))
    hooks.craft(step)
    step.logits = {"adversarial": torch.ones(8, 10), "start": torch.zeros(8, 10)}
    assert float(present(hooks.penalty(step))) == pytest.approx(3.0)
    assert PGI(pull=0.0).start(step.net).penalty(step) is None


def test_pgi_keeps_perturbations_in_the_frame_of_the_image(step: Step) -> None:
    hooks, mirrored = PGI(eps=EPS).start(step.net), torch.ones(8, dtype=torch.bool)
    shift = torch.full((8,), 3)
    first = with_batch(step, list(range(8)), Placement(shift, shift, mirrored, 2))
    hooks.craft(first)
    inside = (step.x > EPS) & (step.x < 1 - EPS)
    found = (first.views["adversarial"].x - step.x) / EPS
    placement = present(present(first.batch).placement)
    placed = placement.apply(kept(hooks, "prior")[:8]).float()
    shown = placement.apply(torch.ones_like(step.x)) > 0
    assert torch.allclose(found[inside & shown], placed[inside & shown], atol=1e-4)


def test_pgi_resumes_to_the_same_bits(step: Step) -> None:
    hooks, other = (PGI(eps=EPS).start(step.net) for _ in range(2))
    assert hooks.state() == {}
    other.restore({})
    hooks.craft(with_batch(step, [0, 1, 2, 3, 4, 5, 6, 11]))
    other.restore(hooks.state())
    assert torch.equal(kept(other, "prior"), kept(hooks, "prior"))
    with pytest.raises(UserError, match="needs the batches of a training"):
        hooks.craft(step)


@pytest.mark.parametrize("shape", [(1, 3, 3), (3, 4, 4)])
def test_four_values_take_a_byte(shape: tuple[int, ...]) -> None:
    values = torch.randint(-1, 2, (5, *shape), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    stored = packed(values)
    assert stored.shape == (5, -(-torch.Size(shape).numel() // 4))
    assert torch.equal(unpacked(stored, shape), values)


@pytest.mark.parametrize(
    ("kind", "changes", "name"),
    [
        (NFGSM, {"eps": 2.0}, "eps"),
        (NFGSM, {"radius": -1.0}, "radius"),
        (NFGSM, {"estimators": ("none",)}, "estimators"),
        (PGI, {"pull": -1.0}, "pull"),
        (PGI, {"warmup": 2.0}, "warmup"),
    ],
)
def test_settings_out_of_range_are_named(kind: type, changes: dict[str, object], name: str) -> None:
    with pytest.raises(UserError, match=f"{kind.__name__}: {name}"):
        kind(**changes)
