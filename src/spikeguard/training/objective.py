"""What a training minimizes and how fast: loss, learning rate, optimizer, clean accuracy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spikeguard.data.images import Images, pixels
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons.modifiers import Dynamics
from spikeguard.training.recipe import Recipe

TET = 0.001  # weight of its distance from 1
# accuracy on adversaries above that on clean validation images from which on they must give the class away
LEAK = 0.1


def task_loss(kind: str, logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """The recipe's loss of logits ``[N, K]`` ('mean'), else ``[T, N, K]``, for labels ``[N]``."""
    if kind == "mean":
        return F.cross_entropy(logits, y, label_smoothing=smoothing)
    entropy = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(logits)), label_smoothing=smoothing)
    return entropy if kind == "per_step" else (1 - TET) * entropy + TET * (logits - 1.0).square().mean()


def rate(recipe: Recipe, done: float) -> float:
    """The learning rate at a share of the training: a linear rise, then a cosine or a line down to 0."""
    warmup, lr = recipe.warmup, recipe.lr
    if done < warmup:
        return lr * (0.05 + 0.95 * done / warmup)
    fallen = (done - warmup) / (1 - warmup)
    if recipe.schedule == "one_cycle":
        return lr * (1 - fallen)
    return lr * (1 + math.cos(math.pi * fallen)) / 2


def optimizer(recipe: Recipe, net: Classifier) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on matrices only, and on no parameter of the neurons."""
    neural = {id(p) for m in net.modules() if isinstance(m, Dynamics) for p in m.parameters()}
    decayed = [p for p in net.parameters() if p.dim() > 1 and id(p) not in neural]
    kept = [p for p in net.parameters() if p.dim() <= 1 or id(p) in neural]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.momentum > 0, fused=True
    )


def warning(trained: float, validation: float) -> str | None:
    """A warning if training adversaries are easier than clean validation images; None if not."""
    if trained <= validation + LEAK:
        return None
    return (
        f"accuracy is {100 * trained:.1f} % on training adversaries but {100 * validation:.1f} % on clean "
        "validation images: the network has learned "
        "to make its own adversaries give the class away (catastrophic overfitting). Crafting them by "
        "another gradient, too, helps: "
        'estimators = ["own", "assg"]'
    )


def accuracy(net: Classifier, images: Images, batch_size: int = 500) -> float:
    """Share of images whose class is right, network as it is."""
    right = 0
    with torch.no_grad():
        for x, y in zip(images.x.split(batch_size), images.y.split(batch_size), strict=True):
            right += int((net(pixels(x)).argmax(1) == y).sum())
    return right / len(images)
