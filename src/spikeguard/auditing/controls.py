"""Controls: small experiments on some images whose outcome is known in advance if the attacks work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from spikeguard import attacks
from spikeguard.adapters.tap import tap
from spikeguard.attacks import Attacked
from spikeguard.auditing import panel
from spikeguard.auditing.checks import gradient
from spikeguard.auditing.noise_control import against_noise
from spikeguard.auditing.panel import OTHERS, broken_by, evenly_spaced, right_at, subset
from spikeguard.auditing.task import Task, kept
from spikeguard.errors import Interrupted
from spikeguard.gradients import ASSG, EOT, Estimator, Own
from spikeguard.gradients.surrogate import known
from spikeguard.models import eval_mode, logits_of
from spikeguard.neurons import spiking
from spikeguard.random import draws
from spikeguard.records.schema import (
    Controls,
    Curve,
    FullBudget,
    PairRow,
    Restarts,
    Settings,
    ZeroBudget,
)
from spikeguard.stats import mcnemar
from spikeguard.surrogates import Surrogate
from spikeguard.threat import Linf
from spikeguard.wrapping.repeatable import seeded

PANELS = {"quick": 50, "standard": 100, "full": 200, "autoattack": 50}
CURVES = {"quick": (50, 10), "standard": (200, 20), "full": (200, 20), "autoattack": (50, 10)}
CURVE = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
T = TypeVar("T")


def run_controls(task: Task, effort: str) -> Controls:
    """Run all controls that do not need the result of the audit."""
    small = subset(task, evenly_spaced(task, PANELS[effort]))
    outcomes = Outcomes(small)
    names = ("zero budget", "full budget", "against noise", "pairs", "restarts", "dead surrogates", "curve")

    def step(name: str, control: Callable[[], T]) -> T:
        task.session.progress(f"control: {name}", names.index(name), len(names))
        if task.session.stopped:
            raise Interrupted(f"audit stopped before its controls ended; {kept(task)}")
        return control()

    return Controls(
        images=len(small.x),
        zero_budget=step("zero budget", lambda: zero_budget(small)),
        full_budget=step("full budget", lambda: full_budget(small)),
        against_noise=step("against noise", lambda: against_noise(small)),
        pairs=step("pairs", lambda: pairs(outcomes)),
        restarts=step("restarts", lambda: restarts(outcomes)),
        dead_surrogate_share=step("dead surrogates", lambda: dead_surrogate_share(small)),
        curve=step("curve", lambda: curve(task, *CURVES[effort])),
        gradients_agree=gradients_agree(small),
    )


def zero_budget(task: Task) -> ZeroBudget:
    """At eps 0 every attack must leave the clean accuracy."""
    clean, left = right_at(task, task.x), torch.ones_like(task.y, dtype=torch.bool)
    runs: list[tuple[Callable[..., Attacked], Settings]] = [
        (attacks.fgsm, {}),
        (attacks.pgd, {"steps": 3, "restarts": 1}),
    ]
    for attack, settings in runs:
        left &= ~broken_by(task, task.threat.scaled(0.0), attack, settings, Own())
    return ZeroBudget(float(clean.float().mean()), float((left & clean).float().mean()))


def full_budget(task: Task) -> FullBudget:
    """At eps 1 (every image is allowed), from the image itself, gradients must bring accuracy to chance.

    Under every norm in steps of ``Linf``, for all their balls are then the same set of images.
    """
    left, answers = right_at(task, task.x), _answers(task)
    chance = 1.0 / max(answers.shape[1], 2)
    breakable = len(answers.argmax(1).unique()) > 1
    for estimator, loss in product(panel.LADDER, ("ce", "margin")):
        if float(left.float().mean()) <= chance or not breakable:
            break
        settings: Settings = {"steps": 20, "step_size": 1 / 8, "start": False, "loss": loss}
        left &= ~broken_by(task, Linf(1.0), attacks.pgd, settings, estimator)
    return FullBudget(float(left.float().mean()), chance, breakable)


def _answers(task: Task) -> Tensor:
    """Logits at the images, at as many of noise, and at a black and a white one, ``[M, K]``."""
    x = task.x
    noise = torch.rand(
        x.shape, dtype=torch.float32, generator=torch.Generator("cpu").manual_seed(0), device="cpu"
    ).to(x)
    at = torch.cat([x, noise, torch.zeros_like(x[:1]), torch.ones_like(x[:1])])
    with eval_mode(task.model), torch.no_grad(), seeded(task.model, draws.key(task.seed, "control")):
        return torch.cat([logits_of(task.model, part) for part in at.split(task.batch_size)])


RUNS: dict[str, tuple[Callable[..., Attacked], Settings, Estimator]] = {
    "FGSM": (attacks.fgsm, {}, Own()),
    "PGD-20": (attacks.pgd, {"steps": 20, "restarts": 1}, Own()),
    "PGD-20 x 5": (attacks.pgd, {"steps": 20, "restarts": 5}, Own()),
    "PGD-40": (attacks.pgd, {"steps": 40, "restarts": 1}, Own()),
    "APGD-40": (attacks.apgd, {"steps": 40}, Own()),
    **{f"EOT-{n}": (attacks.pgd, {"steps": 10, "restarts": 1}, EOT(n)) for n in (1, 10, 20)},
}
PAIRS = (("PGD-20", "FGSM"), ("PGD-40", "PGD-20"), ("APGD-40", "PGD-40"))  # the stronger one first
RANDOM_PAIRS = (("EOT-10", "EOT-1"), ("EOT-20", "EOT-10"))


class Outcomes(dict[str, Tensor]):
    """What the attacks of ``RUNS`` break; each runs once, when it is needed."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def __missing__(self, name: str) -> Tensor:
        self[name] = broken_by(self.task, self.task.threat, *RUNS[name])
        return self[name]

    def left(self, name: str) -> float:
        """Share of the images that the attack leaves."""
        return 1 - float(self[name].float().mean())


