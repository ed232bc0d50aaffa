"""What an audit says before it begins about how long it may take."""

import re
import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import spikeguard as sg
from spikeguard.attacks import Attacked
from spikeguard.auditing import pace
from spikeguard.auditing.member import Member
from spikeguard.auditing.suite import FULL
from spikeguard.auditing.task import Plan, Task
from spikeguard.errors import Interrupted, SpikeguardWarning
from spikeguard.gradients import EOT, Own
from spikeguard.records.schema import Settings

NET = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
X, Y = torch.rand(6, 1, 4, 4), torch.zeros(6).long()


class Counted(nn.Module):
    """Counts images of its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x)
        return torch.stack([1 + x.flatten(1).sum(1), 0.001 * x.flatten(1)[:, 0]], 1)


WORK: tuple[tuple[Callable[..., Attacked], Settings, tuple[int, int]], ...] = (
    (sg.fgsm, {}, (1, 0)),
    (sg.pgd, {"steps": 7, "restarts": 3}, (21, 0)),
    (sg.sapgd, {"steps": 5}, (5, 0)),
    (sg.targeted, {"rule": "sapgd", "steps": 4, "targets": 2}, (8, 0)),
    (sg.square, {"queries": 30}, (0, 30)),
    (sg.attacks.block_search, {"queries": 30, "more": 10}, (0, 40)),
    (sg.attacks.random_noise, {"tries": 9}, (0, 9)),
)


@pytest.mark.parametrize(("attack", "settings", "work"), WORK, ids=lambda v: getattr(v, "__name__", ""))
def test_the_work_of_a_member_is_about_what_it_takes(
    attack: Callable[..., Attacked], settings: Settings, work: tuple[int, int]
) -> None:
    member = Member("one", "family", attack, settings)
    assert pace.work_of(member) == work
    got = member.run(Counted(), X, Y, sg.Linf(0.01), 0, torch.arange(6))
    assert 0.5 * sum(work) <= got.forwards / 6 <= 2 * sum(work) + 3


def test_every_member_of_the_suites_has_some_work() -> None:
    assert all(sum(pace.work_of(m)) > 0 for m in FULL)


def test_averages_multiply_the_gradients() -> None:
    pgd = Member("one", "family", sg.pgd, {"steps": 5, "restarts": 1})
    assert pace.work_of(pgd, draws=4) == (20, 0)
    eot = Member("one", "family", sg.pgd, {"steps": 5, "restarts": 1}, EOT(3, Own()))
    assert pace.work_of(eot) == (15, 0)


class Slow(nn.Module):
    """A hundredth of a second for each image."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01 * len(x))
        scores: Tensor = NET(x)
        return scores


MEMBERS = (Member("one", "family", sg.square, {"queries": 100_000}),)


def test_the_estimate_is_what_the_passes_take() -> None:
    task = Task(Slow(), X, Y, sg.Linf(0.1), (), None, Plan(random=False))
    seconds = pace.longest(task, MEMBERS)
    assert 0.01 * 6 * 100_000 <= seconds < 2 * 0.01 * 6 * 100_000


def test_a_model_that_fails_has_no_estimate() -> None:
    task = Task(nn.Linear(3, 3), X, Y, sg.Linf(0.1), (), None, Plan(random=False))
    assert pace.longest(task, MEMBERS) == 0.0


def test_a_long_audit_says_so_at_once() -> None:
    said: list[str] = []
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        said.append(stage)
        stop.set()

    with pytest.raises(Interrupted):
        sg.audit(Slow(), X, Y, sg.Linf(0.1), extra=MEMBERS, progress=progress, stop=stop)
    assert re.search(r"attacks may take up to \d:\d\d:\d\d", said[1])
    with (
        pytest.warns(SpikeguardWarning, match=r"attacks may take up to .*fewer images"),
        pytest.raises(Interrupted),
    ):
        sg.audit(Slow(), X, Y, sg.Linf(0.1), extra=MEMBERS, stop=stop)


def test_a_short_audit_says_nothing() -> None:
    said: list[str] = []
    task = Task(NET, X, Y, sg.Linf(0.1), (), None, Plan(random=False))
    pace.announce(task, MEMBERS[:0], lambda stage, done, total: said.append(stage))
    assert said == []
