"""The learned blend and the attack on extreme neurons."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from narrow import as_a, present
from torch import Tensor

import spikeguard as sg
from spikeguard.errors import UserError
from spikeguard.gradients import Activity, LearnedBlend, Own
from spikeguard.gradients.activity import ActivityOpened, extremes
from spikeguard.gradients.base import Estimator, Opened
from spikeguard.gradients.learned_blend import LearnedBlendOpened
from spikeguard.losses import Loss, ce, margin
from spikeguard.models import Model
from spikeguard.networks.classifier import Classifier


class Noise(Estimator):
    """A gradient that points anywhere, anew at every call."""

    @contextmanager
    def open(self, model: Model) -> Iterator[Opened]:
        generator = torch.Generator().manual_seed(0)

        class Fresh(Opened):
            def __call__(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
                gradient, value, logits = super().__call__(x, y, loss)
                return torch.randn(gradient.shape, generator=generator), value, logits

        yield Fresh(model)


def test_the_blend_learns_which_source_raises_the_loss(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    with LearnedBlend((Noise(), Own()), rate=0.2).open(tiny) as opened:
        for _ in range(12):
            gradient, value, logits = opened(x, y, ce)
        noise, own = present(as_a(LearnedBlendOpened, opened).weights).flatten(2).mean(2).T
    assert (own > noise + 0.5).all()
    torch.testing.assert_close(value, ce(logits, y))
    assert (gradient.flatten(1).abs().mean(1) > 0.5).all()
    assert opened.forwards == opened.backwards == 2 * 12 * len(x)


def test_at_rate_zero_the_blend_is_the_mean_of_scaled_gradients(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair
    with Own().open(tiny) as opened:
        own = opened(x, y, margin)[0]
    with LearnedBlend((Own(), Own()), rate=0.0).open(tiny) as opened:
        found = [opened(x, y, margin)[0] for _ in range(2)]
    size = own.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    for blend in found:
        torch.testing.assert_close(blend, own / size.clamp(min=1e-30))


@pytest.mark.parametrize("estimator", [LearnedBlend(), Activity()], ids=["blend", "activity"])
def test_what_they_learn_belongs_to_a_sample(
    tiny: Classifier, pair: tuple[Tensor, Tensor], estimator: Estimator
) -> None:
    x, y = pair
    rows = torch.tensor([4, 1])
    with estimator.open(tiny) as opened:
        opened(x, y, ce)
        opened.select(rows)
        chosen = opened(x[rows] + 0.01, y[rows], ce)[0]
    with estimator.open(tiny) as alone:
        alone(x[rows], y[rows], ce)
        torch.testing.assert_close(alone(x[rows] + 0.01, y[rows], ce)[0], chosen)


def test_extremes_are_the_busiest_and_the_quietest() -> None:
    u = torch.tensor([[[1.0, -1.0, 0.5, -3.0]], [[1.0, -1.0, -0.5, -3.0]]])  # spikes 2, 0, 1, 0
    assert extremes(u, 0.25).tolist() == [[-1.0, 0.0, 0.0, 1.0]]
    assert extremes(u, 0.5).tolist() == [[-1.0, 1.0, -1.0, 1.0]]


def test_a_step_along_it_silences_the_busiest_and_wakes_the_quietest(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    x, y = pair

    def nothing(logits: Tensor, y: Tensor) -> Tensor:
        return 0 * logits.sum(1)

    def spread(at: Tensor) -> Tensor:
        with sg.tap(tiny, potentials=True) as t:
            tiny(at)
        shares = [
            (marks * t.potentials[name].mean(0).flatten(1)).sum(1) / marks.abs().sum(1)
            for name, marks in as_a(ActivityOpened, opened).chosen.items()
        ]
        return torch.stack(shares).sum(0)

    with torch.no_grad(), Activity(share=0.2).open(tiny) as opened:
        gradient = opened(x, y, nothing)[0]
        first = as_a(ActivityOpened, opened).chosen
        moved = (x + 0.05 * gradient.sign()).clamp(0, 1)
        assert (spread(moved) > spread(x)).sum() >= 6
        opened(moved, y, nothing)
        assert as_a(ActivityOpened, opened).chosen is first


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UserError, match="LearnedBlend"):
        LearnedBlend((Own(),))
    with pytest.raises(UserError, match="Activity"):
        Activity(share=0.7)
