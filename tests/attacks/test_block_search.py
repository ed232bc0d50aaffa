"""Block search: it starts where others stopped, crosses plateaus, and its blocks shrink to single pixels."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks.batch import Batch
from spikeguard.attacks.block_search import block_search, side, within_reach
from spikeguard.attacks.loop import Keep, search_by_queries
from spikeguard.errors import UserError
from spikeguard.losses import margin


class Steps(nn.Module):
    """Piecewise constant: the wrong class wins where ``count`` of the pixels lie above 0.55.

    Below that its logit is flat, but for the first pixel.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        high = (x > 0.55).flatten(1)
        wrong = 2.0 * (high.sum(1) >= self.count) + 0.5 * high[:, 0]
        return torch.stack([torch.ones_like(wrong), wrong], 1)


X, Y = torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.long)


def test_it_crosses_a_plateau_by_changes_that_leave_the_margin_as_it_is() -> None:
    found = block_search(Steps(3), X, Y, sg.Linf(0.1), queries=60)
    assert found.broken.all()

    def never_equal(part: Batch, best: Tensor, query: int) -> Tensor:
        one = torch.zeros_like(best).flatten(1)
        one[:, query % 4] = 0.1
        return best + one.view_as(best)

    stuck = search_by_queries(Steps(3), Batch.of(X, Y, sg.Linf(0.1)), 60, never_equal, Keep())
    assert not stuck.broken.any()


def test_it_starts_at_the_points_of_higher_margin() -> None:
    first = X.clone()
    first[:3, 0, 0, 0] = 0.6  # higher by a half
    first[3, 0, 0] = 0.6  # breaks at once
    model = Steps(2)
    before = margin(model(first), Y)
    found = block_search(model, X, Y, sg.Linf(0.1), queries=1, first=first)
    assert (found.loss >= before).all()
    assert found.when[3] == 0
    assert found.broken[3]
    with pytest.raises(UserError, match="outside of the budget"):
        block_search(model, X, Y, sg.Linf(0.1), queries=1, first=first + 0.3)
    with pytest.raises(UserError, match="first has shape"):
        block_search(model, X, Y, sg.Linf(0.1), first=first[:2])


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_single_pixel_always_moves_and_all_channels_or_one(level: float) -> None:
    """Every query flips one pixel of a gray image, black and white ones too; of a color image in 1 or 3."""
    moves: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            moves.append(x.clone())
            return torch.tensor([[1.0, 0.0]]).repeat(len(x), 1)

    for channels, allowed in ((1, {1}), (3, {1, 3})):
        x, y = torch.full((5, channels, 4, 4), level), torch.zeros(5, dtype=torch.long)
        moves.clear()
        block_search(Watch(), x, y, sg.Linf(0.1), queries=40)
        tried = moves[-40:]  # every one is kept, for the margin never changes
        changed = [(b - a).abs().flatten(1).gt(1e-6).sum(1) for a, b in pairwise(tried)]
        assert {int(n) for row in changed for n in row} == allowed


def test_only_images_within_reach_get_more_queries() -> None:
    """Three of six images need two pixels, the others forty."""

    class Far(nn.Module):
        """Each high pixel is worth one."""

        def forward(self, x: Tensor) -> Tensor:
            high = (x > 0.55).flatten(1).sum(1).to(x.dtype)
            need = torch.where(x[:, 0, 0, 0] > 0.3, 2.0, 40.0)
            return torch.stack([need - 0.5, high], 1)

    x = torch.full((6, 1, 8, 8), 0.5)
    x[3:, 0, 0, 0] = 0.1
    once = block_search(Far(), x, Y, sg.Linf(0.1), queries=1, seed=1)
    reach = within_reach(torch.where(x[:, 0, 0, 0] > 0.3, -1.5, -39.5), once)
    assert reach[:3].any()
    assert not reach[3:].any()
    more = block_search(Far(), x, Y, sg.Linf(0.1), queries=1, more=30, seed=1)
    assert more.broken[reach].all()
    assert (more.when[reach] > 1).all()
    assert torch.equal(more.x[~reach], once.x[~reach])
    assert int(reach.sum()) <= more.forwards - once.forwards <= 30 * int(reach.sum()) + 2 * len(x)


def test_sides_scale_with_the_image_and_end_at_one_pixel() -> None:
    assert [side(k, 10, 28, 28) for k in range(10)] == [5, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    assert [side(80 * k, 800, 32, 32) for k in range(10)] == [6, 4, 3, 3, 2, 2, 1, 1, 1, 1]
    large = [side(k, 10, 224, 256) for k in range(10)]
    assert large[0] == 40
    assert large == sorted(large, reverse=True)
    assert large[-1] == 1
    assert side(0, 1, 8, 3) == 1
