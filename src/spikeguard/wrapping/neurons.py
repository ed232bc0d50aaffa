"""Neurons of other frameworks: which modules they are, and their state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from spikeguard.adapters.registry import framework, layers


def neurons(model: object) -> list[nn.Module]:
    """All modules of a model that are neurons of a framework, keep a state, or were added to the adapters."""
    if not isinstance(model, nn.Module):
        return []
    known = set(map(id, firing(model)))
    return [m for m in model.modules() if id(m) in known or framework(m) is not None]


def firing(model: nn.Module) -> list[nn.Module]:
    """The modules that fire; a framework's dropout and leaky integrators, which keep a state too, do not."""
    return [layer.module for layer in layers(model).values()]


def takes_sequences(model: nn.Module) -> dict[int, bool]:
    """Whether each layer of neurons computes all steps in one call, by the id of its module."""
    return {id(layer.module): layer.whole for layer in layers(model).values()}


def state_names(model: nn.Module) -> set[str]:
    """Names in ``state_dict`` that hold the state of neurons, which every call makes anew."""
    state = {
        id(buffer)
        for module in model.modules()
        if framework(module) == "sinabs"
        for buffer in module.buffers(recurse=False)
    }
    return {name for name, t in model.state_dict(keep_vars=True).items() if id(t) in state}


@contextmanager
def state_kept(modules: list[nn.Module]) -> Iterator[None]:
    """Put back what these modules refer to, their buffers and memories among it, by reference."""
    before = [(vars(m), dict(vars(m))) for m in modules]
    tables = [(t, dict(t)) for held, _ in before for t in held.values() if isinstance(t, dict)]
    try:
        yield
    finally:
        for now, then in (*before, *tables):
            for name in [n for n in now if n not in then]:
                del now[name]
            now.update({n: value for n, value in then.items() if now.get(n, now) is not value})


@contextmanager
def in_training(modules: list[nn.Module]) -> Iterator[None]:
    """These modules are in training mode, and nothing inside or around them."""
    modes = [(m, m.training) for m in modules]
    try:
        for m in modules:
            m.training = True
        yield
    finally:
        for m, mode in modes:
            m.training = mode


def state_of(model: nn.Module) -> list[str]:
    """Names of the tensors that a model of unknown neurons keeps besides its parameters and buffers."""
    return [
        f"{name}.{attribute}".lstrip(".")
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
