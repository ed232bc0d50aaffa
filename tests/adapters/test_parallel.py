"""Taps and guards on networks that torch runs in several processes, or in copies."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import spikeguard as sg


class Sequence(nn.Module):
    """Two layers of neurons of one kind, time first."""

    def __init__(self, neuron: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), neuron(), nn.Linear(12, 3), neuron())

    def forward(self, x: Tensor) -> Tensor:
        sg.adapters.reset(self)
        logits: Tensor = self.body(4 * x.expand(3, *x.shape)).mean(0)
        return logits


def jelly() -> nn.Module:
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    made: nn.Module = neuron.LIFNode(step_mode="m")
    return made


KINDS: dict[str, Callable[[], nn.Module]] = {"spikeguard": lambda: sg.LIF(decay=0.5), "spikingjelly": jelly}


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("alone")
def test_a_distributed_network_is_read_and_guarded_as_the_one_inside(kind: str) -> None:
    net, x, y = Sequence(KINDS[kind]), torch.rand(5, 6), torch.tensor([0, 1, 2, 0, 1])
    spread = DistributedDataParallel(net)
    found = []
    for model in (net, spread):
        net.zero_grad()
        with sg.tap(model) as opened:
            model(x)
        with sg.guard(model.train(), total_steps=2, steps_done=1, lambda_max=2.0) as g:
            torch.manual_seed(3)
            (F.cross_entropy(model(x), y) + g.penalty()).backward()
            g.step()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        found.append([*opened.potentials.values(), *gradients])
    assert len(found[0]) == 6
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
    assert float(found[0][2].norm()) > 0


def test_copies_in_threads_are_refused_and_a_single_one_is_not() -> None:
    net, x = Sequence(KINDS["spikeguard"]), torch.rand(5, 6)
    parallel = nn.DataParallel(net)  # no device here: it calls its module
    with sg.tap(parallel) as opened:
        logits = parallel(x)
    assert torch.equal(logits, net(x))
    assert list(opened.potentials) == ["module.body.1", "module.body.3"]
    parallel.device_ids = [0, 1]  # as on two devices
    for use in (lambda: sg.tap(parallel), lambda: sg.guard(parallel, total_steps=1)):
        with pytest.raises(sg.UserError, match=r"copies .* no tap sees: use its .module") as error:
            use()
        assert "\n" not in str(error.value)
