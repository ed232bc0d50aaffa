"""From the weights of published code to a network of spikeguard's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spikeguard.arguments import checked
from spikeguard.errors import UserError, unknown
from spikeguard.interchange import sew, snn_rat, tet
from spikeguard.interchange.layout import Layout, Settings
from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.state_files import read_state
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import Neuron

LAYOUTS: dict[str, Layout] = {**snn_rat.LAYOUTS, **tet.LAYOUTS, **sew.LAYOUTS}


@checked
def import_state(
    source: str | Path | Mapping[str, object],
    layout: str,
    *,
    timesteps: int,
    mean: Sequence[float],
    std: Sequence[float],
    in_shape: Sequence[int] | None = None,
    neuron: Neuron | None = None,
) -> Classifier | ImportedNetwork:
    """Turn the weights of published code into a network on images ``[N, C, H, W]`` in [0, 1], in eval mode.

    ``source``: a file (``.safetensors``, or ``.pth`` without pickled objects, at most 4 GiB) or a
    dictionary, also one that holds ``state_dict`` beside an optimizer's. ``layout``: 'snn-rat/vgg11',
    'snn-rat/wrn16' (networks of ``sg.build``), 'tet/vggsnn', 'tet/resnet19', 'sew/resnet-add'. Weights
    hold neither the number of steps nor ``mean`` and ``std`` of the normalization ((0,) and (1,) for none)
    nor, mostly, ``in_shape`` (C, H, W); the neurons are those of the code unless ``neuron`` is given. Raises
    UserError on a tensor that is missing, left over or of another shape, by name.

    >>> there = sg.build("vgg11", classes=10, in_shape=(3, 8, 8), timesteps=2, hidden=(8, 8)).state_dict()
    >>> try:
    ...     sg.interchange.import_state(there, "snn-rat/vgg11", timesteps=2, mean=(0.0,), std=(1.0,))
    ... except sg.UserError as error:
    ...     print(error)
    import_state: not VGG-11 of SNN-RAT; its VGG-5, 13, 16 and 19 are not supported
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS, "import_state: ")
    known = LAYOUTS[layout]
    if timesteps < 1:
        raise UserError(f"import_state: timesteps = {timesteps} must be at least 1")
    if any(s <= 0 for s in std):
        raise UserError(f"import_state: std = {tuple(std)} must be above 0")
    state = read_state(source, known.renames)
    settings = Settings(_shape(in_shape), timesteps, tuple(mean), tuple(std), neuron or known.neuron)
    net = known.make(state, settings)
    state.finish()
    return net


def _shape(given: Sequence[int] | None) -> tuple[int, int, int] | None:
    if given is None:
        return None
    if len(given) != 3 or min(given) < 1:
        raise UserError(f"import_state: in_shape = {tuple(given)} must be (channels, height, width)")
    return given[0], given[1], given[2]
