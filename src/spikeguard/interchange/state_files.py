"""Weights of other code: tensors by name, out of whatever was saved around them. Nothing is unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from spikeguard.arguments import error_line, shown
from spikeguard.errors import UserError

LARGEST = 2**32
"""Bytes of a file: 4 GiB."""
NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights")
"""Where training scripts put a model's weights, beside an optimizer's."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers put before every name: DataParallel, torch.compile, and classes that hold a model."""
IGNORED = ("num_batches_tracked", "total_ops", "total_params")
"""Last parts of names that mean nothing in evaluation."""
MORE_THAN_TENSORS = (SafetensorError, pickle.UnpicklingError)
UNREADABLE = (
    *MORE_THAN_TENSORS,
    RuntimeError,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    AttributeError,
    TypeError,
)
"""What reading a file raises that is damaged or holds something else."""


class State:
    """Tensors by name that are taken one after the other; what nobody takes is refused by name."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = dict(tensors), where
        self.untaken = set(self.tensors)

    def has(self, name: str) -> bool:
        """Is there a tensor of that name?"""
        return name in self.tensors

    def take(self, name: str, dims: int) -> Tensor:
        """The tensor of that name, in float32; UserError if it is missing or has other dimensions."""
        if name not in self.tensors:
            raise UserError(f"{self.where}: no tensor {name!r}; is it of another layout?")
        tensor = self.tensors[name]
        if tensor.dim() != dims or not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(
                f"{self.where}: {name} is {shown(tensor)}, must be {dims} dimensions of finite floats"
            )
        self.untaken.discard(name)
        return tensor.float()

    def count(self, pattern: str) -> int:
        """How many whole numbers, from 0 on, fit the ``#`` of a name's beginning."""
        number = 0
        while any(name.startswith(pattern.replace("#", str(number))) for name in self.tensors):
            number += 1
        return number

    def finish(self) -> None:
        """UserError if something was left: it would be missing in the network."""
        if self.untaken:
            names = sorted(self.untaken)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"{self.where}: {names[0]!r}{more} has no place in this layout")


def read_state(source: str | Path | Mapping[str, object], renames: Sequence[tuple[str, str]]) -> State:
    """The tensors of a file or a dictionary, without wrappers' prefixes, renamed by regular expressions.

    Two names that become one must hold the same numbers. Raises UserError otherwise, and on a file that is
    missing, too large, damaged, or holds anything but tensors and plain values.
    """
    if isinstance(source, (str, Path)):
        where, values = Path(source).name, _read(Path(source))
    else:
        where, values = "import_state", source
    tensors: dict[str, Tensor] = {}
    for name, tensor in _unwrapped(_nested(values, where)).items():
        if name.rpartition(".")[2] in IGNORED:
            continue
        new = _renamed(name, renames)
        if new in tensors and not torch.equal(tensors[new], tensor):
            raise UserError(f"{where}: {name} and another name for {new} differ")
        tensors[new] = tensor
    return State(tensors, where)


def held_in(path: Path) -> object:
    """What a file of safetensors or of torch holds, on the CPU; raises one of ``UNREADABLE``.

    Nothing is unpickled but tensors and plain containers of them.
    """
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    held: object = torch.load(path, map_location="cpu", weights_only=True)
    return held


def _read(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise UserError(f"import_state: no file {str(path)!r}")
    if (size := path.stat().st_size) > LARGEST:
        raise UserError(f"import_state: {path} has {size:,} bytes, at most {LARGEST:,} are read")
    try:
        loaded = held_in(path)
    except MORE_THAN_TENSORS as error:
        raise UserError(
            f"import_state: {path} holds more than weights, or is damaged ({error_line(error)})"
        ) from error
    except UNREADABLE as error:
        raise UserError(
            f"import_state: {path} is damaged or holds no weights ({error_line(error)})"
        ) from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"import_state: {path} holds {shown(loaded)}, must be tensors by name")
    return loaded


def _nested(values: Mapping[str, object], where: str) -> dict[str, Tensor]:
    """The tensors, and not an optimizer's: of the first known name that holds a dictionary of them."""
    for name in NESTS:
        if isinstance(inside := values.get(name), Mapping):
            return _nested(inside, where)
    tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{where}: no tensors by name, neither at the top nor in {', '.join(NESTS)}")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without a prefix that all names share."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors


def _renamed(name: str, renames: Sequence[tuple[str, str]]) -> str:
    for pattern, new in renames:
        name = re.sub(pattern, new, name)
    return name
