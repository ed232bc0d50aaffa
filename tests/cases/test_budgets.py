"""Budgets as other libraries take them, and budgets that are none."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from narrow import as_a, wrong
from strangers import LINF, X, Y, net, pgd, refused
from torch import Tensor

import spikeguard as sg
from spikeguard.errors import SpikeguardWarning
from spikeguard.threat import Threat

NET = net()
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", [*sg.attacks.ATTACKS, "audit"])
@pytest.mark.parametrize("threat", [8 / 255, "8/255", ("linf", 8 / 255), None, 8, torch.tensor(0.03)])
def test_a_budget_without_a_norm_is_one_line_that_names_linf(name: str, threat: object) -> None:
    call = getattr(sg, name) if name == "audit" else sg.attacks.ATTACKS[name].function
    refused(lambda: call(NET, X, Y, threat), f"{name}: threat = ", "sg.Linf(8 / 255)")


@pytest.mark.parametrize("norm", [sg.Linf, sg.L2, sg.L1])
@pytest.mark.parametrize(
    "eps", [INF, -INF, NAN, -0.1, "8/255", None, True, [0.1], (1,), 10**400, 1j, torch.tensor([0.1, NAN])]
)
def test_an_eps_that_is_none_is_refused(norm: Callable[[object], Threat], eps: object) -> None:
    refused(lambda: norm(eps), norm.__name__, "eps")


def test_text_is_answered_with_the_call_that_works() -> None:
    refused(lambda: sg.Linf(wrong("8/255")), "'8/255'", "sg.Linf(8 / 255)")


@pytest.mark.parametrize("eps", [8, 2, 255, 1.01, torch.tensor([0.1, 8.0])])
def test_a_forgotten_255_is_refused_with_what_was_meant(eps: float | Tensor) -> None:
    refused(lambda: sg.Linf(eps), "allows every image", "/ 255)")
    assert sg.Linf(1.0).eps == 1.0


@pytest.mark.parametrize("threat", [sg.L2(8.1), sg.L2(128), sg.L1(64.1)])
def test_an_audit_refuses_a_budget_that_allows_every_image(threat: Threat) -> None:
    refused(lambda: sg.audit(NET, X, Y, threat, effort="quick"), "allows every image", "divide by 255")


@pytest.mark.parametrize("eps", [np.float32(0.03), np.float64(0.03), torch.tensor(0.03), Fraction(3, 100)])
def test_numbers_of_any_kind_are_taken(eps: float | Tensor) -> None:
    assert torch.equal(pgd(NET, threat=sg.Linf(eps)), pgd(NET, threat=LINF))


def test_scaling_a_linf_budget_ends_at_the_whole_range() -> None:
    assert sg.Linf(0.5).scaled(4.0).eps == 1.0
    scaled = sg.Linf(torch.tensor([0.1, 0.5])).scaled(4.0)
    assert as_a(Tensor, scaled.eps).tolist() == pytest.approx([0.4, 1.0])
    assert sg.L2(0.5).scaled(4.0).eps == 2.0


def test_one_eps_an_image_has_to_fit_the_images() -> None:
    refused(lambda: pgd(NET, threat=sg.Linf(torch.full((3,), 0.1))), "3 values of eps for 12 images")


def test_one_eps_an_image_may_be_an_array_and_part_of_a_graph() -> None:
    plain = pgd(NET, threat=sg.Linf(torch.full((12,), 0.03)))
    assert torch.equal(pgd(NET, threat=sg.Linf(wrong(np.full(12, 0.03)))), plain)
    assert torch.equal(pgd(NET, threat=sg.Linf(torch.full((12,), 0.03, requires_grad=True))), plain)


@pytest.mark.parametrize(
    "eps", [torch.full((12,), 0.1, device="meta"), torch.tensor(0.1, device="meta"), 1e39]
)
def test_an_eps_without_a_value_is_refused(eps: float | Tensor) -> None:
    refused(lambda: sg.Linf(eps), "Linf: eps = ")


def test_an_attack_warns_of_a_budget_far_beyond_every_image() -> None:
    with pytest.warns(SpikeguardWarning, match=r"allows every image of shape \(1, 8, 8\) from 8 on"):
        pgd(NET, threat=sg.L2(255))
