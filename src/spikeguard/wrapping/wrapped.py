"""A network as a model: images ``[N, ...]`` in [0, 1] to logits ``[N, K]``, without state between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spikeguard.adapters import reset
from spikeguard.errors import ModelError
from spikeguard.wrapping import neurons
from spikeguard.wrapping.encoders import ENCODERS
from spikeguard.wrapping.outputs import REDUCTIONS, part

Layout = Literal["steps", "time_first", "batch_first", "folded"]
Reset = Callable[[nn.Module], object]
INNER = "model."


@dataclass(frozen=True)
class Calling:
    """How a network is called; the arguments of ``wrap``, which explains them."""

    timesteps: int | None = None
    layout: Layout = "steps"
    output: int | str | None = None
    reduce: str = "mean"
    state: int | None = None
    encoder: str = "direct"

    def written(self) -> str:
        """The arguments that differ from the defaults, as code."""
        given = {k: v for k, v in vars(self).items() if v != getattr(Calling, k)}
        return ", ".join(f"{k}={v!r}" for k, v in given.items())


class Wrapped(nn.Module):
    """What ``wrap`` returns: a model that holds the network, ``model``, and resets it around every call.

    Its state dict is that of the network; ``to``, ``train`` and ``eval`` reach the network. ``notes``: what
    was found and mended, one line each.
    """

    def __init__(self, model: nn.Module, calling: Calling) -> None:
        super().__init__()
        self.model, self.calling = model, calling
        self.encoder = ENCODERS[calling.encoder]()
        self.own_reset: Reset | None = None
        self.open_gradient = False
        self.notes: tuple[str, ...] = ()
        self.register_buffer("mean", None, persistent=False)
        self.register_buffer("std", None, persistent=False)
        self.mean: Tensor | None
        self.std: Tensor | None
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]

    def normalized_by(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Normalize images by mean and standard deviation, one number or one a channel."""
        for name, values in (("mean", mean), ("std", std)):
            held = None if values is None else torch.tensor(tuple(values), dtype=torch.float32)
            self.register_buffer(name, held, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[N, K]`` of images ``[N, ...]``."""
        held = neurons.neurons(self.model)
        with ExitStack() as stack:
            stack.enter_context(neurons.state_kept(held))
            if self.open_gradient and not self.training:
                stack.enter_context(neurons.in_training(neurons.firing(self.model)))
            self._reset()
            try:
                return self._logits(x)
            finally:
                if self.own_reset is not None:
                    self.own_reset(self.model)

    @property
    def has_frames(self) -> bool:
        """Whether samples have a time of their own, ``[N, T, ...]``."""
        return self.calling.encoder == "frames"

    def extra_repr(self) -> str:
        """How it is called and normalized: records hold a digest of what a model prints."""
        numbers = {n: v.tolist() for n, v in (("mean", self.mean), ("std", self.std)) if v is not None}
        return ", ".join([self.calling.written(), *(f"{n}={v}" for n, v in numbers.items())]).strip(", ")

    def _reset(self) -> None:
        reset(self.model)
        if self.own_reset is not None:
            self.own_reset(self.model)

    def _logits(self, x: Tensor) -> Tensor:
        x = self._normalized(x)
        calling, n = self.calling, len(x)
        if calling.timesteps is None and not self.has_frames:
            return self._reduced(part(self.model(x), calling.output), n, 0)
        sequence: Tensor = self.encoder(x, calling.timesteps)
        if calling.layout == "steps":
            return self._reduced(torch.stack(self._steps(sequence)), n, len(sequence))
        if calling.layout == "time_first":
            answer = self.model(sequence)
        elif calling.layout == "batch_first":
            answer = self.model(sequence.transpose(0, 1))
        else:
            with _squeezed(self.model, len(sequence)):
                answer = self.model(sequence.transpose(0, 1).flatten(0, 1))
        return self._reduced(part(answer, calling.output), n, len(sequence))

    def _steps(self, sequence: Tensor) -> list[Tensor]:
        """The answer of every step; a network that hands its state back gets it again."""
        calling, answers, carried = self.calling, list[Tensor](), list[object]()
        for x in sequence:
            answer: object = self.model(x, *carried)
            if calling.state is not None:
                carried = [answer[calling.state]]  # type: ignore[index]
            answers.append(part(answer, calling.output))
        return answers

    def _normalized(self, x: Tensor) -> Tensor:
        def over_pixels(values: Tensor) -> Tensor:
            return (values.view(-1, 1, 1) if x.dim() >= 4 else values).to(x.dtype)

        centered = x if self.mean is None else x - over_pixels(self.mean)
        return centered if self.std is None else centered / over_pixels(self.std)

    def _reduced(self, answer: Tensor, n: int, steps: int) -> Tensor:
        """Logits of what the network answered: ``[N, K]``, or with the steps in front, behind or folded."""
        if answer.dim() == 2 and len(answer) == n:
            return answer
        if self.calling.layout == "folded" and answer.dim() == 2 and len(answer) == n * steps:
            answer = answer.unflatten(0, (n, steps))
        if answer.dim() == 3 and self.calling.layout in ("batch_first", "folded"):
            answer = answer.transpose(0, 1)
        if answer.dim() == 3 and answer.shape[1] == n:
            return REDUCTIONS[self.calling.reduce](answer)
        raise ModelError(
            f"the network answers {n} images with a tensor of shape {tuple(answer.shape)}, must be [N, K], "
            "or [T, N, K] with the layout that wrap names"
        )


def _without_prefix(module: nn.Module, held: dict[str, object], prefix: str, metadata: object) -> None:
    """The entries of the network under its own names, in the same order."""
    for name in [n for n in held if n.startswith(prefix)]:
        held[prefix + name.removeprefix(prefix + INNER)] = held.pop(name)


def _with_prefix(module: nn.Module, held: dict[str, object], prefix: str, *_: object) -> None:
    """The reverse, for loading; a state dict with the inner names loads too."""
    own = {n for n in held if n.startswith(prefix)}
    inner = {n for n, _ in module.get_submodule("model").state_dict().items()}
    for name in own:
        if name.removeprefix(prefix) in inner or not name.startswith(prefix + INNER):
            held[prefix + INNER + name.removeprefix(prefix)] = held.pop(name)


@contextmanager
def _squeezed(model: nn.Module, timesteps: int) -> Iterator[None]:
    """Layers of sinabs that fold time into the batch know how many steps there are, for any batch."""
    layers = [m for m in model.modules() if hasattr(m, "squeeze_forward")]
    before = [(m, m.batch_size, m.num_timesteps) for m in layers]
    try:
        for m in layers:
            m.batch_size, m.num_timesteps = -1, timesteps  # type: ignore[assignment]
        yield
    finally:
        for m, batch, steps in before:
            m.batch_size, m.num_timesteps = batch, steps
