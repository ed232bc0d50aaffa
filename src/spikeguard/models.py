"""A model, for the rest of the package, is a callable from images to logits.

``logits_of`` is the one way to call it: it takes the logits from what the model answers, and turns whatever
the model's own code raises into one line.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spikeguard.arguments import error_line
from spikeguard.errors import Interrupted, ModelError, SpikeguardWarning, UserError
from spikeguard.inputs import not_dense
from spikeguard.neurons import spiking
from spikeguard.runtime.measuring import measuring
from spikeguard.runtime.untouched import untouched

Model = Callable[[Tensor], Tensor]
CHANNELS = (1, 3, 4)
SUMS = 1e-4
"""Share of the largest logit by which float32 sums in another order may differ."""


@contextmanager
def eval_mode(model: Model) -> Iterator[None]:
    """Put the model in eval mode to measure it; everything it holds is put back afterwards."""
    with untouched(model), modes_kept(model):
        yield


@contextmanager
def modes_kept(model: Model) -> Iterator[None]:
    """Put the model in eval mode; every module's own mode is restored afterwards, and nothing else.

    A guard that is open counts no forward pass inside.
    """
    modes = _modes(model) if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        put_in_eval(model)
    try:
        with measuring():
            yield
    finally:
        for m, mode in modes:
            if mode is None:
                vars(m).pop("training", None)
            else:
                m.training = mode


def _modes(model: nn.Module) -> list[tuple[nn.Module, bool | None]]:
    return [(m, getattr(m, "training", None)) for m in model.modules()]


def parts_with_mode(model: nn.Module) -> dict[str, nn.Module]:
    """Every part of a module, by name; not those that ``torch.jit.freeze`` made, which have no mode."""
    return {name: m for name, m in model.named_modules() if hasattr(m, "training")}


def put_in_eval(model: nn.Module) -> None:
    """Put a module in eval mode. ModelError with its exception as the cause if its ``eval()`` fails.

    Networks of ``torch.export`` refuse: they stay as they were exported, and the parts around them change.
    """
    try:
        model.eval()
    except NotImplementedError:
        for part in parts_with_mode(model).values():
            part.training = False
    except Exception as error:  # the model's own code may raise anything
        raise ModelError(f"the model's eval() fails ({error_line(error)})") from error


def logits_of(model: Model, x: Tensor) -> Tensor:
    """The model's logits ``[N, K]`` (``[T, N, K]`` of a model of every time step) for images ``[N, ...]``.

    Taken from a tensor, an array, a mapping or object with ``logits``, or a tuple that holds one tensor; in
    float32 or more. ModelError, with the model's exception as its cause, if the model fails or if its answer
    leaves a doubt.
    """
    try:
        answer: object = model(x.clone())  # some models write into their images
    except (UserError, Interrupted):
        raise
    except (Exception, SystemExit) as error:  # the model's code may raise anything
        raise ModelError(
            f"the model fails on {x.dtype} images of shape {tuple(x.shape)} ({error_line(error)})"
            f"{_hint(model, x)}"
        ) from error
    logits = _chosen(answer)
    if kind := not_dense(logits):
        raise ModelError(f"the model gives a {kind} tensor, must give a dense one: logits [N, classes]")
    logits = logits.to(x.device)
    batch = logits.shape[1:2] if logits.dim() == 3 else logits.shape[:1]
    if logits.dim() not in (2, 3) or batch != x.shape[:1] or not logits.is_floating_point():
        raise ModelError(
            f"the model gives {logits.dtype} of shape {tuple(logits.shape)} for {len(x)} images, must give "
            "logits [N, classes]"
        )
    if logits.is_inference():
        logits = logits.clone()
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _hint(model: Model, x: Tensor) -> str:
    """What may help where a model fails."""
    kinds = parameter_types(model)
    if kinds and x.dtype not in kinds:
        return f"; its parameters are {', '.join(map(str, kinds))}: pass images of that type"
    if x.dim() == 4 and x.shape[-1] in CHANNELS and x.shape[1] not in CHANNELS:
        return "; channels come first, [N, C, H, W]: x.permute(0, 3, 1, 2), if they are last here"
    return "; it has to take any number of images and to keep no state between calls"


def parameter_types(model: Model) -> list[torch.dtype]:
    """The floating types of a module's parameters, in their order; none for a plain function."""
    if not isinstance(model, nn.Module):
        return []
    return list(dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point()))


def _chosen(answer: object) -> Tensor:
    """The tensor of an answer that holds the logits; UserError where there is none or a doubt."""
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, np.ndarray):
        return _of_array(answer)
    named = answer.get("logits") if isinstance(answer, Mapping) else getattr(answer, "logits", None)
    if isinstance(named, (Tensor, np.ndarray)):
        return _chosen(named)
    held = [v for v in _parts(answer).values() if isinstance(v, (Tensor, np.ndarray)) and v.ndim]
    if len(held) == 1:
        return _chosen(held[0])
    name = next(iter(_parts(answer)), None)
    which = repr(name) if name and not isinstance(answer, (tuple, list)) else "0"
    hint = f": sg.wrap(model, output={which}) takes the first part" if name else ""
    raise ModelError(
        f"the model answers with {_described(answer)}, must answer with logits [N, classes]{hint}"
    )


