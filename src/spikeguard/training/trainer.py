"""The steps and epochs of a training.

They know no defense by name, and every random number in them is a function of the seed and the step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from spikeguard.data.batches import TrainingBatch, batches, placed_batches
from spikeguard.data.images import Dataset
from spikeguard.defenses import Hooks, Step
from spikeguard.errors import UserError
from spikeguard.neurons import frozen_norms, seed_noise
from spikeguard.random import draws
from spikeguard.records.training import EpochRow, Measured
from spikeguard.training.builder import make_network, training_parts
from spikeguard.training.checkpoint import Position, conditions_here
from spikeguard.training.objective import accuracy, optimizer, rate, task_loss, warning
from spikeguard.training.recipe import Recipe

log = logging.getLogger("spikeguard")


@dataclass(frozen=True)
class Report:
    """Progress of a training: steps done of all, the epoch's mean loss so far, the last epoch's row, and an
    estimate of the time that is left, if there is one.

    >>> report = sg.training.Report(step=1, steps=10, loss=2.3, last=None)
    >>> f"{report.step} of {report.steps}"
    '1 of 10'
    """

    step: int
    steps: int
    loss: float
    last: EpochRow | None
    seconds_left: float | None = None


class Trainer:
    """One training in progress: network, optimizer, hooks of the defenses, position."""

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
        self.at, self.crafted = Position(), False
        self.kept_accuracy: float | None = None
        self.conditions = conditions_here(device)

    def epoch(self, stopped: threading.Event) -> Iterator[Report]:
        """Train for the rest of the running epoch; yields a report after each step."""
        recipe, at = self.recipe, self.at
        self.net.train()
        for batch in placed_batches(
            self.images, recipe.batch_size, at.epoch, recipe.seed, recipe.augment, start=at.batch
        ):
            begun = time.perf_counter()
            for name, value in self.step(batch.x, batch.y, batch).items():
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
        means = {k: v / at.batch for k, v in at.sums.items()}
        validation_accuracy, measured = self.validate()
        at.seconds += time.perf_counter() - begun
        row = EpochRow(
            at.epoch + 1,
            **means,
            seconds=round(at.seconds, 3),
            validation_accuracy=validation_accuracy,
            measured=measured,
        )
        at.rows = (*at.rows, row)
        if (
            self.crafted
            and validation_accuracy is not None
            and (leak := warning(row.train_accuracy, validation_accuracy))
        ):
            log.warning("epoch %d of %d: %s", at.epoch + 1, recipe.epochs, leak)
        log.debug("epoch %d of %d: %s", at.epoch + 1, recipe.epochs, row)
        at.epoch, at.batch, at.sums = at.epoch + 1, 0, {}

    def step(self, x: Tensor, y: Tensor, batch: TrainingBatch | None = None) -> dict[str, float]:
        """One step on images ``[N, C, H, W]`` and labels ``[N]``; loss and accuracy, to be summed up.

        ``batch``: where they come from.
        """
        recipe, at, net = self.recipe, self.at, self.net
        number = at.epoch * self.per_epoch + at.batch
        done = number / (recipe.epochs * self.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(recipe, done)
        seed_noise(net, draws.key(recipe.seed, "noise", number))
        step = Step(net, x, y, 0, done, batch=batch)
        for hook in self.hooks:
            hook.begin(step)
        for k, hook in enumerate(self.hooks):
            step.key = draws.key(recipe.seed, "craft", number, k)
            hook.craft(step)
        for k, hook in enumerate(self.hooks):
            step.key = draws.key(recipe.seed, "complete", number, k)
            hook.complete(step)
        loss = torch.zeros((), dtype=torch.float32, device=self.device)
        for name, view in step.views.items():
            with ExitStack() as stack:
                for hook in self.hooks:
                    stack.enter_context(hook.watch(net, name))
                if view.freeze_bn:
                    stack.enter_context(frozen_norms(net))
                step.logits[name] = net(view.x, per_step=recipe.loss != "mean")
            if view.weight:
                own = task_loss(recipe.loss, step.logits[name], y, recipe.label_smoothing)
                loss = loss + view.weight * own
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

    def validate(self) -> tuple[float | None, dict[str, Measured]]:
        """Accuracy on the validation images, None without any, and what the defenses measure."""
        if not len(self.validation):
            return None, {}
        x, y = self.validation.pixels(), self.validation.y
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
        right = accuracy(self.net, self.validation)
        measured: dict[str, Measured] = {}
        settled = all(hook.settled for hook in self.hooks)
        for hook in self.hooks:
            measured |= hook.report(self.net, x, y, settled)
        self.net.train()
        return right, measured

    @property
    def ended(self) -> bool:
        """Whether no epoch is left, or a defense ends the training."""
        return self.at.epoch >= self.recipe.epochs or any(hook.ended for hook in self.hooks)

    def finish(self) -> None:
        """Let the defenses change the network that is kept, and measure its accuracy again if one did."""
        seed_noise(self.net, draws.key(self.recipe.seed, "finish"))
        before = [value.clone() for value in self.net.state_dict().values()]
        for hook in sorted(self.hooks, key=lambda hook: hook.last):
            training = batches(
                self.images, self.recipe.batch_size, self.recipe.epochs, self.recipe.seed, self.recipe.augment
            )
            hook.finish(self.net, (x for x, _ in training))
        self.net.eval()
        same = all(torch.equal(a, b) for a, b in zip(before, self.net.state_dict().values(), strict=True))
        if len(self.validation) and not same:
            self.kept_accuracy = accuracy(self.net, self.validation)
