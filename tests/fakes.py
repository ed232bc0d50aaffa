"""Tiny spiking networks in plain torch, planted fakes of robustness, and attacks that know each trick: the
independent judge of the audit.

Nothing here comes from spikeguard, so an error there cannot hide itself. A fake has the weights of an
honestly trained `Net`; it looks robust to an attack that trusts its gradient, and `worst_inputs` are those of
one that does not.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Surrogate = tuple[str, float]  # a shape, and its slope or width
Change = Callable[[Tensor], Tensor]

MEAN, STD = 0.286, 0.353
REST = torch.zeros(())  # the membrane before the first step
STEPS = 50  # of each run of the judge
SLOPES = (4.0, 8.0, 2.0)  # of the judge's own surrogates
NOISE = 0.4  # sigma of the fake that is never the same twice

DERIVATIVES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "atan": lambda u, slope: slope / 2 / (1 + (math.pi / 2 * slope * u) ** 2),
    "triangle": lambda u, width: (1 - u.abs() / width).clamp(min=0) / width,
    "zero": lambda u, _: torch.zeros_like(u),
}


class Spike(torch.autograd.Function):
    """A step forward, a surrogate's derivative backward."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, shape: str, width: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = shape, width
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shape, width = ctx.surrogate
        (u,) = ctx.saved_tensors
        return grad * DERIVATIVES[shape](u, width), None, None


