"""Which arguments of ``wrap`` a network seems to need, found by trying, and the line that says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor, nn

from spikeguard.adapters.registry import framework, reset
from spikeguard.inputs import not_dense
from spikeguard.models import Model, eval_mode, moved, rounding
from spikeguard.wrapping import neurons
from spikeguard.wrapping.wrapped import Calling, Layout, Wrapped

STEPS = (
    "timesteps",
    "num_steps",
    "T",
    "time_steps",
    "n_steps",
    "steps",
    "time_window",
    "time_step",
    "seq_length",
)
"""Names under which networks keep the number of their steps."""
TRIED = 4  # steps where a network does not say how many it takes
ROWS = 3  # images that it is tried on: no other dimension is likely to be as long


def suggestion(model: Model, x: Tensor, carries_state: bool = False) -> str:
    """``use sg.wrap(model, ...)`` with arguments that make logits of the network's answers, or ""."""
    if not isinstance(model, nn.Module) or isinstance(model, Wrapped):
        return ""
    if carries_state and not neurons.neurons(model):
        held = ", ".join(neurons.state_of(model)[:3])
        return f"use sg.wrap(model, reset=f) with a function f(model) that clears {held or 'its state'}"
    calling = guess(model, x)
    if calling is None:
        return ""
    own, steps = steps_of(model), calling.timesteps
    text = calling.written()
    more = ""
    if steps is not None and own is None:
        text = text.replace(f"timesteps={steps}", "timesteps=T")
        more = " with the T it was trained with"
    return f"use sg.wrap(model{', ' if text else ''}{text}){more}"


def guess(model: nn.Module, x: Tensor) -> Calling | None:
    """The first way of calling a network that gives logits ``[N, K]`` of images; None if none does."""
    x = torch.cat([x] * ROWS)[:ROWS]
    with eval_mode(model), torch.no_grad():
        for calling in _ways(model, x):
            if found := _tried(model, x, calling):
                return found
    return None


def steps_of(model: nn.Module) -> int | None:
    """The number of steps that a network keeps under a usual name."""
    for name in STEPS:
        value = getattr(model, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000:
            return value
    return None


def _ways(model: nn.Module, x: Tensor) -> Iterator[Calling]:
    """Ways to call the network, those that fit its neurons first."""
    steps, held = steps_of(model) or TRIED, neurons.neurons(model)
    layouts: tuple[Layout, ...] = ("time_first", "batch_first")
    if any(framework(m) == "sinabs" for m in held):
        layouts = layouts[::-1]
    if x.dim() == 5:
        yield from (Calling(layout=layout, encoder="frames") for layout in (*layouts, "steps"))
    sequences = [Calling(steps, layout) for layout in layouts]
    if any(hasattr(m, "squeeze_forward") for m in held):
        yield Calling(steps, "folded")
    if any(neurons.takes_sequences(model).values()):
        yield from sequences
        yield Calling()
    else:
        yield Calling()
        yield from sequences
    yield Calling(steps)


def _tried(model: nn.Module, x: Tensor, calling: Calling) -> Calling | None:
    """The way as it works, with the parts of the answer that it takes; None if it does not."""
    sequences = neurons.takes_sequences(model)
    stepping = [m for m in neurons.neurons(model) if not sequences.get(id(m), False)]
    try:
        with _Calls(stepping) as fewer:
            _answer(model, x[1:], calling)
        with _Calls(stepping) as calls:
            answer = _answer(model, x, calling)
    except Exception:  # the network's code may raise anything: this is not the way
        return None
    if calls.counts != fewer.counts:  # it takes images for steps
        return None
    if calling == Calling() and calls.once:
        return _tried(model, x, Calling(steps_of(model) or TRIED))
    output = None if isinstance(answer, Tensor) else _place(answer)
    chosen = replace(calling, output=output, state=_state(model, answer, calling))
    layouts: tuple[Layout, ...] = (
        (calling.layout, "batch_first") if calling == Calling() else (calling.layout,)
    )
    for layout in layouts:
        one = replace(chosen, layout=layout)
        try:
            wrapped = Wrapped(model, one)
            logits, other = wrapped(x), wrapped(torch.cat([1 - x[:1], x[1:]]))
            if not_dense(logits) or not logits.is_floating_point():
                continue
        except Exception:  # as above
            continue
        # in the wrong layout the first image is the first step of the others
        if bool((moved(logits[1:], other[1:]) <= rounding(logits)).all()):
            return one
    return None


class _Calls(ExitStack):
    """Counts how often neurons that compute one step are called."""

    def __init__(self, held: list[nn.Module]) -> None:
        super().__init__()
        self.held, self.counts = held, dict.fromkeys(map(id, held), 0)

    def __enter__(self) -> _Calls:
        for module in self.held:
            handle = module.register_forward_pre_hook(self._count)
            self.callback(handle.remove)
        return self

    def _count(self, module: nn.Module, *_: object) -> None:
        self.counts[id(module)] += 1

    @property
    def once(self) -> bool:
        """Whether the network advances by one step a call: its neurons are called once, for one step."""
        return bool(self.held) and all(count <= 1 for count in self.counts.values())


def _answer(model: nn.Module, x: Tensor, calling: Calling) -> object:
    """The answer of one call; the network's state is put back."""
    with neurons.state_kept(neurons.neurons(model)):
        reset(model)
        if calling == Calling():
            return model(x)
        frames = calling.encoder == "frames"
        sequence = x.transpose(0, 1) if frames else x.expand(calling.timesteps or 1, *x.shape)
        if calling.layout == "steps":
            return model(sequence[0])
        if calling.layout == "time_first":
            return model(sequence)
        turned = sequence.transpose(0, 1)
        return model(turned if calling.layout == "batch_first" else turned.flatten(0, 1))


def _place(answer: object) -> int | str | None:
    """Where the scores lie in an answer: the first tensor."""
    if isinstance(answer, dict):
        return (
            "logits"
            if "logits" in answer
            else next((k for k, v in answer.items() if isinstance(v, Tensor)), None)
        )
    if isinstance(answer, (tuple, list)):
        return next((i for i, v in enumerate(answer) if isinstance(v, Tensor)), None)
    return None


def _state(model: nn.Module, answer: object, calling: Calling) -> int | None:
    """The part of the answer that goes into the next step: norse hands its state back."""
    explicit = any(framework(m) == "norse" for m in model.modules())
    if calling.layout != "steps" or calling == Calling() or not explicit:
        return None
    if isinstance(answer, tuple) and len(answer) == 2 and not isinstance(answer[1], Tensor):
        return 1
    return None
