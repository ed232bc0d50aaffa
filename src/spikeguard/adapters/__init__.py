"""Neurons of any framework: read, disturbed and reset from outside, without a change of the model."""

from spikeguard.adapters.base import Layer
from spikeguard.adapters.custom import add, remove
from spikeguard.adapters.registry import layers, reset
from spikeguard.adapters.tap import Tap

__all__ = ["Layer", "Tap", "add", "layers", "remove", "reset"]
