"""``harden``: adversarial training of any network, for those who have one and no loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn

from spikeguard import adapters
from spikeguard.arguments import checked
from spikeguard.border import take_model
from spikeguard.defenses.guard import Guard
from spikeguard.errors import Interrupted, UserError
from spikeguard.inputs import take_images, take_labels
from spikeguard.models import check_logits, is_stochastic, is_wrong, logits_of, modes_kept, moved, rounding
from spikeguard.random import draws
from spikeguard.records.build import frozen
from spikeguard.records.files import remove_unfinished
from spikeguard.records.plain import plain
from spikeguard.records.training import EpochRow, HardeningRecord, TrainingCost
from spikeguard.runtime.machine import machine
from spikeguard.runtime.stop import Stop, ctrl_c
from spikeguard.training.checkpoint import WEIGHTS, save_tensors
from spikeguard.training.factory import weights_of
from spikeguard.training.hardening import STATE, Hardening, Work
from spikeguard.training.trainer import Report

log = logging.getLogger("spikeguard")
RECORD, IMAGES = "hardening.json", "images"
Batches = Iterable[Sequence[Tensor]]


@dataclass(frozen=True)
class Hardened:
    """A hardened network in eval mode (the one that was passed), its folder or None, the record.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> batches = [(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)]
    >>> done = sg.harden(model, batches, sg.training.Hardening(epochs=1, tgo=None))
    >>> done.model is model, done.path, [row.epoch for row in done.record.epochs]
    (True, None, [1])
    """

    model: nn.Module
    path: Path | None
    record: HardeningRecord


@checked
def harden(
    model: nn.Module,
    loader: Batches,
    settings: Hardening | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    validation: Batches | None = None,
    progress: Callable[[Report], None] | None = None,
    stop: Stop | None = None,
) -> Hardened:
    """Train a network to stay right under attack: adversarial training, TGO and RAT, as ``settings`` say.

    ``model``: from images ``[N, ...]`` in [0, 1] to logits ``[N, K]``, reset in each call; it is changed
    in place. ``loader``: batches of images and labels, with a length, such as a DataLoader.
    ``validation``: such batches, for the accuracy on clean images after each epoch. With ``out`` that
    folder keeps a checkpoint after each epoch, and on Ctrl-C or once ``stop`` is set, which raises
    Interrupted; ``resume`` goes on there. At the end it holds weights and record. UserError on bad
    images, a model that keeps state between calls, or one without neurons while ``settings.tgo`` is set.

    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> batches = [(torch.rand(8, 1, 2, 2), torch.arange(8) % 2)]
    >>> done = sg.harden(model, batches, sg.training.Hardening(epochs=2, tgo=None, at=sg.AT(eps=0.03)))
    >>> len(done.record.epochs), done.record.cost.steps
    (2, 2)
    """
    settings = settings or Hardening()
    take_model(model, "harden")
    if not isinstance(loader, Sized) or not len(loader):
        raise UserError("harden: loader must have a length of at least 1: pass a DataLoader or a list")
    if settings.tgo is not None and not adapters.layers(model):
        raise UserError(
            f"harden: {type(model).__name__} has no neurons that spikeguard knows: pass "
            "Hardening(tgo=None), or say with sg.adapters.add what they are"
        )
    work = Work(model, settings, len(loader))
    folder = Path(out) if out is not None else None
    generator = _begin(work, folder, resume)
    with _generator_kept(), ctrl_c() as stopped, _guard(work) as guard:
        _check(model, *_placed(next(iter(loader)), model))
        while work.at.epoch < settings.epochs:
            for report in _epoch(work, loader, guard, generator):
                if progress:
                    progress(report)
                if stopped.is_set() or (stop is not None and stop.is_set()):
                    raise _interrupted(work, folder)
            generator = None
            _end_epoch(work, validation)
            if folder is not None:
                work.save(folder)
    return _finished(work, folder)


def _begin(work: Work, folder: Path | None, resume: bool) -> Tensor | None:
    """Resume or begin in the folder; the state of torch's generator to go on with, if resumed in an epoch."""
    if folder is None:
        if resume:
            raise UserError("harden: resume needs the folder of the training (out=...)")
        return None
    if folder.exists() and not folder.is_dir():
        raise UserError(f"cannot write {folder}: it is not a folder")
    remove_unfinished(folder)
    if (folder / RECORD).exists():
        raise UserError(f"{folder} holds a finished training; choose another folder")
    if resume and (folder / STATE).exists():
        state = work.load(folder)
        return state if work.at.batch else None
    if not resume and folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; go on with resume=True or choose another folder")
    work.save(folder)  # find out now, not after an epoch, that it cannot be written
    return None


