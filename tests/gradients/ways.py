"""One layer of leaky neurons, written in the ways that public code writes it: the tests' own list.

Every layer maps currents ``[T, N, ...]`` to spikes: ``H = V / 2 + I``, a spike where ``H > 1/2``, a hard
reset without a gradient of its own. Re-creations in our own words of what the named projects do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from narrow import applied, as_a
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

THRESHOLD, WIDTH = 0.5, 0.5
Fire = Callable[[Tensor], Tensor]


def slope(u: Tensor) -> Tensor:
    return (u.abs() < WIDTH).float() / (2 * WIDTH)


class KeepsDistance(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).to(u)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.saved_tensors[0])


class KeepsMembrane(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.gt(THRESHOLD).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        v: Tensor = ctx.saved_tensors[0]
        return grads[0].clone() * (abs(v - THRESHOLD) < WIDTH).float() / (2 * WIDTH)


class KeepsDerivative(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, alpha: float) -> Tensor:
        u = v - THRESHOLD
        derivative = alpha * (1 - alpha * u.abs())
        ctx.save_for_backward(derivative.masked_fill(u.abs() > 1 / alpha, 0.0))
        return u.gt(0.0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


class KeepsOnContext(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.v = v
        return (v > THRESHOLD).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.v - THRESHOLD)


class WritesOnes(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        out = torch.zeros_like(u)
        out[u > 0] = 1.0
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        u: Tensor = ctx.saved_tensors[0]
        return grads[0] / (10.0 * u.abs() + 1.0) ** 2


class SecondInput(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, window: float) -> Tensor:
        ctx.save_for_backward(v.clone())
        ctx.threshold, ctx.window = threshold, window
        return (v > threshold).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (v,) = ctx.saved_tensors
        return grads[0] * ((v - ctx.threshold).abs() < ctx.window).float() / ctx.threshold, None, None


class KeepsOutputToo(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, gamma: float) -> Tensor:
        out = (u > 0).float()
        ctx.save_for_backward(u, out, torch.tensor([gamma]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        u, _, gamma = ctx.saved_tensors
        return grads[0] * (1 / gamma) ** 2 * (gamma - u.abs()).clamp(min=0), None


class WhereOfZeros(Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, alpha: float) -> Tensor:
        ctx.alpha = alpha
        ctx.save_for_backward(u)
        return torch.where(u <= 0.0, torch.zeros_like(u), torch.ones_like(u))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / (ctx.alpha * ctx.saved_tensors[0].abs() + 1.0).pow(2), None


class SetupContext(Function):
    @staticmethod
    def forward(v: Tensor) -> Tensor:
        return (v > THRESHOLD).float()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.saved_tensors[0] - THRESHOLD)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], v: Tensor) -> tuple[Tensor, int | None]:
        return applied(SetupContext, v), in_dims[0]


class InNumpy(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.v = v
        return torch.from_numpy((v.detach().numpy() > THRESHOLD).astype(np.float32))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * slope(ctx.v - THRESHOLD)


class Reversed(Function):
    @staticmethod
    def forward(ctx: Any, rest: Tensor) -> Tensor:
        ctx.save_for_backward(rest)
        return (rest < 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0] * slope(ctx.saved_tensors[0])


class Scaled(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return THRESHOLD * (v > THRESHOLD).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return THRESHOLD * grads[0] * slope(ctx.saved_tensors[0] - THRESHOLD)


class WholeSequence(Function):
    """Currents in, spikes out, and the pass through time written by hand."""

    @staticmethod
    def forward(ctx: Any, current: Tensor) -> Tensor:
        v, spikes, potentials = torch.zeros_like(current[0]), [], []
        for one in current:
            v = v / 2 + one
            s = (v > THRESHOLD).float()
            potentials.append(v)
            spikes.append(s)
            v = v * (1 - s)
        out = torch.stack(spikes)
        ctx.save_for_backward(torch.stack(potentials), out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        potentials, spikes = ctx.saved_tensors
        back, carried = [], torch.zeros_like(potentials[0])
        for g, v, s in zip(grads[0].flip(0), potentials.flip(0), spikes.flip(0), strict=True):
            carried = g * slope(v - THRESHOLD) + carried * (1 - s) / 2
            back.append(carried)
        return torch.stack(back[::-1])


def surrogate_step(v: Tensor) -> Tensor:
    hard, soft = (v > THRESHOLD).float(), ((v - THRESHOLD) / (2 * WIDTH) + 0.5).clamp(0, 1)
    return hard.detach() + soft - soft.detach()


def difference_detached(v: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * (v - THRESHOLD))
    return ((v > THRESHOLD).to(v.dtype) - soft).detach() + soft


def hard_without_grad(v: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * (v - THRESHOLD))
    with torch.no_grad():
        hard = torch.where(v > THRESHOLD, 1.0, 0.0)
    return hard + (soft - soft.detach())


def stepped(u: Tensor) -> Tensor:
    return torch.heaviside(u, torch.zeros(()))


@torch.jit.script
def scripted_step(v: Tensor) -> Tensor:
    soft = torch.sigmoid(4 * (v - 0.5))
    return (v > 0.5).to(v) - soft.detach() + soft


class Loop(nn.Module):
    """A layer whose neurons fire by a function of the membrane."""

    def __init__(self, fire: Fire, reset: bool = True) -> None:
        super().__init__()
        self.fire, self.reset = fire, reset

    def forward(self, current: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(current[0]), []
        for one in current:
            v = v / 2 + one
            s = self.fire(v)
            v = v * (1 - s.detach()) if self.reset else v
            spikes.append(s)
        return torch.stack(spikes)


class ScriptedLayer(nn.Module):
    """As neurons in eval mode of spikingjelly 0.0.0.0.14: no gradient at all."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, current: Tensor) -> Tensor:
        spikes = torch.zeros_like(current)
        v = torch.zeros_like(current[0])
        for t in range(current.shape[0]):
            v = v / 2 + current[t]
            s = (v > self.threshold).to(current)
            v = v * (1.0 - s) if self.training else v * (1.0 - s.detach())
            spikes[t] = s
        return spikes