class Net(nn.Module):
    """Two convolutions of spiking neurons and a linear readout, for images [N, 1, 28, 28] in [0, 1].

    With `relu` the same as an ANN.
    """

    def __init__(
        self,
        timesteps: int = 3,
        surrogate: Surrogate = ("atan", 2.0),
        relu: bool = False,
        sigma: float = 0.0,
        decay: float = 0.5,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = {
            "timesteps": timesteps,
            "surrogate": surrogate,
            "relu": relu,
            "sigma": sigma,
            "decay": decay,
        }
        self.timesteps, self.surrogate, self.relu, self.sigma, self.decay = (
            1 if relu else timesteps,
            surrogate,
            relu,
            sigma,
            decay,
        )
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Linear(16 * 9, 10)

    def current(self, x: Tensor) -> Tensor:
        """The input of the first neurons, the same in every step."""
        current: Tensor = self.conv1(F.avg_pool2d((x - MEAN) / STD, 2))
        return current

    def fire(self, current: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Spikes and the membrane after the hard reset.

        `layer` is for fakes that treat one layer differently.
        """
        if self.relu:
            return current.relu(), v
        h = self.decay * v + current
        u = h - 1
        if self.sigma:
            u = u + self.sigma * torch.randn(h.shape, dtype=h.dtype, device=h.device)
        s: Tensor = Spike.apply(u, *self.surrogate)  # type: ignore[no-untyped-call]
        return s, h * (1 - s)

    def run(self, x: Tensor, v1: Tensor = REST, v2: Tensor = REST) -> tuple[list[Tensor], Tensor, Tensor]:
        """The readout of every step, and the membranes at the end."""
        current, logits = self.current(x), []
        for _ in range(self.timesteps):
            s1, v1 = self.fire(current, v1, 1)
            s2, v2 = self.fire(self.conv2(F.avg_pool2d(s1, 2)), v2, 2)
            logits.append(self.head(F.avg_pool2d(s2, 2).flatten(1)))
        return logits, v1, v2

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.run(x)[0]).mean(0)


class Guarded(Net):
    """While it trains, its potentials are pushed away from the threshold (`hinge`) and its firing is noisy.

    Threshold guarding.
    """

    hinge: Tensor = REST

    def fire(self, current: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        if not self.training:
            return super().fire(current, v, layer)
        h = self.decay * v + current
        self.hinge = self.hinge + (0.5 - (h - 1).abs()).clamp(min=0).mean() / self.timesteps
        s: Tensor = Spike.apply(h - 1 + 0.1 * torch.randn_like(h), *self.surrogate)  # type: ignore[no-untyped-call]
        return s, h * (1 - s)


def remade(kind: type[Net], net: Net, **changes: Any) -> Net:
    """`net` with its weights copied into another class, or with other options, in eval mode."""
    with torch.random.fork_rng(devices=[]):  # the first weights are drawn in vain
        other = kind(**{**net.options, **changes})
    other.load_state_dict(net.state_dict())
    return other.eval()


def fit(net: Net, x: Tensor, y: Tensor, epochs: int, adversarial: float = 0.0) -> Net:
    """Adam on batches of 50, on images attacked by PGD-2 within `adversarial` if that is not 0.

    Returns the net in eval mode.
    """
    net.train()
    adam = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(50):
            z = x[rows]
            if adversarial:
                z = _random_start(z, adversarial)
                for _ in range(2):
                    z = _ascend(
                        _gradient(net, z, y[rows], F.cross_entropy),
                        z,
                        x[rows],
                        adversarial,
                        0.75 * adversarial,
                    )
            adam.zero_grad()
            if isinstance(net, Guarded):
                net.hinge = REST
            loss = F.cross_entropy(net(z), y[rows])
            (loss + net.hinge if isinstance(net, Guarded) else loss).backward()
            adam.step()
        schedule.step()
    return net.eval()


HONEST: dict[str, Callable[[], Net]] = {
    "vanilla": Net,
    "AT": Net,
    "TGO": Guarded,
    "ANN": lambda: Net(relu=True),
    "T=1": lambda: Net(timesteps=1),
    "T=6": lambda: Net(timesteps=6),
    "wide surrogate": lambda: Net(surrogate=("atan", 1.0)),
    "narrow surrogate": lambda: Net(surrogate=("atan", 6.0)),
    "noisy": lambda: Net(sigma=0.2),
}


def honest(name: str, x: Tensor, y: Tensor, seed: int = 0) -> Net:
    """The honest network of that name, trained on these images.

    10 epochs, or 6 of adversarial training for AT.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(HONEST[name](), x, y, 6, 8 / 255) if name == "AT" else fit(HONEST[name](), x, y, 10)


class Spoilt(Net):
    """In eval mode `spoil` gets the spikes, the membrane and the layer, and changes their gradient.

    Not their values.
    """

    def __init__(self, spoil: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]], **options: Any) -> None:
        super().__init__(**options)
        self.spoil = spoil

    def fire(self, current: Tensor, v: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        s, v = super().fire(current, v, layer)
        return (s, v) if self.training else self.spoil(s, v, layer)


class LastStep(Spoilt):
    """Only the logits of the last step carry gradient."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.run(x)[0]
        return torch.stack([*(step.detach() for step in logits[:-1]), logits[-1]]).mean(0)


class NoGradInside(Net):
    """The first convolution takes no part in the graph in eval mode."""

    def current(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return super().current(x)


class Carried(Net):
    """Starts from the membranes that the last call with as many images left behind; `memory` forgets them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        logits, v1, v2 = self.run(x, *self.memory.get(len(x), (REST, REST)))
        self.memory[len(x)] = v1.detach(), v2.detach()
        return torch.stack(logits).mean(0)


class Decoy(Net):
    """Shows whoever asks for a gradient another function: a fixed random linear map of the pooled image."""

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return super().forward(x)
        return F.avg_pool2d(x, 2).flatten(1) @ torch.randn(
            196, 10, generator=torch.Generator().manual_seed(0)
        ).to(x)


class Wrapped(nn.Module):
    """`net` between a change of its input and one of its logits.

    `straight` passes the gradient by the former, for the judge's twins.
    """

    def __init__(
        self, net: Net, before: Change, after: Change = lambda logits: logits, straight: bool = False
    ) -> None:
        super().__init__()
        self.net, self.before, self.after, self.straight = net, before, after, straight
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        z = self.before(x)
        return self.after(self.net(x + (z - x).detach() if self.straight else z))


def _wrapping(before: Change, after: Change = lambda logits: logits) -> Callable[[Net], nn.Module]:
    return lambda net: Wrapped(remade(Net, net), before, after)


def _shift(x: Tensor) -> Tensor:
    """Every image moved by up to one pixel each way, by chance."""
    windows = F.pad(x, (1, 1, 1, 1)).unfold(2, 28, 1).unfold(3, 28, 1)  # [N, 1, 3, 3, 28, 28]
    down, right = torch.randint(3, (2, len(x)))
    return windows[torch.arange(len(x)), :, down, right]


WARPS: dict[str, Change] = {
    "quantized input": lambda x: torch.round(x * 7) / 7,
    "clamped normalized input": lambda x: x.clamp(
        MEAN, MEAN + STD
    ),  # what clamping to [0, 1] after normalizing comes to
    "batch mean": lambda x: x - x.mean(0) + MEAN,
    "batch statistics": lambda x: (x - x.mean()) / x.std() * STD + MEAN,
    "random shift": _shift,
}
OUTPUTS: dict[str, Change] = {
    "saturated logits": lambda logits: logits * 1e4,
    "softmax": lambda logits: (logits * 50).softmax(1),
    "argmax": lambda logits: F.one_hot(logits.argmax(1), 10).to(logits.dtype),
}
STRAIGHT = {"quantized input", "clamped normalized input"}  # whose own gradient is spoilt
RANDOM = {"noise without EOT", "random shift"}  # the accuracy is a mean over draws

FAKES: dict[str, Callable[[Net], nn.Module]] = {
    "gradient lost in eval": lambda net: remade(Spoilt, net, spoil=lambda s, v, layer: (s.detach(), v)),
    "detached time": lambda net: remade(
        Spoilt, net, spoil=lambda s, v, layer: (s.detach() if layer == 1 else s, v.detach())
    ),
    "no_grad inside": lambda net: remade(NoGradInside, net),
    "very narrow surrogate": lambda net: remade(Net, net, surrogate=("triangle", 1e-3)),
    # in one layer: two flips in a row would cancel
    "sign-flipped surrogate": lambda net: remade(
        Spoilt, net, spoil=lambda s, v, layer: (2 * s.detach() - s if layer == 1 else s, v)
    ),
    "zero gradient": lambda net: remade(Net, net, surrogate=("zero", 0.0)),
    "noise without EOT": lambda net: remade(Net, net, sigma=NOISE),
    "state carried over": lambda net: remade(Carried, net, decay=0.9),
    "one-timestep gradient": lambda net: remade(LastStep, net, spoil=lambda s, v, layer: (s, v.detach())),
    "decoy logits": lambda net: remade(Decoy, net),
    **{name: _wrapping(warp) for name, warp in WARPS.items()},
    **{name: _wrapping(torch.clone, after) for name, after in OUTPUTS.items()},
}


SAME = {name for name in FAKES if name not in (*WARPS, "noise without EOT", "state carried over")}
"""Fakes that give the classes of the honest net: what breaks it breaks them, only their gradients differ."""


def _twin(name: str, honest: Net, slope: float) -> nn.Module:
    """What the fake computes, with a gradient nobody spoilt."""
    sigma = NOISE if name == "noise without EOT" else 0.0
    net = remade(Net, honest, surrogate=("atan", slope), sigma=sigma)
    return Wrapped(net, WARPS[name], straight=name in STRAIGHT) if name in WARPS else net


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[1]).bool()
    return (logits.masked_fill(own, -math.inf).amax(1) - logits[own]).sum()


