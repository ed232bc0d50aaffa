"""Honest networks of every kind, tiny, written as people write them.

No flag of level error is true for any of them.
"""

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from narrow import applied
from torch import Tensor, nn

Model = Callable[[Tensor], Tensor]
SIDE, CLASSES = 6, 4
SIZE = SIDE * SIDE


def images(
    count: int = 24, classes: int = CLASSES, shape: tuple[int, ...] = (1, SIDE, SIDE)
) -> tuple[Tensor, Tensor]:
    """Noisy copies of one random picture a class, and the classes."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(classes, *shape, generator=generator)
    y = torch.arange(count) % classes
    return (0.25 + 0.5 * pictures[y] + 0.1 * torch.randn(count, *shape, generator=generator)).clamp(0, 1), y


def fit(net: nn.Module, x: Tensor, y: Tensor, steps: int = 60, lr: float = 0.02) -> nn.Module:
    """Adam on all images at once; returns the network in eval mode."""
    adam = torch.optim.Adam(net.train().parameters(), lr)
    for _ in range(steps):
        adam.zero_grad()
        F.cross_entropy(net(x), y).backward()
        adam.step()
    return net.eval()


class Then(nn.Module):
    """A network and what becomes of its scores."""

    def __init__(self, net: nn.Module, after: Model) -> None:
        super().__init__()
        self.net, self.after = net, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(x))


class Scaled(nn.Module):
    """Scores in other units than those it was trained with."""

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x) if self.training else self.factor * self.net(x)
        return scores


def mlp(act: type[nn.Module] = nn.ReLU, classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(SIZE, 24), act(), nn.Linear(24, classes))


class Cosine(nn.Module):
    """Cosines of the image and a direction for each class: all scores within [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(CLASSES, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1) - 0.5, dim=1) @ F.normalize(self.directions, dim=1).T


class Prototypes(nn.Module):
    """Minus the squared distance to a prototype of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.rand(CLASSES, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        return -(x.flatten(1)[:, None] - self.at).square().sum(2)


class Attention(nn.Module):
    """A layer of attention over the rows of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(SIDE, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.embed(x.squeeze(1))
        scores: Tensor = self.head((rows + self.attend(rows, rows, rows, need_weights=False)[0]).mean(1))
        return scores


class Contrast(nn.Module):
    """Normalizes every image by its own mean and deviation."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        scores: Tensor = self.net(
            ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 0.05)).view_as(x)
        )
        return scores


class Bookkeeping(nn.Module):
    """Counts its calls, keeps its last scores and the running mean of its inputs, and uses none of them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("last", torch.zeros(0))
        self.calls: Tensor
        self.mean: Tensor
        self.last: Tensor

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        self.last = scores.detach().clone()
        return scores


class Dropping(nn.Module):
    """Dropout that stays on in evaluation (Gal and Ghahramani)."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.drop = net, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        self.drop.train()
        scores: Tensor = self.net(self.drop(x))
        return scores


class Noisy(nn.Module):
    """Adds noise from a generator of its own."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.generator = net, torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x + 0.05 * torch.randn(x.shape, generator=self.generator))
        return scores


# spikes, in the idioms of the field


class Inverse(torch.autograd.Function):
    """Keeps the distance to the threshold."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        u: Tensor = ctx.saved_tensors[0]
        return grad / (1 + 4 * u.abs()) ** 2


class Window(torch.autograd.Function):
    """Keeps the membrane, as STBP's code does."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.gt(1.0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        v: Tensor = ctx.saved_tensors[0]
        return grad * ((v - 1).abs() < 0.5).float()


class Slope(torch.autograd.Function):
    """Keeps the derivative."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        s = torch.sigmoid(4 * u)
        ctx.slope = 4 * s * (1 - s)
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = ctx.slope
        return grad * slope


def straight(u: Tensor) -> Tensor:
    """The step in the forward pass, a sigmoid in the backward pass."""
    soft = torch.sigmoid(4 * u)
    return soft + ((u > 0).float() - soft).detach()


class Spiking(nn.Module):
    """A hidden layer of spikes of ``fire(u)``, and as scores the mean readout, the spikes or their rate."""

    def __init__(
        self, fire: Model = Inverse.apply, timesteps: int = 4, scores: str = "mean", hard: bool = False
    ) -> None:
        super().__init__()
        self.fire, self.timesteps, self.scores, self.hard = fire, timesteps, scores, hard
        self.first, self.last = nn.Linear(SIZE, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        current, total = self.first(4 * x.flatten(1) - 2), torch.zeros(len(x), CLASSES)
        v, w = torch.zeros_like(current), torch.zeros_like(total)
        for _ in range(self.timesteps):
            v = 0.8 * v + current
            spikes = self.fire(v - 1)
            v = v * (1 - spikes) if self.hard else v - spikes.detach()
            out = self.last(spikes)
            if self.scores != "mean":
                w = 0.8 * w + out
                out = self.fire(w - 1)
                w = w - out.detach()
            total = total + out
        return total if self.scores == "counts" else total / self.timesteps


class Membrane(nn.Module):
    """A layer that keeps its membrane in a buffer, as several frameworks do, until it is reset."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("v", torch.zeros(()))

    def reset(self) -> None:
        self.v = torch.zeros(())

    def forward(self, current: Tensor) -> Tensor:
        self.v = 0.8 * self.v + current
        spikes = applied(Inverse, self.v - 1)
        self.v = self.v - spikes.detach()
        return spikes


class Stepwise(nn.Module):
    """Resets the membranes at the start of every call, and leaves them charged at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.neurons, self.last = nn.Linear(SIZE, 24), Membrane(), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.neurons.reset()
        x = 4 * x.flatten(1) - 2
        return torch.stack([self.last(self.neurons(self.first(x))) for _ in range(4)]).mean(0)


class Recurrent(nn.Module):
    """Spikes come back as currents; decay and threshold are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.last = nn.Linear(SIZE, 24), nn.Linear(24, 24), nn.Linear(24, CLASSES)
        self.decay, self.threshold = nn.Parameter(torch.zeros(())), nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor) -> Tensor:
        current, readout = self.first(4 * x.flatten(1) - 2), torch.zeros(())
        v = spikes = torch.zeros_like(current)
        for _ in range(4):
            v = torch.sigmoid(self.decay) * v + current + 0.2 * self.back(spikes)
            spikes = applied(Slope, v - self.threshold)
            v = v - spikes * self.threshold
            readout = 0.9 * readout + self.last(spikes)
        return readout


