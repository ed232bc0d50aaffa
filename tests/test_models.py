"""How far two evaluations differ, and what of it is rounding."""

import pytest
import torch

from spikeguard.models import is_stochastic, moved, rounding


def test_a_difference_is_a_share_of_the_largest_logit() -> None:
    first = torch.tensor([[10.0, -torch.inf, 0.0], [torch.nan, 1.0, 2.0], [torch.inf, 0.0, 0.0]])
    assert moved(first, first).tolist() == [0.0, 0.0, 0.0]
    other = first.clone()
    other[0, 2] = 1.0
    other[1, 0] = 0.0
    assert moved(first, other).tolist() == [pytest.approx(0.1), torch.inf, 0.0]
    assert moved(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_rounding_does_not_depend_on_the_scale_of_the_logits(factor: float) -> None:
    first = factor * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    assert not is_stochastic(lambda x: x, first, first * (1 + 1e-6))
    assert is_stochastic(lambda x: x, first, first + 0.01 * factor)


def test_a_step_of_bfloat16_is_rounding_and_a_spike_is_not() -> None:
    first = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    next_one = torch.nextafter(first.bfloat16(), torch.full_like(first, 9.0).bfloat16()).float()
    assert float(moved(first, next_one).max()) <= rounding(first)
    counts = torch.tensor([[100.0, 3.0, 0.0]])
    assert float(moved(counts, counts + 1).max()) > rounding(counts)
