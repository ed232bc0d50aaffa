"""Step sizes and starts of gradient attacks; how witnesses are checked; who meets a sample."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks.pgd import default_step
from spikeguard.auditing.member import Member
from spikeguard.auditing.run import run_suite
from spikeguard.auditing.task import Task
from spikeguard.auditing.witnesses import check_batch, misclassified
from spikeguard.gradients import Own
from spikeguard.threat import Threat


class Watched(nn.Module):
    """A linear model of two classes, and what it is called with: kept by a function, for what a model holds
    itself is put back after an attack."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 16))
        calls: list[Tensor] = []
        self.keep: Callable[[Tensor], None] = calls.append
        self.kept: Callable[[], list[Tensor]] = lambda: calls

    @property
    def calls(self) -> list[Tensor]:
        return self.kept()

    def forward(self, x: Tensor) -> Tensor:
        self.keep(x.detach().clone())
        score = x.flatten(1) @ self.weight
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize(
    ("steps", "expected"), [(1, 2.5), (10, 0.25), (20, 0.125), (40, 0.0625), (100, 0.0625)]
)
def test_default_step_is_2_5_eps_over_steps_but_at_least_a_sixteenth(steps: int, expected: float) -> None:
    eps = torch.tensor([[1.0], [0.08]])
    assert default_step(eps, steps, None).flatten().tolist() == pytest.approx([expected, 0.08 * expected])
    assert default_step(eps, steps, 0.3).flatten().tolist() == pytest.approx([0.3, 0.3])


def test_pgd_takes_its_default_step() -> None:
    model, x = Watched().eval(), torch.full((2, 1, 4, 4), 0.5)
    sg.pgd(model, x, torch.tensor([1, 0]), sg.Linf(0.1), steps=10, start=False, early_stop=False)
    points = torch.stack([call for call in model.calls if call.shape == x.shape]).unique(dim=0)
    moved = {round(float(v), 6) for v in (points - x).abs().amax((1, 2, 3, 4))}
    assert moved == {0.0, 0.025, 0.05, 0.075, 0.1}


@pytest.mark.parametrize("attack", [sg.pgd, sg.apgd])
def test_every_restart_starts_at_a_point_of_its_own(attack: Callable[..., sg.attacks.Attacked]) -> None:
    """One step of a linear model ends in the same corner from everywhere, so that the rest are starts."""
    model, corner = Watched().eval(), torch.linspace(-1, 1, 16).sign()
    x = (0.5 + 0.3 * corner).view(1, 1, 4, 4)
    attack(model, x, torch.tensor([0]), sg.Linf(0.05), steps=1, restarts=3, gradient=Own())
    offsets = {tuple(round(float(v), 5) for v in (call - x).flatten()) for call in model.calls}
    offsets -= {tuple([0.0] * 16), tuple(round(-0.05 * float(v), 5) for v in corner)}
    assert len(offsets) == 3


@pytest.mark.parametrize("unlike", [0, 1, 2, 3, 11, 37, 61, 89, 97, 250])
@pytest.mark.parametrize("count", [2, 3, 12, 60, 98, 250, 1000])
def test_witnesses_are_checked_at_another_batch_size(count: int, unlike: int) -> None:
    size = check_batch(count, unlike)
    assert 1 <= size < count
    assert size != unlike or size == 1, "the attack's own batch size shows nothing new"


@pytest.mark.parametrize("attacked_at", [97, 89, 250])
def test_no_batch_of_a_check_has_the_size_of_the_attack(attacked_at: int) -> None:
    model, x = Watched().eval(), torch.rand(250, 1, 4, 4)
    wrong = misclassified(model, x, torch.zeros(250).long(), attacked_at)
    assert wrong.shape == (250,)
    assert attacked_at not in {len(call) for call in model.calls}
    assert sum(len(call) for call in model.calls) == 250


def test_a_sample_is_attacked_until_two_families_have_broken_it() -> None:
    """Two kinds of attack per broken sample: what one kind alone breaks is a sign of masking."""
    met: dict[str, int] = {}

    def breaks(name: str) -> Member:
        def attack(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> sg.attacks.Attacked:
            met[name] = met.get(name, 0) + len(x)
            broken, zeros = torch.ones_like(y, dtype=torch.bool), torch.zeros_like(y)
            return sg.attacks.Attacked(1 - x, broken, zeros.float(), 0, 0, zeros)

        return Member(name, name, attack)

    weight = torch.linspace(-1, 1, 16)
    x = (0.5 + 0.3 * weight.sign()).view(1, 1, 4, 4).repeat(20, 1, 1, 1)
    model = Watched().eval()
    run_suite(Task(model, x, torch.zeros(20).long(), sg.Linf(0.6), [breaks(n) for n in ("a", "b", "c")]))
    assert met == {"a": 20, "b": 20}