def _check(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """UserError unless the model gives logits for these images, the same ones twice in eval mode."""
    with modes_kept(model), torch.no_grad():
        first, again = check_logits(model, x, y)
    noisy = is_stochastic(model, first, first)
    if not noisy and bool((moved(first, again) > rounding(first)).any()):
        raise UserError(
            "harden: the model answers the same images differently in eval mode: it keeps state between "
            "calls; reset it in each call (sg.wrap does)"
        )


def _guard(work: Work) -> AbstractContextManager[Guard | None]:
    tgo = work.settings.tgo
    return nullcontext() if tgo is None else Guard(work.model, tgo, work.total, work.steps_done)


@contextmanager
def _generator_kept() -> Iterator[None]:
    """Torch's generator is afterwards what it was."""
    before = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _placed(batch: object, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, on the model's device; UserError on anything else."""
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise UserError("harden: a batch of the loader must be (images, labels)")
    images = take_images(batch[0])
    device = next((p.device for p in model.parameters()), images.device)
    return images.to(device), take_labels(batch[1], images).to(device)


def _epoch(work: Work, loader: Batches, guard: Guard | None, generator: Tensor | None) -> Iterator[Report]:
    """The rest of the running epoch; its order and all that is random are functions of seed and epoch."""
    at = work.at
    work.model.train()
    torch.manual_seed(draws.key(work.settings.seed, "harden", at.epoch))
    rest = iter(loader)
    for _ in range(at.batch):
        next(rest, None)
    if generator is not None:
        torch.set_rng_state(generator)
    here, started = work.steps_done, time.perf_counter()
    for batch in rest:
        begun = time.perf_counter()
        x, y = _placed(batch, work.model)
        for name, value in {**work.step(x, y, guard), IMAGES: len(y)}.items():
            at.sums[name] = at.sums.get(name, 0.0) + value
        at.batch += 1
        at.seconds += time.perf_counter() - begun
        done = work.steps_done
        left = (time.perf_counter() - started) / (done - here) * (work.total - done)
        last = at.rows[-1] if at.rows else None
        yield Report(done, work.total, at.sums["loss"] / at.batch, last, left)
    if at.batch != work.per_epoch:
        raise UserError(f"harden: the loader has a length of {work.per_epoch} but gave {at.batch} batches")


def _end_epoch(work: Work, validation: Batches | None) -> None:
    at = work.at
    work.images = round(at.sums.pop(IMAGES))
    loss, task_loss, penalty, trained = (
        at.sums[name] / at.batch for name in ("loss", "task_loss", "penalty", "train_accuracy")
    )
    right = None if validation is None else _accuracy(work.model, validation)
    row = EpochRow(at.epoch + 1, loss, task_loss, penalty, trained, round(at.seconds, 3), right)
    at.rows, at.epoch, at.batch, at.sums = (*at.rows, row), at.epoch + 1, 0, {}
    left = timedelta(seconds=round(at.seconds / at.epoch * (work.settings.epochs - at.epoch)))
    log.info("harden: epoch %d of %d: %s, %s left", at.epoch, work.settings.epochs, row, left)


def _accuracy(model: nn.Module, batches: Batches) -> float:
    """Share of images whose class is right, in eval mode."""
    right, n = 0, 0
    with modes_kept(model), torch.no_grad():
        for batch in batches:
            x, y = _placed(batch, model)
            right, n = right + int((~is_wrong(logits_of(model, x), y)).sum()), n + len(y)
    if not n:
        raise UserError("harden: validation has no images")
    return right / n


def _interrupted(work: Work, folder: Path | None) -> Interrupted:
    if folder is None:
        return Interrupted("hardening stopped; it had no folder to be kept in")
    work.save(folder)
    return Interrupted(f"hardening stopped and kept in {folder}; go on with resume=True")


def _finished(work: Work, folder: Path | None) -> Hardened:
    model, at = work.model.eval(), work.at
    record = HardeningRecord(
        settings=frozen(plain(work.settings)),
        model=type(model).__name__,
        machine=machine(),
        cost=TrainingCost(round(at.seconds, 2), work.total, work.images),
        parameters=sum(p.numel() for p in model.parameters()),
        epochs=at.rows,
    )
    if folder is not None:
        digest = save_tensors(folder / WEIGHTS, weights_of(model), {"hardening": plain(work.settings)})
        record = replace(record, weights=digest)
        record.write(folder / RECORD)
        (folder / STATE).unlink(missing_ok=True)
    return Hardened(model, folder, record)