def _gradient(
    net: nn.Module, x: Tensor, y: Tensor, loss: Callable[[Tensor, Tensor], Tensor], draws: int = 1
) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(net(x.repeat(draws, 1, 1, 1)), y.repeat(draws)), x)[0]


def _ascend(grad: Tensor, z: Tensor, x: Tensor, eps: float, step: float) -> Tensor:
    return (z + step * grad.sign()).clamp(x - eps, x + eps).clamp(0, 1)


def _random_start(x: Tensor, eps: float) -> Tensor:
    return (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)


@torch.no_grad()
def _score(net: nn.Module, x: Tensor, y: Tensor, draws: int) -> Tensor:
    """Per image, the share of draws in which it is classified right."""
    right = torch.zeros(len(x))
    for _ in range(draws):
        right += net(x).argmax(1) == y
    return right / draws


def _worst_inputs(
    net: nn.Module, twins: list[nn.Module], x: Tensor, y: Tensor, eps: float, random: bool
) -> Tensor:
    """The worst candidate of each image, from PGD along each twin with both losses, at x and from a random
    start.

    A random net is attacked over 2 draws, its candidates are chosen by 60 draws every 25 steps. A fooled
    image is done with.
    """
    every, draws = (25, 60) if random else (1, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        worst, chosen = _score(net, x, y, draws), x.clone()
        for twin in twins:
            for loss, start in ((F.cross_entropy, x), (_margin, _random_start(x, eps))):
                z = start.clone()
                for step in range(1, STEPS + 1):
                    rows = worst.nonzero()[:, 0]
                    if not len(rows):
                        return chosen
                    z[rows] = _ascend(
                        _gradient(twin, z[rows], y[rows], loss, 2 if random else 1),
                        z[rows],
                        x[rows],
                        eps,
                        eps / 8,
                    )
                    if step % every == 0:
                        score = _score(net, z[rows], y[rows], draws)
                        better = score < worst[rows]
                        worst[rows[better]], chosen[rows[better]] = score[better], z[rows[better]]
        return chosen


def _accuracy_at(net: nn.Module, found: Tensor, y: Tensor, random: bool) -> float:
    """Of a random net over 100 draws that chose nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return _score(net, found, y, 100 if random else 1).mean().item()


def worst_inputs(name: str, fake: nn.Module, honest: Net, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """What an attack that knows the trick of this fake finds: by twins without it, judged on the fake."""
    twins = [_twin(name, honest, slope) for slope in SLOPES]
    return _worst_inputs(fake, twins, x, y, eps, name in RANDOM)


def accuracy_at(name: str, fake: nn.Module, found: Tensor, y: Tensor) -> float:
    """An upper bound on the fake's robust accuracy: its accuracy at what such an attack found."""
    return _accuracy_at(fake, found, y, name in RANDOM)


def reference_accuracy(net: Net, x: Tensor, y: Tensor, eps: float) -> float:
    """The same for an honest net, by its own gradient and by those of the judge's surrogates."""
    twins: list[nn.Module] = [net, *(remade(Net, net, surrogate=("atan", slope)) for slope in SLOPES)]
    random = net.sigma > 0
    return _accuracy_at(net, _worst_inputs(net, twins, x, y, eps, random), y, random)
