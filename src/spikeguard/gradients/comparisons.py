"""Spikes that plain torch expressions compute: a mode that reads comparisons while a gradient is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode

from spikeguard.gradients.by_value import ARITHMETIC, recognized, soft_alone
from spikeguard.gradients.comparison_rules import ABOVE, BELOW, Args, Function, Kwargs, rule_of
from spikeguard.gradients.readings import Readings

BUILT_IN = {"aten", "prim", "prims"}
"""Namespaces of operators that are not written in Python."""
PASSED_OVER = ("ADInplaceOrView", "BackendSelect", "AutocastCPU", "AutocastCUDA")
"""Dispatch keys that operators without a kernel of their own for them pass over; ``redispatch`` does not."""


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
            return recognized(self, func, args, kwargs, self._dispatched(func, args, kwargs))
        out = self._ruled(func, args, kwargs)
        if getattr(func, "__name__", "") in ARITHMETIC:
            soft_alone(self, func, args, kwargs, out)
        return recognized(self, func, args, kwargs, out)

    def _ruled(self, func: Function, args: Args, kwargs: Kwargs) -> object:
        rule = rule_of(func)
        if rule is None or ("out" in kwargs and getattr(func, "__name__", "") not in ABOVE | BELOW):
            out = func(*args, **kwargs)
            if getattr(func, "__name__", "").endswith("_") and args and isinstance(args[0], Tensor):
                self.readings.pop(args[0], None)  # written into
            return out
        return rule(self, func, args, kwargs)

    def _dispatched(self, func: OpOverload, args: Args, kwargs: Kwargs) -> object:
        """A custom operator, with modes at work inside: a plain call would leave the one that calls out."""
        tensors = [t for t in pytree.tree_leaves((args, dict(kwargs))) if isinstance(t, Tensor)]
        if not tensors:
            return func(*args, **kwargs)
        keys = torch._C._dispatch_tls_local_include_set()
        for tensor in tensors:
            keys = keys | torch._C._dispatch_keys(tensor)
        keys = keys - torch._C._dispatch_tls_local_exclude_set()
        for key in PASSED_OVER:
            if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
                keys = keys.remove(torch._C._dispatch_key_parse(key))
        with self:
            return func.redispatch(keys, *args, **kwargs)