class Checkpointed(Loop):
    def forward(self, current: Tensor) -> Tensor:
        out: Tensor = checkpoint(super().forward, current, use_reentrant=False)
        return out


class Mapped(Loop):
    """One sample at a time, mapped over the batch."""

    def forward(self, current: Tensor) -> Tensor:
        out: Tensor = torch.vmap(super().forward, 1, 1)(current)
        return out


class Learned(nn.Module):
    """A threshold of each channel's own, as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(THRESHOLD))

    def forward(self, v: Tensor) -> Tensor:
        return applied(SecondInput, v, self.threshold.expand(v.shape[1:]), 0.5)


class PerStep(nn.Module):
    """A layer of another library that takes one step a call."""

    def __init__(self, neuron: nn.Module, reset: Callable[[Any], None]) -> None:
        super().__init__()
        self.neuron, self.reset = neuron, reset

    def forward(self, current: Tensor) -> Tensor:
        self.reset(self.neuron)
        return torch.stack([self.neuron(one) for one in current])


def spikingjelly() -> nn.Module:
    from spikingjelly.activation_based import neuron, surrogate

    made = neuron.LIFNode(
        tau=2.0,
        decay_input=False,
        v_threshold=THRESHOLD + 1e-7,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
    )
    return PerStep(made, lambda n: n.reset())


def snntorch() -> nn.Module:
    import snntorch

    made = snntorch.Leaky(beta=0.5, threshold=THRESHOLD, reset_mechanism="none", init_hidden=True)
    return PerStep(made, lambda n: n.reset_mem())


def compiled() -> nn.Module:
    return as_a(nn.Module, torch.compile(Loop(KeepsMembrane.apply), backend="eager"))


class Way(NamedTuple):
    """How a layer is written, where code does so, and whether its neurons are reset."""

    name: str
    seen_in: str
    make: Callable[[], nn.Module]
    reset: bool = True


def by(fire: Fire) -> Callable[[], nn.Module]:
    return lambda: Loop(fire)


FIRST = Way(
    "function keeps the distance",
    "SpikingJelly, snnTorch",
    by(lambda v: applied(KeepsDistance, v - THRESHOLD)),
)
WAYS = (
    FIRST,
    Way("function keeps the membrane", "STBP, LISNN, SNN-RAT", by(KeepsMembrane.apply)),
    Way("function keeps its derivative", "BrainCog", by(lambda v: applied(KeepsDerivative, v, 2.0))),
    Way("function keeps nothing torch knows of", "scripts with ctx attributes", by(KeepsOnContext.apply)),
    Way("function writes ones into zeros", "SpyTorch", by(lambda v: applied(WritesOnes, v - THRESHOLD))),
    Way("threshold is a second input", "sinabs, LTMD", lambda: Loop(Learned())),
    Way("function keeps input and output", "TET", by(lambda v: applied(KeepsOutputToo, v - THRESHOLD, 1.0))),
    Way("function selects ones or zeros", "norse", by(lambda v: applied(WhereOfZeros, v - THRESHOLD, 100.0))),
    Way("function with setup_context", "torch.func", by(SetupContext.apply)),
    Way("function fires below", "time-to-threshold code", by(lambda v: applied(Reversed, THRESHOLD - v))),
    Way("function gives scaled spikes", "converted networks", by(lambda v: applied(Scaled, v) / THRESHOLD)),
    Way("function computes in NumPy", "simulators in other libraries", by(InNumpy.apply)),
    Way("function of the whole sequence", "HoSNN, SLAYER", lambda: _Whole()),
    Way("hard + soft - soft, two detached", "snn scripts", by(surrogate_step)),
    Way("soft + (hard - soft) detached", "quantization code", by(difference_detached)),
    Way("hard spikes under no_grad", "Bengio et al. 2013", by(hard_without_grad)),
    Way("bare comparison", "inference code", by(lambda v: (v > THRESHOLD).float())),
    Way("comparison times a number", "inference code", by(lambda v: (v - THRESHOLD > 0) * 1.0)),
    Way("torch.heaviside", "inference code", by(lambda v: stepped(v - THRESHOLD))),
    Way("torch.sign", "binary networks", by(lambda v: (torch.sign(v - THRESHOLD) + 1) / 2)),
    Way("torch.sign, clipped", "binary networks", by(lambda v: torch.sign(v - THRESHOLD).clamp(min=0))),
    Way(
        "ones written where it fires",
        "inference code",
        by(lambda v: torch.zeros_like(v).masked_fill(v > THRESHOLD, 1.0)),
    ),
    Way("scripted function", "SpikingJelly 0.0.0.0.14", by(scripted_step)),
    Way("scripted module", "SpikingJelly 0.0.0.0.14", lambda: torch.jit.script(ScriptedLayer(THRESHOLD))),
    Way("compiled layer", "torch.compile", compiled),
    Way("checkpointed layer", "torch.utils.checkpoint", lambda: Checkpointed(KeepsMembrane.apply)),
    Way("mapped over the batch", "torch.vmap", lambda: Mapped(SetupContext.apply)),
    Way("SpikingJelly 2.0", "SpikingJelly", spikingjelly),
    Way("snnTorch 1.0", "snnTorch", snntorch, reset=False),
)


class _Whole(nn.Module):
    def forward(self, current: Tensor) -> Tensor:
        return applied(WholeSequence, current)


class Net(nn.Module):
    """Two layers of neurons for images [N, 1, 28, 28], written in one way."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(49, 24), nn.Linear(24, 16), nn.Linear(16, 10)
        self.fire1, self.fire2 = way.make(), way.make()

    def forward(self, x: Tensor) -> Tensor:
        current = self.first((F.avg_pool2d(x, 4).flatten(1) - 0.286) / 0.353)
        spikes = self.fire1(current.expand(4, *current.shape))
        out: Tensor = self.head(self.fire2(self.second(spikes))).mean(0)
        return out


def written(way: Way, weights: dict[str, Tensor]) -> Net:
    """The network with these weights of its linear layers."""
    net = Net(way)
    net.load_state_dict(weights, strict=False)
    return net.eval()


def trained(x: Tensor, y: Tensor, reset: bool = True) -> dict[str, Tensor]:
    """Weights of a network written in the first way."""
    torch.manual_seed(0)
    net = Net(first(reset)).train()
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(4):
        for rows in torch.randperm(len(x)).split(100):
            adam.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            adam.step()
    return {k: v for k, v in net.state_dict().items() if "fire" not in k}


def first(reset: bool) -> Way:
    return (
        FIRST
        if reset
        else FIRST._replace(make=lambda: Loop(lambda v: applied(KeepsDistance, v - THRESHOLD), False))
    )
