"""Adaptive sharpness (ASSG), and the schedules of SA-PGD and Square."""

import torch
from narrow import as_a, present
from torch import Tensor

import spikeguard as sg
from spikeguard.attacks.apgd import checkpoints
from spikeguard.attacks.square import side
from spikeguard.gradients.assg import ASSGOpened
from spikeguard.networks.classifier import Classifier


def test_adaptive_sharpness_follows_its_formula(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    from spikeguard.losses import ce

    with sg.tap(tiny) as t:
        tiny(x)
    with sg.gradients.ASSG(0.4).open(tiny) as opened:
        opened = as_a(ASSGOpened, opened)
        for _ in range(2):
            opened(x, y, ce)
        for name, u in t.potentials.items():
            mean, spread = torch.ones_like(u), torch.zeros_like(u)
            for _ in range(2):
                mean = 0.9 * mean + 0.1 * u.abs()
                spread = 0.9 * spread + 0.1 * (u.abs() - mean).abs()
            torch.testing.assert_close(opened.layers[name].mean, mean)
            torch.testing.assert_close(opened.layers[name].deviation, spread)
        opened.select(torch.tensor([2, 4]))
        assert present(opened.layers[name].mean).shape[1] == 2


def test_adaptive_sharpness_at_a_frozen_value_is_plain_atan(
    tiny: Classifier, pair: tuple[Tensor, Tensor]
) -> None:
    from spikeguard.gradients.assg import AdaptiveSharpness
    from spikeguard.losses import ce

    class Fixed(AdaptiveSharpness):
        def observe(self, u: Tensor) -> Tensor:
            return torch.full_like(u, 3.0)

    x, y = pair
    leaf = x.clone().requires_grad_()
    gradients = []
    for surrogate in (Fixed(sg.surrogates.Atan(), 1.0), sg.surrogates.Atan(3.0)):
        with sg.tap(tiny, surrogate=surrogate):
            gradients.append(torch.autograd.grad(ce(tiny(leaf), y).sum(), leaf)[0])
    torch.testing.assert_close(*gradients)


def test_schedules_of_sapgd_and_square() -> None:
    assert sorted(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [side(q, 32, 32) for q in (1, 11, 51, 1001)] == [29, 20, 14, 5]
