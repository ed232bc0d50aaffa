"""What ``harden`` does to a network: its settings, one step of it, and what a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.arguments import checked_fields
from spikeguard.defenses.adversarial import AT
from spikeguard.defenses.base import Moment
from spikeguard.defenses.guard import Guard
from spikeguard.defenses.parameters import RAT, retract
from spikeguard.defenses.tgo import TGO
from spikeguard.errors import UserError
from spikeguard.models import logits_of
from spikeguard.random import draws
from spikeguard.records.plain import plain
from spikeguard.training.checkpoint import Position, load_tensors, put_weights, save_tensors
from spikeguard.training.factory import weights_of

STATE = "hardening.safetensors"
RANDOM = "torch.random"


@dataclass(frozen=True)
@checked_fields
class Hardening:
    """Settings of ``sg.harden``: what the study found best and what works on any network.

    ``at``: the adversaries of every batch. ``tgo``: potentials away from the threshold and noisy firing, by
    ``sg.guard``. ``rat``: singular values of weights towards 1. None leaves a part out. The learning rate
    falls to 0 by cosine.

    >>> sg.training.Hardening(epochs=3, at=sg.AT(eps=8 / 255, steps=2)).optimizer
    'adamw'
    """

    epochs: int = 10
    """Passes over the loader."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum of 0.9."""
    lr: float = 1e-3
    """Learning rate at the start."""
    weight_decay: float = 5e-4
    """Of weights of two dimensions and more."""
    at: AT | None = field(default_factory=lambda: AT(eps=8 / 255, steps=2, warmup=0.25))
    """Adversarial training; none trains on the images as they are."""
    tgo: TGO | None = field(default_factory=lambda: TGO(lambda_max=1.0))
    """Threshold Guarding Optimization; none leaves it out."""
    rat: RAT | None = field(default_factory=RAT)
    """Retraction of the weights after every step; none leaves it out."""
    seed: int = 0
    """Of all that is random."""

    def __post_init__(self) -> None:
        for name, good, allowed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", self.lr > 0, "above 0"),
            ("weight_decay", self.weight_decay >= 0, "0 or more"),
        ):
            if not good:
                raise UserError(f"Hardening: {name} = {getattr(self, name)} must be {allowed}")


class Work:
    """A hardening in progress: model, optimizer, position.

    ``per_epoch``: batches of the loader; ``images``: of the last epoch.
    """

    def __init__(self, model: nn.Module, settings: Hardening, per_epoch: int) -> None:
        self.model, self.settings, self.per_epoch = model, settings, per_epoch
        self.at, self.optimizer, self.images = Position(), _optimizer(model, settings), 0

    @property
    def steps_done(self) -> int:
        """Steps of the optimizer so far."""
        return self.at.epoch * self.per_epoch + self.at.batch

    @property
    def total(self) -> int:
        """Steps of the whole work."""
        return self.settings.epochs * self.per_epoch

    def step(self, x: Tensor, y: Tensor, guard: Guard | None) -> dict[str, float]:
        """One step on images ``[N, ...]`` in [0, 1] and labels ``[N]``; what it measures, to be summed up."""
        s, model, number = self.settings, self.model, self.steps_done
        progress = number / self.total
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * (1 + math.cos(math.pi * progress)) / 2
        moment = Moment(model, x, y, draws.key(s.seed, "harden", number), progress)
        share, found = (1.0, x) if s.at is None else (1 - s.at.clean_share, s.at.adversaries(moment))
        logits = logits_of(model, found)
        loss = share * F.cross_entropy(logits, y)
        if share < 1:
            loss = loss + (1 - share) * F.cross_entropy(logits_of(model, x), y)
        total = loss if guard is None else loss + guard.penalty()
        if not bool(torch.isfinite(total)):
            raise UserError(
                f"harden: the loss is {float(total.detach())} at step {number + 1}: lower lr = {s.lr} or "
                "lambda_max"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        if s.rat is not None:
            retract(moment, s.rat.beta)
        if guard is not None:
            guard.step()
        right = (logits.detach().argmax(1) == y).float().mean()
        values = {"loss": total, "task_loss": loss, "penalty": total - loss, "train_accuracy": right}
        return {name: float(value.detach()) for name, value in values.items()}

    def save(self, folder: Path) -> None:
        """Write all that resuming needs."""
        tensors = {f"net.{k}": v for k, v in weights_of(self.model).items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{key}.{name}"] = value
        tensors[RANDOM] = torch.get_rng_state()
        save_tensors(folder / STATE, tensors, {"progress": plain(self.at), "hardening": self._needed()})

    def load(self, folder: Path) -> Tensor:
        """Restore what was saved and return the state of torch's generator; UserError if it does not fit."""
        path = folder / STATE
        tensors, metadata = load_tensors(path)
        if metadata.get("hardening") != self._needed():
            raise UserError(
                f"{path} was made with {metadata.get('hardening')}, now {self._needed()}: resume with the "
                "same settings and loader"
            )
        weights = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
        put_weights(self.model, weights, path)
        self.at = Position.of(metadata.get("progress"), f"{path}: progress")
        self._restore_optimizer(tensors)
        if RANDOM not in tensors:
            raise UserError(f"{path} is damaged: it has no {RANDOM}")
        return tensors[RANDOM]

    def _restore_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        for name, parameter in self.model.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq", "momentum_buffer"):
                if (value := tensors.get(f"optimizer.{key}.{name}")) is not None:
                    self.optimizer.state[parameter][key] = value if key == "step" else value.to(parameter)

    def _needed(self) -> dict[str, object]:
        return {"settings": plain(self.settings), "batches": self.per_epoch}


def _optimizer(model: nn.Module, settings: Hardening) -> torch.optim.Optimizer:
    """Weight decay on matrices only."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, settings.lr)
