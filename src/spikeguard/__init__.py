"""Train spiking neural networks that stay right under adversarial attack, and measure how right they stay.

    import spikeguard as sg
    net = sg.load("runs/tgo")
    result = sg.pgd(net, x, y, sg.Linf(8 / 255))

Importing spikeguard does not import torch. Names load when they are first used; ``__init__.pyi`` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping

from spikeguard.lazy import attach


def _renamed() -> Mapping[str, str]:
    from spikeguard.deprecated import NAMES

    return NAMES


__getattr__, __dir__, __all__ = attach(__name__, __file__, _renamed)
