"""The pieces of work that are timed, each for every contender: us, the floor, and the frameworks that are
installed.

A contender is a name and a precision. Ours and theirs have the same weights, batch, loss and optimizer; ours
with TGO does more than theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeguard.attacks import Attacked, pgd
from spikeguard.attacks.pgd import default_step
from spikeguard.bench.floor import Floor
from spikeguard.bench.peers import NEURON, Framework, Twin
from spikeguard.bench.timing import Work
from spikeguard.defenses import AT, TGO, Hooks
from spikeguard.defenses import Step as TrainingStep
from spikeguard.networks import build
from spikeguard.networks.classifier import Classifier
from spikeguard.neurons import seed_noise
from spikeguard.random import draws
from spikeguard.records.bench import Subject
from spikeguard.threat import Linf

PRECISIONS: dict[str, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16}
GUARD = TGO(delta=0.5, lambda_max=0.4, sigma=0.1)
ADVERSARY = AT(eps=8 / 255, steps=2, step_size=5 / 255)


SMALL = Subject("small", "small", 128, {"width": 32, "depth": 2})
VGG11 = Subject("vgg11", "vgg11", 64)
WRN16 = Subject("wrn16", "wrn16", 64)


def network_of(subject: Subject, device: torch.device, settle: bool = True) -> Classifier:
    """The network; ``settle``: in eval mode, with settled batch norms and balanced classes.

    Untrained neurons do not spike.
    """
    net = build(
        subject.network,
        classes=10,
        in_shape=subject.in_shape,
        timesteps=subject.timesteps,
        neuron=NEURON,
        mean=(0.5,),
        std=(0.25,),
        **subject.options,
    )
    net = net.to(device).train()
    if not settle:
        return net
    x, _ = batch_of(subject, device)
    with torch.no_grad():
        for _ in range(20):
            net(x[:32])
        net.eval()
        logits = net(x)
        # far enough apart that rounding seldom decides
        net.head.weight.mul_(10 / logits.std(0).mean().clamp(min=1e-3))
        net.head.bias.sub_(net(x).mean(0))
    return net


def batch_of(subject: Subject, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images ``[N, C, H, W]`` of patches of four pixels, from a fixed seed, and labels."""
    generator = draws.generator("bench", subject.batch)
    channels, height, width = subject.in_shape
    coarse = torch.rand(
        subject.batch, channels, -(-height // 4), -(-width // 4), dtype=torch.float32, generator=generator
    )
    x = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :height, :width].contiguous()
    return x.to(device), torch.randint(0, 10, (subject.batch,), generator=generator).to(device)


class Step:
    """A training step of ours.

    Crafting if ``adversarial``, forward with TGO if ``guarded``, backward, SGD.
    """

    def __init__(
        self,
        net: Classifier,
        x: Tensor,
        y: Tensor,
        precision: str,
        guarded: bool,
        adversarial: bool = False,
        checkpoint: bool = False,
    ) -> None:
        self.net, self.x, self.y, self.calls = net.train(), x, y, 0
        net.prefer(True, PRECISIONS[precision], checkpoint)
        if guarded:
            GUARD.prepare(net)
        self.guard = GUARD.start(net) if guarded else Hooks()
        self.adversary = ADVERSARY.start(net) if adversarial else Hooks()
        self.optimizer = optimizer(net, fused=True)

    def __call__(self) -> None:
        self.calls += 1
        seed_noise(self.net, self.calls)
        step = TrainingStep(self.net, self.x, self.y, self.calls, 0.5)
        self.adversary.craft(step)
        ((name, view),) = step.views.items()
        with self.guard.watch(self.net, name):
            logits = self.net(view.x)
        loss = F.cross_entropy(logits, self.y)
        penalty = self.guard.penalty(step)
        loss = loss if penalty is None else loss + penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def optimizer(net: nn.Module, fused: bool = False) -> torch.optim.SGD:
    """SGD with Nesterov momentum; ``fused`` is how ``train`` has it, the default how users write it."""
    return torch.optim.SGD(
        net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=fused or None
    )


