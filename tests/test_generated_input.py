"""Generated bad input at the Python border: each value that does not fit ends in one line, nothing else.

GENERATED=1000 python -m pytest tests/test_generated_input.py
"""

import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from narrow import wrong
from torch import nn

import spikeguard as sg
from spikeguard.defenses import DEFENSES
from spikeguard.diagnosis.neighbors import neighbors
from spikeguard.errors import AttackError, UserError

COUNT = int(os.environ.get("GENERATED", "60"))
NAN = float("nan")


class Unprintable:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def tensors() -> st.SearchStrategy[object]:
    kinds = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.complex64]
    shapes = st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(
        lambda s: np.prod(s) != 1 and s != [3]
    )
    return st.builds(lambda kind, shape: torch.full(shape, 9).to(kind), st.sampled_from(kinds), shapes)


JUNK: dict[str, st.SearchStrategy[object]] = {
    "none": st.none(),
    "bool": st.booleans(),
    "int": st.integers(-3, 300),
    "huge": st.sampled_from([10**400, -(10**400)]),
    "float": st.floats(-2, 300).filter(lambda v: v != int(v)),
    "not finite": st.sampled_from([NAN, float("inf"), -float("inf"), np.float32("nan")]),
    "complex": st.complex_numbers(),
    "text": st.text(max_size=8),
    "bytes": st.binary(max_size=8),
    "list": st.lists(
        st.one_of(st.text(), st.none(), st.just(NAN), st.builds(object)), min_size=1, max_size=3
    ),
    "dict": st.dictionaries(st.text(max_size=3), st.builds(object), min_size=1, max_size=2),
    "tensor": tensors(),
    "array": st.builds(
        lambda n, kind: np.full((n, 2), 7, kind),
        st.integers(0, 3),
        st.sampled_from(["i8", "u1", "f4", "S1", "O"]),
    ),
    "class": st.sampled_from([nn.Module, dict, sg.Linf, sg.gradients.BPDA, Unprintable]),
    "function": st.just(lambda *_: 3),
    "object": st.sampled_from([object(), Unprintable(), range(7), ..., NotImplemented]),
}
FITS: dict[object, set[str]] = {
    int: {"int", "huge"},
    float: {"int", "float"},
    bool: {"bool"},
    str: {"text"},
    type(None): {"none"},
    torch.Tensor: {"tensor"},
    dict: {"dict"},
    Mapping: {"dict"},
}
ALWAYS_BAD = ("model", "x", "y", "threat")
"""Arguments that no junk can be, a function that answers with 3 included."""