def pairs(broken: Outcomes) -> tuple[PairRow, ...]:
    """Pairs of attacks of which the first must not be significantly weaker than the second."""
    rows = []
    for strong, weak in (*PAIRS, *(RANDOM_PAIRS if broken.task.random else ())):
        only = (int((broken[weak] & ~broken[strong]).sum()), int((broken[strong] & ~broken[weak]).sum()))
        left = (broken.left(strong), broken.left(weak))
        rows.append(PairRow(strong, weak, *only, mcnemar(*only), left))
    return tuple(rows)


def restarts(broken: Outcomes) -> Restarts:
    """What PGD-20 with the own gradient leaves after one and after five starts."""
    return Restarts(broken.left("PGD-20"), broken.left("PGD-20 x 5"))


def dead_surrogate_share(task: Task) -> dict[str, float]:
    """By spiking layer, the share of potentials at which its own surrogate is below a hundredth of its value
    at the threshold."""
    if not (isinstance(task.model, nn.Module) and known(task.model)):
        return {}
    with eval_mode(task.model), torch.no_grad(), tap(task.model) as tapped:
        logits_of(task.model, task.x)
    shares = {}
    for name, layer in spiking(task.model).items():
        if name in tapped.potentials and type(layer.spec.surrogate).observe is Surrogate.observe:
            u = tapped.potentials[name]
            slopes = layer.spec.surrogate.derivative(u) / layer.spec.surrogate.derivative(
                torch.zeros_like(u[:1, :1])
            )
            shares[name] = float((slopes < 0.01).float().mean())
    return shares


def curve(task: Task, count: int, steps: int) -> Curve:
    """Accuracy against eps under SA-PGD with ASSG and with the model's own gradient."""
    small, points = subset(task, evenly_spaced(task, count)), list[tuple[float, float]]()
    broken = ~right_at(small, small.x)
    for factor in CURVE:
        if factor:
            for estimator in (ASSG(start_from_first=True), Own()):
                settings: Settings = {"steps": steps, "restarts": 1, "loss": "margin"}
                broken = broken | broken_by(
                    small, small.threat.scaled(factor), attacks.sapgd, settings, estimator
                )
        points.append((factor, 1 - float(broken.float().mean())))
    return Curve(len(small.x), steps, tuple(points))


def gradients_agree(task: Task) -> bool | None:
    """Whether other surrogates and BPDA give the model's own gradient; None for a random model."""
    if task.random:
        return None
    with eval_mode(task.model):
        own, *others = (gradient(task.model, e, task.x, task.y) for e in (Own(), *OTHERS))
    if own is None or not bool(own.any()):
        return False
    return all(other is not None and _same_direction(own, other) for other in others)


def _same_direction(own: Tensor, other: Tensor) -> bool:
    """Whether the gradients of the median image have a cosine above 0.99."""
    has = own.flatten(1).abs().amax(1) > 0
    cosines = torch.nn.functional.cosine_similarity(own[has].flatten(1), other[has].flatten(1))
    return float(cosines.median()) > 0.99