def _parts(answer: object) -> dict[str, object]:
    """The parts of a mapping, a sequence or a dataclass, by name or place."""
    if isinstance(answer, Mapping):
        return {str(name): value for name, value in answer.items()}
    if isinstance(answer, (tuple, list)):
        return {str(place): value for place, value in enumerate(answer)}
    if is_dataclass(answer) and not isinstance(answer, type):
        return {field.name: getattr(answer, field.name) for field in fields(answer)}
    return {}


def _of_array(answer: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> Tensor:
    try:
        return torch.from_numpy(np.array(answer))
    except TypeError as error:
        raise ModelError(
            f"the model answers with an array of {answer.dtype}, must answer with logits [N, classes]"
        ) from error


def _described(answer: object) -> str:
    """What a model answered with, in words."""

    def part(value: object) -> str:
        shape = getattr(value, "shape", None)
        return f"{type(value).__name__} {tuple(shape)}" if isinstance(shape, tuple) else type(value).__name__

    if isinstance(answer, (tuple, list)):
        return f"a {type(answer).__name__} of ({', '.join(map(part, answer[:6]))})"
    if parts := _parts(answer):
        return f"a {type(answer).__name__} of {', '.join(f'{k}: {part(v)}' for k, v in parts.items())}"
    return "None" if answer is None else f"a {type(answer).__name__}"


def check_logits(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The model's answers on the first eight images, twice, for ``is_stochastic`` to compare.

    Raises UserError if they are not logits ``[N, classes]`` for the labels ``y``.

    >>> first, again = check_logits(net, x, y)
    >>> first.shape, is_stochastic(net, first, again)
    (torch.Size([6, 10]), False)
    """
    with torch.no_grad():
        logits = logits_of(model, x[:8])
        again = logits_of(model, x[:8])
    if logits.dim() != 2:
        raise ModelError(
            f"the model gives {logits.dtype} of shape {tuple(logits.shape)}, must give logits [N, classes]"
        )
    if logits.shape[1] < 2:
        raise ModelError(
            "the model gives one logit, so that every image is always right: give one for each class (of a "
            "logit z for two: torch.cat([-z, z], 1))"
        )
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        raise UserError(
            f"labels lie in [{int(y.min())}, {int(y.max())}], the model has classes 0 to "
            f"{logits.shape[1] - 1}"
        )
    return logits, again


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Which samples ``[N]`` are misclassified: another class is highest, or logits are not numbers."""
    return (logits.argmax(1) != y) | logits.isnan().any(1)


def are_tied(logits: Tensor) -> Tensor:
    """Samples ``[N]`` whose highest score two classes or more share: the order of classes decides."""
    return (logits == logits.amax(1, keepdim=True)).sum(1) > 1


def are_scores(logits: Tensor) -> Tensor:
    """Samples ``[N]`` with scores: some are finite, all others -inf, as of classes that are masked."""
    finite = torch.isfinite(logits)
    return finite.any(1) & (finite | (logits == -torch.inf)).all(1)


def check_clean(logits: Tensor) -> None:
    """UserError if logits of clean images are no numbers, a warning if some are infinite.

    Where a model gives NaN without an attack, 'broken' would say nothing. Classes masked by -inf are fine.
    """
    n = len(logits)
    if wrong := int(logits.isnan().any(1).sum()):
        raise UserError(
            f"the model gives NaN on {wrong} of {n} clean images: nothing can be attacked there; mend the "
            "model or leave these images out"
        )
    if infinite := int((~are_scores(logits)).sum()):
        warnings.warn(
            f"the model gives infinite logits on {infinite} of {n} clean images: losses mean little there",
            SpikeguardWarning,
            stacklevel=2,
        )


def is_stochastic(model: Model, first: Tensor, again: Tensor) -> bool:
    """Does the model answer the same images differently, by more than ``rounding``, or have noise in
    evaluation that may not show?"""
    noisy = isinstance(model, nn.Module) and any(
        s.noise and s.noise.at_eval and s.noise.sigma for s in spiking(model).values()
    )
    return noisy or bool((moved(first, again) > rounding(first)).any())


def moved(first: Tensor, other: Tensor) -> Tensor:
    """How far the logits of each image differ, ``[N]``, in shares of the largest finite logit of ``first``.

    Equal infinities and pairs of NaN count as equal.

    >>> from spikeguard.models import moved
    >>> moved(torch.tensor([[1.0, -torch.inf], [4.0, 0.0]]), torch.tensor([[2.0, -torch.inf], [4.0, 0.0]]))
    tensor([0.2500, 0.0000])
    """
    first, other = first.detach().float(), other.detach().float()
    same = (first == other) | (first.isnan() & other.isnan())
    apart = (first - other).abs().nan_to_num(torch.inf, torch.inf).masked_fill(same, 0.0)
    return apart.flatten(1).amax(1) / scale(first)


def scale(logits: Tensor) -> float:
    """The largest finite logit without its sign."""
    finite = logits[torch.isfinite(logits)].abs()
    return max(float(finite.max()), 1e-30) if finite.numel() else 1.0


def rounding(logits: Tensor) -> float:
    """The share of the largest logit by which two evaluations of the same function may differ.

    A kernel may add up in another order for another batch, device or thread. Logits that were rounded to
    bfloat16 or float16 may then differ by two of its steps; counts have no rounding.
    """
    values = logits.detach()
    if bool((values == values.round()).all()):
        return SUMS
    for dtype in (torch.bfloat16, torch.float16):
        if bool((values.to(dtype).to(values.dtype) == values).all()):
            return 2 * torch.finfo(dtype).eps
    return SUMS


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    """Are two tensors equal to the bit? NaN counts as equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
