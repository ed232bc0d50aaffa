"""Scripted functions and modules, run operation by operation in Python while a gradient is taken.

TorchScript runs below every mode of Python, so that nothing inside is seen. Its graph is known, however, and
each operation of it can be called from here, where modes see it. What holds an operation that is not known
here runs as it is.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch._C import Block, Graph, Node, ScriptMethod

from spikeguard.gradients.installed import replaced
from spikeguard.gradients.spike import Raw

COMPARISONS = {"aten::gt", "aten::ge", "aten::lt", "aten::le", "aten::heaviside", "aten::sign"}
Run = Callable[[Raw, Callable[..., Raw], tuple[Raw, ...], Mapping[str, Raw]], Raw]
Values = dict[str, Raw]


def _append(held: list[Raw], value: object) -> list[Raw]:
    held.append(value)
    return held


def _set_item(held: Raw, at: Raw, value: object) -> Raw:
    held[at] = value
    return held


def _raise(message: object, *kind: object) -> None:
    raise RuntimeError(str(message))


SCALARS: dict[str, Callable[..., Raw]] = {
    **{f"aten::{n}": getattr(operator, n) for n in ("add", "sub", "mul", "floordiv", "truediv")},
    **{f"aten::{n}": getattr(operator, n) for n in ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pow")},
    "aten::div": operator.truediv,
    "aten::remainder": operator.mod,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
}
"""Operations on numbers, texts and lists."""
PYTHON: dict[str, Callable[..., Raw]] = {
    "aten::__not__": operator.not_,
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__contains__": operator.contains,
    "aten::append": _append,
    "aten::_set_item": _set_item,
    "aten::format": lambda text, *values: text.format(*values),
    "aten::warn": lambda *_: None,
    "aten::Bool": bool,
    "aten::Int": int,
    "aten::Float": float,
    "aten::len": len,
    "aten::dim": lambda t: t.dim(),
    "aten::size": lambda t, *at: list(t.size()) if not at else t.size(*at),
    "prim::ListConstruct": lambda *values: list(values),
    "prim::TupleConstruct": lambda *values: values,
    "prim::TupleIndex": lambda values, at, *_: values[at],
    "prim::unchecked_cast": lambda value: value,
    "prim::Uninitialized": lambda: None,
    "prim::RaiseException": _raise,
    "prim::NumToTensor": torch.tensor,
    "prim::dtype": lambda t: t.dtype,
    "prim::device": lambda t: t.device,
    "prim::is_cuda": lambda t: t.is_cuda,
    "prim::requires_grad": lambda t: t.requires_grad,
    "prim::data": lambda t: t.data,
    "prim::min": min,
    "prim::max": max,
}
FLOW = {"prim::Constant", "prim::GetAttr", "prim::SetAttr", "prim::If", "prim::Loop", "prim::PythonOp"}
FLOW |= {"prim::TupleUnpack", "prim::ListUnpack"}
TORCH = ("detach", "round", "floor", "ceil", "trunc", "clamp", "softmax", "tanh", "sigmoid", "relu")
"""Operations called by their name in torch, by which modes know them."""


@contextmanager
def calls_to(run: Run) -> Iterator[None]:
    """Calls of scripted code are run by ``run(code, call, args, kwargs)``, in every thread."""
    with (
        replaced(torch._C.ScriptFunction, "__call__", lambda original: _met(original, run)),
        replaced(ScriptMethod, "__call__", lambda original: _met(original, run)),
    ):
        yield


def _met(original: Callable[..., Raw], run: Run) -> Callable[..., Raw]:
    def call(code: Raw, *args: Raw, **kwargs: Raw) -> Raw:
        return run(code, lambda: original(code, *args, **kwargs), args, kwargs)

    return call


def graph_of(code: Raw, known: dict[str, Graph]) -> Graph:
    """The graph of scripted code, inner calls written out; ``known`` keeps graphs by their text."""
    key = f"{getattr(code, 'name', '')} {code.graph}"
    if key not in known:
        known[key] = code.inlined_graph
    return known[key]


def is_known(graph: Graph) -> bool:
    """Whether every operation of a graph can be run here."""
    return all(
        node.kind() in FLOW
        or node.kind() in PYTHON
        or (node.kind().startswith("aten::") and hasattr(torch.ops.aten, node.kind()[6:]))
        for node in _nodes(graph)
    )


def compares(graph: Graph) -> bool:
    """Whether a graph holds a comparison, which could be a spike."""
    return any(node.kind() in COMPARISONS for node in _nodes(graph))


def _nodes(block: Graph | Block) -> Iterator[Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _nodes(inner)


def run_graph(code: Raw, graph: Graph, args: Sequence[Raw], kwargs: Mapping[str, Raw]) -> Raw:
    """What scripted code gives, from its graph."""
    inputs = list(graph.inputs())
    owner = [code.owner] if isinstance(code, ScriptMethod) else []
    names = [argument.name for argument in code.schema.arguments][len(owner) :]
    defaults = [argument.default_value for argument in code.schema.arguments][len(owner) :]
    given = [*args, *(kwargs.get(n, d) for n, d in list(zip(names, defaults, strict=True))[len(args) :])]
    values: Values = {value.debugName(): held for value, held in zip(inputs, [*owner, *given], strict=True)}
    outputs = _run_block(graph, values)
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _run_block(block: Graph | Block, values: Values) -> list[Raw]:
    for node in block.nodes():
        outputs = _run_node(node, values)
        for value, held in zip(node.outputs(), outputs, strict=True):
            values[value.debugName()] = held
    return [values[value.debugName()] for value in block.outputs()]


def _run_node(node: Node, values: Values) -> Sequence[Raw]:
    kind, given = node.kind(), [values[value.debugName()] for value in node.inputs()]
    count = node.outputsSize()
    if kind == "prim::Constant":
        return [node.output().toIValue()]
    if kind == "prim::GetAttr":
        return [given[0].getattr(node.s("name"))]
    if kind == "prim::SetAttr":
        given[0].setattr(node.s("name"), given[1])
        return []
    if kind == "prim::If":
        return _run_block(list(node.blocks())[0 if given[0] else 1], values)
    if kind == "prim::Loop":
        return _run_loop(node, given, values)
    if kind in ("prim::TupleUnpack", "prim::ListUnpack"):
        return list(given[0])
    if kind == "prim::PythonOp":
        out = node.pyobj()(*given)  # type: ignore[attr-defined]
        return [out] if count == 1 else list(out or ())
    out = _operation(kind, node, given)
    return [out] if count == 1 else list(out) if count else []


def _run_loop(node: Node, given: Sequence[Raw], values: Values) -> list[Raw]:
    limit, goes_on, *carried = given
    (block,) = node.blocks()
    trip, *names = [value.debugName() for value in block.inputs()]
    turn = 0
    while goes_on and turn < limit:
        values[trip] = turn
        values.update(zip(names, carried, strict=True))
        goes_on, *carried = _run_block(block, values)
        turn += 1
    return carried


def _operation(kind: str, node: Node, given: Sequence[Raw]) -> Raw:
    if kind in PYTHON:
        return PYTHON[kind](*given)
    tensors = any(isinstance(v, Tensor) for v in given)
    if kind in SCALARS and not tensors:
        return SCALARS[kind](*given[: 1 if kind == "aten::neg" else 2])
    if kind == "aten::__getitem__":
        return given[0][given[1]]
    name = kind.removeprefix("aten::")
    keywords = _keyword_only(node.schema())
    positional, rest = given[: len(given) - len(keywords)], given[len(given) - len(keywords) :]
    named = {k: v for k, v in zip(keywords, rest, strict=True) if v is not None}
    function = getattr(torch if name in TORCH else torch.ops.aten, name)
    return function(*positional, **named)


@cache
def _keyword_only(schema: str) -> tuple[str, ...]:
    """Names of the arguments after the star in the text of a schema."""
    inside = schema[schema.index("(") + 1 : schema.rindex(") ->")]
    if "*, " not in inside:
        return ()
    return tuple(part.split("=")[0].split(" ")[-1] for part in inside.split("*, ", 1)[1].split(", "))
