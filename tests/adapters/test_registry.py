"""Which modules the adapters know, by one list of names for all that ask."""

import pytest
from torch import nn

from spikeguard.adapters import layers, reset
from spikeguard.adapters.registry import STATEFUL, framework
from spikeguard.wrapping.neurons import neurons


def kind(module: str, name: str, *bases: type) -> type[nn.Module]:
    """A class as if it came from that module."""
    return type(name, bases or (nn.Module,), {"__module__": module})


@pytest.mark.parametrize(
    ("module", "name", "known"),
    [
        ("spikingjelly.activation_based.base", "MemoryModule", "spikingjelly"),
        ("spikingjelly.clock_driven.base", "MemoryModule", "spikingjelly"),
        ("snntorch._neurons.neurons", "SpikingNeuron", "snntorch"),
        ("norse.torch.module.snn", "SNNRecurrentCell", "norse"),
        ("sinabs.layers.stateful_layer", "StatefulLayer", "sinabs"),
        ("spikingjelly_of_mine", "MemoryModule", None),
        ("mine", "StatefulLayer", None),
        ("sinabs.layers", "SpikingNeuron", None),
    ],
)
def test_a_layer_with_a_state_is_known_by_the_class_it_derives_from(
    module: str, name: str, known: str | None
) -> None:
    base = kind(module, name)
    assert framework(base()) == known
    assert framework(kind("mine", "Own", base)()) == known
    assert neurons(nn.Sequential(own := kind("mine", "Own", base)())) == ([own] if known else [])


def test_every_framework_has_its_names() -> None:
    assert {package: bool(names) for package, names in STATEFUL.items()} == dict.fromkeys(STATEFUL, True)
    assert set(STATEFUL) == {"spikingjelly", "snntorch", "norse", "sinabs"}


def test_what_wrapping_knows_is_reset_also_in_the_old_package_of_spikingjelly() -> None:
    done = []
    node = kind("spikingjelly.clock_driven.base", "MemoryModule")()
    vars(node)["reset"] = lambda: done.append("reset")
    assert layers(node) == {}  # no tap works with it
    reset(nn.Sequential(node))
    assert done == ["reset"]