def plain_step(net: Classifier, x: Tensor, y: Tensor, precision: str) -> Work:
    """The step that a user writes around a network from ``sg.build``: plain autocast, loss, backward, SGD."""
    dtype = PRECISIONS[precision]
    sgd = optimizer(net.train())

    def step() -> None:
        sgd.zero_grad()
        with nullcontext() if dtype is None else torch.autocast(x.device.type, dtype):
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        sgd.step()

    return step


def their_step(
    net: nn.Module, x: Tensor, y: Tensor, adversary: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Work:
    """The same training step around another framework's network, without TGO."""
    sgd = optimizer(net.train())

    def step() -> None:
        images = x if adversary is None else adversary(x, y)
        net.train()
        sgd.zero_grad()
        F.cross_entropy(net(images), y).backward()
        sgd.step()

    return step


def their_attack(
    net: nn.Module, eps: float, step_size: float, steps: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """torchattacks' PGD from the image itself; ImportError where it is not installed."""
    import torchattacks

    attack = torchattacks.PGD(net, eps=eps, alpha=step_size, steps=steps, random_start=False)
    found: Callable[[Tensor, Tensor], Tensor] = attack
    return found


def our_attack(
    net: Classifier, x: Tensor, y: Tensor, eps: float, steps: int, drop: bool
) -> Callable[[], Attacked]:
    """Our PGD from the image itself, ``drop``: broken samples leave the batch."""

    def attack() -> Attacked:
        return pgd(
            net, x, y, Linf(eps), steps=steps, step_size=step_size(eps, steps), start=False, early_stop=drop
        )

    return attack


def step_size(eps: float, steps: int) -> float:
    """The default step size of ``pgd``, as both sides are given it."""
    return float(default_step(torch.tensor(eps, dtype=torch.float64), steps, None))


def training(
    subject: Subject, frameworks: Mapping[str, Framework], device: torch.device, adversarial: bool = False
) -> dict[str, Work]:
    """Contenders of the training step."""
    x, y = batch_of(subject, device)
    net = network_of(subject, device)
    work: dict[str, Work] = {}
    for precision, dtype in PRECISIONS.items():
        work[f"floor {precision}"] = _floor(
            Floor(net, x, dtype or torch.float32), ADVERSARY.steps if adversarial else 0, True
        )
        for guarded in (False, True):
            work[f"{'TGO' if guarded else 'vanilla'} {precision}"] = Step(
                network_of(subject, device), x, y, precision, guarded, adversarial
            )
        if not adversarial:
            work[f"plain loop {precision}"] = plain_step(network_of(subject, device), x, y, precision)
        for name, framework in frameworks.items():
            other = theirs(net, framework, dtype)
            adversary = None
            if adversarial:
                adversary = their_attack(other, ADVERSARY.eps, ADVERSARY.step_size or 0.0, ADVERSARY.steps)
            work[f"{name} {precision}"] = their_step(other, x, y, adversary)
    return work


def attacking(
    net: Classifier,
    x: Tensor,
    y: Tensor,
    eps: float,
    steps: int,
    frameworks: Mapping[str, Framework],
    drop: bool,
) -> dict[str, Work]:
    """Contenders of PGD. Ours return ``Attacked``, theirs the images found."""
    work: dict[str, Work] = {}
    for precision, dtype in PRECISIONS.items():
        own = copy.deepcopy(net).eval().prefer(True, dtype)
        work[f"floor {precision}"] = _floor(Floor(net, x, dtype or torch.float32), steps, False)
        work[f"all steps {precision}"] = our_attack(own, x, y, eps, steps, False)
        if drop:
            work[f"dropping {precision}"] = our_attack(own, x, y, eps, steps, True)
        for name, framework in frameworks.items():
            attack = their_attack(theirs(net, framework, dtype), eps, step_size(eps, steps), steps)
            work[f"{name} {precision}"] = lambda attack=attack: attack(x, y)  # type: ignore[misc]
    return work


def _floor(floor: Floor, attack_steps: int, train: bool) -> Work:
    def work() -> None:
        for _ in range(attack_steps):
            floor.attack()
        if train:
            floor.train()

    return work


def theirs(net: Classifier, framework: Framework, dtype: torch.dtype | None) -> nn.Module:
    """The network in another framework, in eval mode, under autocast if ``dtype`` is given."""
    other = Twin(net, framework)
    other.autocast = dtype
    return other.eval()
