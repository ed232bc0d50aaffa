"""Budgets of every norm: projections, and what knows one norm only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import spikeguard as sg
from spikeguard.errors import UserError
from spikeguard.networks.classifier import Classifier


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.floats(0, 1), st.integers(0, 10**6))
def test_projection_is_inside_and_leaves_inside_points_alone(eps: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, candidate = (
        torch.rand(3, 1, 4, 4, generator=generator),
        3 * torch.randn(3, 1, 4, 4, generator=generator),
    )
    threat = sg.Linf(eps)
    projected = threat.project(candidate, x)
    threat.check(projected, x)
    assert torch.equal(threat.project(projected, x), projected)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0, 12), st.integers(0, 10**6), st.sampled_from([sg.L2, sg.L1]))
def test_projections_of_other_norms_are_the_nearest_points(
    eps: float, seed: int, kind: type[sg.L2] | type[sg.L1]
) -> None:
    """Inside; inside points stay; and no random point of the set lies nearer to the candidate (Euclidean)."""
    generator = torch.Generator().manual_seed(seed)
    x, candidate = (
        torch.rand(3, 1, 3, 3, generator=generator).double(),
        2 * torch.randn(3, 1, 3, 3, generator=generator).double(),
    )
    threat = kind(eps)
    projected = threat.project(candidate, x)
    threat.check(projected, x)
    torch.testing.assert_close(threat.project(projected, x), projected, atol=1e-7, rtol=0)
    near = (projected - candidate).flatten(1).norm(dim=1)
    for _ in range(30):
        other = threat.project(x + torch.randn(x.shape, generator=generator).double(), x)
        toward = projected + 0.1 * (other - projected)  # the set is convex
        assert ((toward - candidate).flatten(1).norm(dim=1) >= near - 1e-6).all()


def test_an_attack_under_linf_only_says_so(tiny: Classifier, pair: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UserError, match="Linf"):
        sg.rfgsm(tiny, *pair, sg.L2(1.0))