class Convolved(nn.Module):
    """Time folded into the batch, batch norm over time, spikes over the whole sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        folded = x.expand(3, *x.shape).flatten(0, 1)
        current = self.norm(self.conv(folded)).unflatten(0, (3, len(x)))
        v, spikes = torch.zeros_like(current[0]), []
        for at in current:
            v = 0.5 * v + at
            spikes.append(applied(Window, v + 0.5))
            v = v * (1 - spikes[-1].detach())
        rates = F.avg_pool2d(torch.stack(spikes).flatten(0, 1), 2).flatten(1)
        scores: Tensor = self.head(rates).unflatten(0, (3, len(x))).mean(0)
        return scores


class Bfloat(torch.autograd.Function):
    """Scores rounded to bfloat16 at the end of the network."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        return scores.bfloat16().to(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


def masked(scores: Tensor) -> Tensor:
    """Of 1000 classes only the first 20 are allowed."""
    return scores.masked_fill(torch.arange(scores.shape[1]) >= 20, -torch.inf)


def hinge(scores: Tensor) -> Tensor:
    """How far each class is ahead of the best other one."""
    top = scores.topk(2, 1)
    others = top.values[:, :1].expand_as(scores).scatter(1, top.indices[:, :1], top.values[:, 1:])
    return scores - others


def scripted() -> nn.Module:
    return torch.jit.script(mlp())


SCORES: dict[str, Callable[[], nn.Module]] = {
    "logits": mlp,
    "log-probabilities": lambda: Then(mlp(), lambda z: z.log_softmax(1)),
    "mean of log-probabilities": lambda: Then(
        mlp(classes=2 * CLASSES), lambda z: z.unflatten(1, (2, -1)).log_softmax(2).mean(1)
    ),
    "large logits": lambda: Scaled(mlp(), 1e4),
    "tiny logits": lambda: Scaled(mlp(), 1e-6),
    "cosines": lambda: Then(Cosine(), lambda z: z),
    "distances": Prototypes,
    "hinge margins": lambda: Then(mlp(), hinge),
    "bfloat16": lambda: Then(mlp(), Bfloat.apply),
    "1000 classes, masked": lambda: Then(mlp(classes=1000), masked),
    "1000 classes": lambda: mlp(classes=1000),
    "spike counts, T = 1": lambda: Spiking(timesteps=1, scores="counts"),
    "spike counts, T = 5": lambda: Spiking(timesteps=5, scores="counts"),
    "rates": lambda: Spiking(timesteps=4, scores="rates"),
}
"""Networks by the kind of scores they give."""

KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIZE, CLASSES)),
    "sigmoid": lambda: mlp(nn.Sigmoid),
    "tanh": lambda: mlp(nn.Tanh),
    "ReLU6": lambda: mlp(nn.ReLU6),
    "attention": Attention,
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, CLASSES)
    ),
    "contrast": lambda: Contrast(mlp()),
    "bookkeeping": lambda: Bookkeeping(mlp()),
    "scripted": scripted,
    "dropout": lambda: Dropping(mlp()),
    "own generator": lambda: Noisy(mlp()),
}
"""Networks by what they are made of, and what they keep."""

IDIOMS: dict[str, Callable[[], nn.Module]] = {
    "keeps u": Spiking,
    "keeps the membrane": lambda: Spiking(lambda u: applied(Window, u + 1), hard=True),
    "keeps the derivative": lambda: Spiking(Slope.apply),
    "straight-through": lambda: Spiking(straight, hard=True),
    "one step": lambda: Spiking(timesteps=1),
    "membrane in a buffer": Stepwise,
    "recurrent": Recurrent,
    "time in the batch": Convolved,
}
"""The same kind of spiking network, written in different ways."""

ALL = {**SCORES, **KINDS, **IDIOMS}
SPIKING = {*IDIOMS, *(name for name in SCORES if name.startswith(("spike", "rates")))}
RANDOM = {"dropout", "own generator"}


def honest(name: str, count: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    """The trained network of that name, with images and labels."""
    x, y = images(count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return fit(ALL[name](), x, y), x, y


def names() -> list[str]:
    return list(itertools.chain(SCORES, KINDS, IDIOMS))
