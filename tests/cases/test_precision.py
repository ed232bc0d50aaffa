"""Other floating types: the numbers of the float32 twin; and values that are not finite, said as such."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import shorten_suite
from narrow import as_a
from strangers import ATTACKS, LINF, X, Y, net, pgd, refused
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.auditing.audit import Audit
from spikeguard.errors import SpikeguardWarning
from spikeguard.networks.classifier import Classifier
from spikeguard.random import draws
from spikeguard.threat import Threat

NET = net()
OTHERS = (torch.float64, torch.float16, torch.bfloat16)


@pytest.fixture(params=[torch.float64, torch.bfloat16, torch.float16], ids=str)
def other_default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", OTHERS, ids=str)
@pytest.mark.parametrize("threat", [LINF, sg.L2(0.2), sg.L1(1.0)], ids=lambda t: t.norm)
def test_models_of_another_type_give_the_numbers_of_their_twin(kind: torch.dtype, threat: Threat) -> None:
    found = sg.pgd(copy.deepcopy(NET).to(kind), X.to(kind), Y, threat, steps=5, restarts=1)
    twin = sg.pgd(NET, X.to(kind).to(found.x.dtype).float(), Y, threat, steps=5, restarts=1)
    assert int((found.broken != twin.broken).sum()) <= 1
    threat.check(found.x, X.to(kind).to(found.x.dtype))


@pytest.mark.parametrize("kind", OTHERS, ids=str)
@pytest.mark.parametrize("attack", ["square", "fab", "cw", "rays", "targeted"])
def test_every_attack_stays_in_the_budget_with_images_of_another_type(kind: torch.dtype, attack: str) -> None:
    found = ATTACKS[attack](copy.deepcopy(NET).to(kind), X.to(kind), Y)
    assert float((found.x - X.to(kind).to(found.x)).abs().max()) <= 0.3


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16], ids=str)
def test_an_audit_of_another_type_can_be_verified(
    kind: torch.dtype, tmp_path: Path, short_suite: None
) -> None:
    other, z = copy.deepcopy(NET).to(kind), X.to(kind)
    result = sg.audit(other, z, Y, LINF, effort="quick", out=tmp_path)
    twin = sg.audit(NET, z.float(), Y, LINF, effort="quick")
    assert abs(result.robust_accuracy - twin.robust_accuracy) <= 1 / 12
    assert [f.id for f in result.flags if f.level == "error"] == []
    assert sg.verify(result.record, tmp_path, other, z, Y).wrong == ()


class LowLogits(nn.Module):
    """float32 images in, bfloat16 logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = copy.deepcopy(NET).bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return as_a(Tensor, self.inner(x.bfloat16()))


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = NET

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return as_a(Tensor, self.inner(x))


@pytest.mark.parametrize("make", [LowLogits, Autocast])
def test_logits_of_low_precision_are_taken(
    make: Callable[[], nn.Module], tmp_path: Path, short_suite: None
) -> None:
    assert int((pgd(make()) != pgd(NET)).sum()) <= 2
    result = sg.audit(make(), X, Y, LINF, effort="quick", out=tmp_path)
    assert 0 <= result.robust_accuracy <= 1


def test_types_that_leave_no_doubt_are_converted() -> None:
    assert torch.equal(pgd(NET, x=X.double()), pgd(NET))
    assert torch.equal(pgd(copy.deepcopy(NET).double()), pgd(copy.deepcopy(NET).double(), x=X.double()))
    refused(lambda: pgd(lambda x: NET(x), x=X.double()), "torch.float64 images", "the model fails")


def test_draws_do_not_depend_on_torchs_default_type(other_default: torch.dtype) -> None:
    rows = torch.arange(300)
    before_normal = draws.normal(draws.step_keys(1, rows, 4), 64, 4)
    uniform = draws.uniform(1, rows, 4096)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(draws.uniform(1, rows, 4096), uniform)
    assert torch.equal(draws.normal(draws.step_keys(1, rows, 4), 64, 4), before_normal)
    assert uniform.dtype == torch.float32
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_do_not_depend_on_torchs_default_type(attack: str, other_default: torch.dtype) -> None:
    found = ATTACKS[attack](NET, X, Y)
    torch.set_default_dtype(torch.float32)
    assert torch.equal(found.x, ATTACKS[attack](NET, X, Y).x)
    assert found.loss.dtype == torch.float32


Measured = tuple[Classifier, Audit]


def measured() -> Measured:
    """A network whose neurons fire, and its audit at a budget that breaks some images."""
    made = sg.build(
        "small", classes=4, in_shape=(1, 8, 8), timesteps=2, width=2, neuron=sg.Neuron("plif", 0.5)
    ).train()
    with torch.no_grad():
        for _ in range(30):
            made(X)
        made.head.bias.sub_(made.eval()(X).mean(0))
    y = made(X).argmax(1)
    return made, sg.audit(made, X, y, sg.Linf(0.01), effort="quick")


@pytest.fixture(scope="module")
def of_float32() -> Measured:
    """The same under the usual default type."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        shorten_suite(patch)
        return measured()


def test_networks_and_audits_do_not_depend_on_torchs_default_type(
    of_float32: Measured, other_default: torch.dtype, short_suite: None
) -> None:
    (made, result), (again, twin) = measured(), of_float32
    for (name, a), b in zip(made.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
        assert a.dtype == b.dtype, name
    assert 0 < twin.robust_accuracy < twin.clean_accuracy
    assert result.record.first_by == twin.record.first_by
    assert result.record.controls == twin.record.controls


def holes(x: torch.Tensor, value: float, above: float) -> torch.Tensor:
    """Logits with a value where the first pixel is bright."""
    return as_a(Tensor, NET(x)).masked_fill(x.flatten(1)[:, :1] > above, value)


@pytest.mark.parametrize("attack", ATTACKS)
def test_nan_on_clean_images_is_said_and_not_called_broken(attack: str) -> None:
    refused(lambda: ATTACKS[attack](lambda x: holes(x, float("nan"), 0.5), X, Y), "NaN on", "clean images")


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_logits_on_clean_images_are_said(value: float) -> None:
    with pytest.warns(SpikeguardWarning, match="infinite logits on"):
        sg.rays(lambda x: holes(x, value, 0.5), X, Y, LINF, queries=2)


@pytest.mark.parametrize("attack", ATTACKS)
def test_classes_masked_by_minus_infinity_are_no_reason_for_a_warning(attack: str) -> None:
    """Warnings are errors in tests."""

    def masked(x: Tensor) -> Tensor:
        scores = as_a(Tensor, NET(x))
        return torch.cat([scores, torch.full_like(scores[:, :1], -torch.inf)], 1)

    ATTACKS[attack](masked, X, Y)


def test_nan_under_attack_is_a_break() -> None:
    x = X.clone()
    x[:, 0, 0, 0] = 0.5
    y = NET(x).argmax(1)

    def model(x: Tensor) -> Tensor:
        return holes(x, float("nan"), 0.51)

    found = sg.pgd(model, x, y, LINF, steps=10)
    assert bool((found.broken >= (found.x[:, 0, 0, 0] > 0.51)).all())
    assert int(model(found.x).isnan().any(1).sum()) > 3


def test_nan_on_clean_images_counts_as_wrong_in_an_audit(short_suite: None) -> None:
    result = sg.audit(lambda x: holes(x, float("nan"), 0.5), X, Y, LINF, effort="quick")
    finite = X[:, 0, 0, 0] <= 0.5
    assert result.clean_accuracy == pytest.approx(float(finite.double().mean()))
    assert "no-logits" in [f.id for f in result.flags]