def fits(hint: object) -> set[str]:
    """Kinds of junk that a hint allows."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or hint is object:
        return set(JUNK)
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(fits, args))
    if origin is Callable or getattr(hint, "_is_protocol", False):
        return {"function", "class"}
    return FITS.get(origin or hint, set())


def arguments(what: Callable[..., object]) -> dict[str, object]:
    """Names and hints of what a call takes."""
    hints = typing.get_type_hints(what)
    if dataclasses.is_dataclass(what):
        return {f.name: hints[f.name] for f in dataclasses.fields(what) if f.init}
    taken = inspect.signature(what).parameters.values()
    return {p.name: hints[p.name] for p in taken if p.kind is not p.VAR_KEYWORD and p.name in hints}


NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
SPIKING = sg.build("small", classes=4, in_shape=(1, 8, 8), timesteps=2, width=2).eval()
DATA: dict[str, Any] = {
    "model": NET,
    "x": torch.rand(3, 1, 8, 8),
    "y": torch.tensor([0, 1, 2]),
    "threat": sg.Linf(0.1),
}
CALLS: dict[Callable[..., object], dict[str, object]] = {
    **{attack.function: DATA for attack in sg.attacks.ATTACKS.values()},
    sg.attacks.ATTACKS["cw"].function: {**DATA, "threat": sg.L2(0.1)},
    sg.audit: {**DATA, "effort": "quick"},
    sg.build: {"network": "small", "classes": 4, "in_shape": (1, 8, 8)},
    sg.tap: {"model": SPIKING},
    sg.load: {},
    sg.load_data: {"name": "cifar10"},
    sg.train: {"recipe": sg.Recipe()},
    neighbors: {"net": SPIKING, "x": DATA["x"]},
    **{getattr(sg, name): {} for name in ("Neuron", "Recipe")},
    sg.Noise: {"sigma": 0.1},
    sg.neurons.Band: {"delta": 0.1},
    sg.auditing.Member: {"id": "mine", "family": "own", "attack": sg.pgd},
    **{getattr(sg.surrogates, n): {} for n in ("Atan", "Triangle", "Sigmoid", "Gaussian", "Exponential")},
    **{getattr(sg.gradients, n): {} for n in ("ASSG", "BPDA", "SoftSpikes", "MeanField", "RGA", "HART")},
    **{getattr(sg.gradients, n): {} for n in ("ZerothOrder", "ThresholdFirst", "NoiseFree", "PerStep")},
    sg.gradients.EOT: {"draws": 2},
    sg.gradients.SwapSurrogate: {"surrogate": sg.surrogates.Atan()},
    sg.gradients.Transfer: {"source": NET},
    **{defense: {} for defense in DEFENSES.values()},
    **{threat: {"eps": 0.1} for threat in (sg.Linf, sg.L2, sg.L1)},
}
CASES = [
    (what, name)
    for what in CALLS
    for name in arguments(what)
    if name in ALWAYS_BAD or fits(arguments(what)[name]) != set(JUNK)
]


def bad_values(what: Callable[..., object], name: str) -> st.SearchStrategy[object]:
    """Values of one argument that do not fit."""
    allowed = fits(arguments(what)[name])
    if what in (sg.Linf, sg.L2, sg.L1):
        allowed = {"float", "int", "tensor", "array"}  # some fit, in some ranges
    if name in ALWAYS_BAD:
        allowed = set()
    if name in ("index", "first"):
        allowed = {"none"}
    return st.one_of([JUNK[kind] for kind in JUNK if kind not in allowed])


BAD_CALLS = st.sampled_from(CASES).flatmap(
    lambda case: st.tuples(st.just(case[0]), st.just(case[1]), bad_values(*case))
)


@settings(
    max_examples=COUNT,
    deadline=None,
    derandomize=COUNT < 1000,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(BAD_CALLS)
def test_a_value_that_does_not_fit_is_refused_in_one_line(
    call: tuple[Callable[..., object], str, object],
) -> None:
    what, name, value = call
    with pytest.raises(UserError) as error:
        what(**{**CALLS[what], name: value})
    line = str(error.value)
    assert type(error.value) in (UserError, AttackError)
    assert line
    assert "\n" not in line
    assert len(line) < 500, f"{what.__name__} {name}: {line}"


def test_there_is_something_to_generate_from() -> None:
    assert len(CASES) > 250
    assert {what.__name__ for what, _ in CASES} >= {*sg.attacks.ATTACKS, "audit", "build", "Member", "AT"}


def test_no_field_of_a_public_class_of_settings_is_left_out() -> None:
    unchecked = []
    for namespace in (sg.gradients, sg.surrogates, sg.neurons, sg.defenses):
        for name in namespace.__all__:
            value = getattr(namespace, name)
            if not (
                dataclasses.is_dataclass(value)
                and isinstance(value, type)
                and wrong(value).__dataclass_params__.frozen
            ):
                continue
            if any(f.init for f in dataclasses.fields(value)) and "checked_fields" not in _made_by(value):
                unchecked.append(name)
    assert unchecked in ([], ["Opened"], ["StudyRow"])


def _made_by(kind: type) -> str:
    return getattr(getattr(kind, "__post_init__", None), "__qualname__", "")


def test_files_and_folders_are_paths_or_text() -> None:
    for bad in (3, b"x", ["a"], Path):
        with pytest.raises(UserError, match="out = "):
            sg.audit(**DATA, out=wrong(bad))
