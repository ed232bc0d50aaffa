"""From what a network answers to logits ``[N, K]``."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from spikeguard.arguments import shown
from spikeguard.errors import ModelError


def _mean(steps: Tensor) -> Tensor:
    return steps.mean(0)


def _sum(steps: Tensor) -> Tensor:
    return steps.sum(0)


def _last(steps: Tensor) -> Tensor:
    return steps[-1]


def _max(steps: Tensor) -> Tensor:
    return steps.amax(0)


def _first_spike(steps: Tensor) -> Tensor:
    """Steps from a neuron's first spike to the end, ``[N, K]``: the sooner it fires, the higher.

    The product is 1 until the first spike, so that the score has the gradient of the spikes.
    """
    return (1 - (1 - steps.clamp(0, 1)).cumprod(0)).sum(0)


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "sum": _sum,
    "last": _last,
    "max": _max,
    "first_spike": _first_spike,
}
"""Logits ``[N, K]`` of the answers of every step, ``[T, N, K]``, by the name that ``wrap`` takes."""


def part(answer: object, output: int | str | None) -> Tensor:
    """The tensor of an answer that a user names by its place or name.

    None takes a tensor as it is, the first part of a tuple, the part 'logits' of a mapping.
    """
    if isinstance(answer, Tensor) and output is None:
        return answer
    where: int | str = output if output is not None else 0
    if isinstance(answer, Mapping):
        where = output if output is not None else "logits"
    try:
        found = getattr(answer, where) if _is_field(answer, where) else answer[where]  # type: ignore[index, arg-type]
    except (LookupError, TypeError) as error:
        raise ModelError(f"the model's answer, {_described(answer)}, has no part {where!r}") from error
    if not isinstance(found, Tensor):
        raise ModelError(f"part {where!r} of the model's answer is {shown(found)}, must be a tensor")
    return found


def _is_field(answer: object, where: int | str) -> bool:
    return isinstance(where, str) and not isinstance(answer, Mapping) and hasattr(answer, where)


def _described(answer: object) -> str:
    if isinstance(answer, Mapping):
        return f"a mapping of {', '.join(map(repr, answer))}"
    return f"a tuple of {len(answer)}" if isinstance(answer, (tuple, list)) else shown(answer)
