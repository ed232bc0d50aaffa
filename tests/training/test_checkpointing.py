"""Activation checkpointing: less memory, and otherwise nothing changes, to the bit."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import spikeguard as sg
from spikeguard.kernels import compiler
from spikeguard.kernels.mode import Band
from spikeguard.networks.blocks import Blocks
from spikeguard.neurons import Noise, seed_noise, spiking

Step = tuple[Tensor, tuple[Tensor, ...], dict[str, Tensor], Tensor, float]


def step(name: str, checkpoint: bool, options: dict[str, Any]) -> Step:
    """Two noisy forwards with a band, one backward for both.

    Loss, gradients, buffers, how often blocks ran.
    """
    torch.manual_seed(3)
    net = sg.build(
        name, classes=5, in_shape=(2, 16, 16), timesteps=3, neuron=sg.Neuron(decay=0.5), **options
    ).train()
    net.prefer(checkpoint=checkpoint)
    for layer in spiking(net).values():
        layer.noise = Noise(0.3)
    seed_noise(net, 7)
    ran: list[int] = []
    blocks = next(m for m in net.modules() if isinstance(m, Blocks))
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: ran.append(1))
    x = torch.rand(6, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    with sg.tap(net, band=Band(0.5)) as opened, sg.tap(net, noise=Noise(0.2, "membrane"), seed=5):
        loss = F.cross_entropy(net(x), torch.arange(6) % 5) + F.cross_entropy(
            net(x.flip(0)), torch.arange(6) % 5
        )
        loss = loss + torch.stack(list(opened.penalties.values())).sum()
    seen = len(opened.penalties)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    assert len(opened.penalties) == seen, "the repetition was recorded"
    again = net(x).detach()  # the noise sources stand where they stood
    return loss.detach(), gradients, net.state_dict(), again, len(ran) / len(blocks)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("name", "options"),
    [("small", {"width": 4, "depth": 2}), ("vgg11", {"hidden": (8,)}), ("wrn16", {"widen": 1})],
)
def test_checkpointing_changes_no_bit(
    name: str, options: dict[str, Any], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "WORTHWHILE", 0 if native else 2**62)
    plain, kept = step(name, False, options), step(name, True, options)
    assert torch.equal(plain[0], kept[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], kept[1], strict=True))
    assert all(torch.equal(v, kept[2][k]) for k, v in plain[2].items())
    assert torch.equal(plain[3], kept[3])
    assert (plain[4], kept[4]) == (3, 5), "forwards of a block: two and one more, each of the two once again"


def test_a_checkpointed_step_keeps_fewer_tensors() -> None:
    """Bytes that the graph of one forward holds on to."""

    def held(checkpoint: bool) -> int:
        net = (
            sg.build("wrn16", classes=5, in_shape=(1, 16, 16), widen=1).train().prefer(checkpoint=checkpoint)
        )
        kept: dict[int, int] = {}

        def pack(t: torch.Tensor) -> torch.Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net(torch.rand(16, 1, 16, 16))
        return sum(kept.values())

    assert held(True) < 0.5 * held(False)
