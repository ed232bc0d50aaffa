"""The training loop.

It knows no defense by name, and every random number in it is a function of the seed and the step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spikeguard.data.batches import batches
from spikeguard.data.images import Dataset
from spikeguard.data.sources import load_data
from spikeguard.defenses import Hooks, Step
from spikeguard.errors import Interrupted, UserError
from spikeguard.kernels import cpp_build
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import frozen_norms, seed_noise
from spikeguard.random import draws
from spikeguard.records.files import SCHEMA, write_json
from spikeguard.runtime.float32 import exact
from spikeguard.runtime.machine import machine
from spikeguard.runtime.stop import Stop, ctrl_c
from spikeguard.training.builder import make_network, pick_device, settled, training_parts
from spikeguard.training.checkpoint import (
    RECORD,
    STATE,
    WEIGHTS,
    Position,
    load_state,
    save_state,
    save_tensors,
)
from spikeguard.training.objective import accuracy, optimizer, rate, task_loss, warning
from spikeguard.training.recipe import Recipe

log = logging.getLogger("spikeguard")


@dataclass(frozen=True)
class Report:
    """Progress of a training: steps done of all, the epoch's mean loss so far, the last epoch's metrics.

    >>> report = sg.training.Report(step=1, steps=10, loss=2.3, last=None)
    >>> f"{report.step} of {report.steps}"
    '1 of 10'
    """

    step: int
    steps: int
    loss: float
    last: dict[str, Any] | None


@dataclass(frozen=True)
class Run:
    """A finished training: the network in eval mode, its folder (None if not kept), the record.

    >>> sg.training.Run(net, None, {"kind": "training"}).net(x).shape
    torch.Size([6, 10])
    """

    net: Classifier
    path: Path | None
    metrics: dict[str, Any]


@exact()
def train(
    recipe: Recipe,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | None = None,
    *,
    data: Dataset | None = None,
    progress: Callable[[Report], None] | None = None,
    save_every: int = 0,
    stop: Stop | None = None,
) -> Run:
    """Train a network by a recipe; with ``out``, keep it in that folder.

    A checkpoint is written at every epoch's end, every ``save_every`` steps, and on Ctrl-C or once ``stop``
    is set, which raises Interrupted. ``resume`` goes on from the last one to the same bits as an unbroken
    run. ``data`` None loads ``recipe.data``. UserError: the folder holds something already, the state is
    another recipe's, the loss is not finite, the disk is full.

    >>> recipe = sg.Recipe(epochs=1, train_images=100, timesteps=2, batch_size=50, options={"width": 2})
    >>> run = sg.train(recipe)
    >>> sorted(run.metrics["cost"]), len(run.metrics["epochs"])
    (['images', 'seconds', 'steps'], 1)
    """
    folder = Path(out) if out is not None else None
    data = data or load_data(recipe.data)
    place = pick_device(device)
    recipe = settled(recipe, data, place)
    trainer = Trainer(recipe, data, place)
    if folder is not None:
        trainer.open(folder, resume)
    elif resume:
        raise UserError("train: resume needs the folder of the run (out=...)")
    with ctrl_c() as stopped:
        while trainer.at.epoch < recipe.epochs:
            for report in trainer.epoch(stopped):
                if progress:
                    progress(report)
                if stop is not None and stop.is_set():
                    stopped.set()
                if folder is not None and save_every and trainer.at.batch % save_every == 0:
                    trainer.save(folder)
                if stopped.is_set():
                    if folder is None:
                        raise Interrupted("training stopped; it had no folder to be kept in")
                    trainer.save(folder)
                    raise Interrupted(f"training stopped and kept in {folder}; go on with --resume")
            if folder is not None:
                trainer.save(folder)
    trainer.finish()
    record = trainer.record()
    if folder is not None:
        save_tensors(
            folder / WEIGHTS, trainer.net.state_dict(), {"recipe": recipe.values(), "data": _shape(data)}
        )
        write_json(folder / RECORD, record)
        (folder / STATE).unlink(missing_ok=True)
    return Run(trainer.net.eval(), folder, record)


def _shape(data: Dataset) -> dict[str, Any]:
    return {"classes": data.classes, "in_shape": data.in_shape, "mean": data.mean, "std": data.std}


class Trainer:
    """One training: network, optimizer, hooks and where it stands."""

    def __init__(self, recipe: Recipe, data: Dataset, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        training, validation = training_parts(recipe, data)
        self.images, self.validation = training.to(device), validation.to(device)
        self.per_epoch = len(training) // recipe.batch_size
        if not self.per_epoch:
            raise UserError(
                f"recipe: batch_size = {recipe.batch_size} is more than the {len(training)} training images"
            )
        self.net = make_network(recipe, data).to(device)
        self.hooks: list[Hooks] = [d.start(self.net) for d in recipe.defenses]
        self.optimizer = optimizer(recipe, self.net)
        self.at, self.kept, self.crafted = Position(), dict[str, float](), False
        self.conditions = {
            "recipe": recipe.values(),
            "threads": torch.get_num_threads(),
            "path": cpp_build.path(device.type),
            "device": device.type,
            "torch": torch.__version__,
            "spikeguard": machine().versions["spikeguard"],
            "instructions": list(machine().instructions),
        }

    def open(self, folder: Path, resume: bool) -> None:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"cannot write {folder}: it is not a folder")
        if (folder / RECORD).exists():
            raise UserError(
                f"{folder} holds a finished run; choose another folder"
                + (" (nothing is left to resume)" if resume else "")
            )
        if resume and (folder / STATE).exists():
            self.at, kept = load_state(folder, self.net, self.optimizer, self.conditions)
            for k, hook in enumerate(self.hooks):
                prefix = f"{k}."
                hook.restore(
                    {
                        name.removeprefix(prefix): value.to(self.device)
                        for name, value in kept.items()
                        if name.startswith(prefix)
                    }
                )
        elif not resume and folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty; go on with --resume or choose another folder")
        else:
            self.save(folder)  # find out now, not after an epoch, that it cannot be written

    def save(self, folder: Path) -> None:
        kept = {
            f"{k}.{name}": value for k, hook in enumerate(self.hooks) for name, value in hook.state().items()
        }
        save_state(folder, self.net, self.optimizer, self.at, self.conditions, kept)

    def epoch(self, stopped: threading.Event) -> Iterator[Report]:
        """The rest of the running epoch; a report a step."""
        recipe, at = self.recipe, self.at
        self.net.train()
        for x, y in batches(
            self.images, recipe.batch_size, at.epoch, recipe.seed, recipe.augment, start=at.batch
        ):
            begun = time.perf_counter()
            for name, value in self.step(x, y).items():
                at.sums[name] = at.sums.get(name, 0.0) + value
            at.batch += 1
            at.seconds += time.perf_counter() - begun
            last = at.rows[-1] if at.rows else None
            yield Report(
                at.epoch * self.per_epoch + at.batch,
                recipe.epochs * self.per_epoch,
                at.sums["loss"] / at.batch,
                last,
            )
            if stopped.is_set():
                return
        if broken := [n for n, v in self.net.state_dict().items() if not bool(torch.isfinite(v).all())]:
            raise UserError(
                f"{broken[0]} is not finite after epoch {at.epoch + 1}: lower lr = {recipe.lr} or lambda_max"
            )
        begun = time.perf_counter()
        row: dict[str, Any] = {
            "epoch": at.epoch + 1,
            **{k: v / at.batch for k, v in at.sums.items()},
            **self.validate(),
        }
        at.seconds += time.perf_counter() - begun
        row["seconds"] = round(at.seconds, 3)
        at.rows.append(row)
        if (
            self.crafted
            and "validation_accuracy" in row
            and (leak := warning(row["train_accuracy"], row["validation_accuracy"]))
        ):
            log.warning("epoch %d of %d: %s", at.epoch + 1, recipe.epochs, leak)
        log.debug("epoch %d of %d: %s", at.epoch + 1, recipe.epochs, row)
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}

    def step(self, x: Tensor, y: Tensor) -> dict[str, float]:
        recipe, at, net = self.recipe, self.at, self.net
        number = at.epoch * self.per_epoch + at.batch
        done = number / (recipe.epochs * self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(recipe, done)
        seed_noise(net, draws.key(recipe.seed, "noise", number))
        step = Step(net, x, y, 0, done)
        for hook in self.hooks:
            hook.begin(step)
        for k, hook in enumerate(self.hooks):
            step.key = draws.key(recipe.seed, "craft", number, k)
            hook.craft(step)
        for k, hook in enumerate(self.hooks):
            step.key = draws.key(recipe.seed, "complete", number, k)
            hook.complete(step)
        loss = torch.zeros((), device=self.device)
        for name, view in step.views.items():
            with ExitStack() as stack:
                for hook in self.hooks:
                    stack.enter_context(hook.watch(net, name))
                if view.freeze_bn:
                    stack.enter_context(frozen_norms(net))
                step.logits[name] = net(view.x, per_step=recipe.loss != "mean")
            if view.weight:
                loss = loss + view.weight * task_loss(recipe.loss, step.logits[name], y)
        penalties = [p for hook in self.hooks if (p := hook.penalty(step)) is not None]
        total = loss + sum(penalties)
        if not bool(torch.isfinite(total)):
            raise UserError(
                f"the loss is {float(total.detach())} at step {number + 1} (epoch {at.epoch + 1}): lower lr "
                f"= {recipe.lr} or lambda_max"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        for parameter in net.parameters():
            if parameter.grad is None:  # not in use yet; the fused optimizer wants momentum for all or none
                parameter.grad = torch.zeros_like(parameter)
        for hook in self.hooks:
            hook.gradients(net)
        self.optimizer.step()
        for k, hook in enumerate(self.hooks):
            step.key = draws.key(recipe.seed, "after", number, k)
            hook.after(step)
        self.crafted = step.main_view() != "clean"
        right = float((step.scored(step.main_view()).detach().argmax(1) == y).float().mean())
        figures = {"loss": total, "task_loss": loss, "penalty": total - loss}
        return {k: float(v.detach()) for k, v in figures.items()} | {"train_accuracy": right}

    def validate(self) -> dict[str, Any]:
        if not len(self.validation):
            return {}
        x, y = self.validation.x.float() / 255.0, self.validation.y
        for hook in self.hooks:  # a training resumed here has not begun a step yet
            hook.begin(
                Step(
                    self.net,
                    x,
                    y,
                    0,
                    (self.at.epoch * self.per_epoch + self.at.batch - 1)
                    / (self.recipe.epochs * self.per_epoch),
                )
            )
        self.net.eval()
        seed_noise(self.net, draws.key(self.recipe.seed, "validation noise", self.at.epoch))
        row: dict[str, Any] = {"validation_accuracy": accuracy(self.net, self.validation)}
        settled = all(hook.settled for hook in self.hooks)
        for hook in self.hooks:
            row |= hook.report(self.net, x, y, settled)
        self.net.train()
        return row

    def finish(self) -> None:
        """Let the defenses change the network that is kept, and measure its accuracy again if one did."""
        seed_noise(self.net, draws.key(self.recipe.seed, "finish"))
        before = [value.clone() for value in self.net.state_dict().values()]
        for hook in self.hooks:
            training = batches(
                self.images, self.recipe.batch_size, self.recipe.epochs, self.recipe.seed, self.recipe.augment
            )
            hook.finish(self.net, (x for x, _ in training))
        self.net.eval()
        same = all(torch.equal(a, b) for a, b in zip(before, self.net.state_dict().values(), strict=True))
        if len(self.validation) and not same:
            self.kept = {"validation_accuracy": accuracy(self.net, self.validation)}

    def record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "kind": "training",
            "recipe": self.recipe.values(),
            "conditions": {k: v for k, v in self.conditions.items() if k != "recipe"},
            "machine": machine(),
            "cost": {
                "seconds": round(self.at.seconds, 2),
                "steps": self.recipe.epochs * self.per_epoch,
                "images": len(self.images),
            },
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "epochs": self.at.rows,
            **({"kept": self.kept} if self.kept else {}),
        }
