"""Spikes that plain torch expressions compute: a mode that reads comparisons while a gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from spikeguard.gradients.comparison_rules import Args, Function, Kwargs, rule_of
from spikeguard.gradients.readings import Readings

BUILT_IN = {"aten", "prim", "prims"}
"""Namespaces of operators that are not written in Python."""


@contextmanager
def autograd_on() -> Iterator[None]:
    """Operations inside are recorded, also where a custom operator runs below autograd."""
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.AutogradFunctionality, False):
        yield


class SpikeReader(Readings, TorchFunctionMode):
    """Reads comparisons made inside it."""

    def __torch_function__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not self.recording:
            return self._handled(func, args, kwargs)
        with autograd_on():
            return self._handled(func, args, kwargs)

    def _handled(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        if isinstance(func, OpOverload) and func.namespace not in BUILT_IN:
            with self:
                return _dispatched(func, args, kwargs)
        rule = rule_of(func)
        if rule is None or "out" in kwargs:
            out = func(*args, **kwargs)
            if getattr(func, "__name__", "").endswith("_") and args and isinstance(args[0], Tensor):
                self.readings.pop(args[0], None)  # written into
            return out
        return rule(self, func, args, kwargs)


def _dispatched(func: OpOverload, args: Args, kwargs: Kwargs) -> object:
    """A custom operator, with modes at work inside: a plain call would leave the one that calls out."""
    tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
    if not tensors:
        return func(*args, **kwargs)
    keys = torch._C._dispatch_tls_local_include_set()
    for tensor in tensors:
        keys = keys | torch._C._dispatch_keys(tensor)
    return func.redispatch(keys - torch._C._dispatch_tls_local_exclude_set(), *args, **kwargs)
