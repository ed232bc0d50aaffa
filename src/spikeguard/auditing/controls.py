"""Controls: small experiments on a panel of images whose outcome is known beforehand if the attacks work."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from spikeguard import attacks
from spikeguard.attacks import Attacked
from spikeguard.auditing import run as runner
from spikeguard.auditing.checks import gradient
from spikeguard.auditing.run import Task
from spikeguard.auditing.scoring import fresh_draws
from spikeguard.auditing.state import ROBUST, State
from spikeguard.auditing.suite import BLACK
from spikeguard.errors import Interrupted
from spikeguard.gradients import ASSG, BPDA, EOT, Estimator, Own, SwapSurrogate
from spikeguard.gradients.surrogate import known
from spikeguard.models import eval_mode
from spikeguard.neurons import spiking
from spikeguard.neurons.tap import tap
from spikeguard.random import draws
from spikeguard.stats import ALPHA, mcnemar, share_above
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Surrogate
from spikeguard.threat import Threat

PANELS = {"quick": 50, "standard": 100, "full": 200, "autoattack": 50}
CURVES = {"quick": (50, 10), "standard": (200, 20), "full": (200, 20), "autoattack": (50, 10)}
CURVE = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
LADDER: tuple[Estimator, ...] = (
    Own(),
    ASSG(start_from_first=True),
    SwapSurrogate(StraightThrough()),
    SwapSurrogate(Rectangle(1.0)),
    BPDA(Atan(4.0)),
)
EOT_DRAWS = 3
ENOUGH = 3  # images that only black-box attacks break, from which on it is an error


def spread(task: Task, count: int) -> Tensor:
    """Rows of ``count`` images spread evenly over all.

    Of half as many for a random model, whose every gradient is an average.
    """
    count = count // 2 if task.random else count
    rows: Tensor = torch.linspace(0, len(task.x) - 1, min(count, len(task.x))).round().long().unique()
    return rows


def panel(task: Task, rows: Tensor) -> Task:
    """The task on some of its images."""
    at, numbers = rows.to(task.x.device), task.numbers[rows.cpu()]
    x, y, threat = task.x[at], task.y[at], task.threat.select(at)
    return Task(
        task.model, x, y, threat, task.members, task.seed, numbers, task.batch_size, known_random=task.random
    )


def run(task: Task, effort: str) -> dict[str, Any]:
    """All controls that do not need the result of the audit."""
    small = panel(task, spread(task, PANELS[effort]))
    told: dict[str, Any] = {"images": len(small.x)}
    outcomes = _Outcomes(small)
    steps: list[tuple[str, Callable[[], Any]]] = [
        ("nothing", lambda: _nothing(small)),
        ("everything", lambda: _everything(small)),
        ("against noise", lambda: _against_noise(small)),
        ("pairs", lambda: _pairs(outcomes)),
        ("restarts", lambda: _restarts(outcomes)),
        ("silent surrogate", lambda: _silent(small)),
        ("curve", lambda: curve(task, *CURVES[effort])),
    ]
    for number, (name, control) in enumerate(steps):
        task.tell(f"control: {name}", number, len(steps))
        if task.stop is not None and task.stop.is_set():
            raise Interrupted(f"audit stopped before its controls ended; {runner.kept(task)}")
        told[name] = control()
    return told


def _broken(
    task: Task,
    threat: Threat,
    attack: Callable[..., Attacked],
    settings: dict[str, Any],
    estimator: Estimator | None = None,
) -> Tensor:
    """Which samples an attack breaks, judged on the model itself: all False where it has no gradient."""
    if estimator is not None:
        averaged = task.random and not isinstance(estimator, EOT)
        settings = {**settings, "gradient": EOT(EOT_DRAWS, estimator) if averaged else estimator}
    try:
        got = attack(task.model, task.x, task.y, threat, **settings)
    except Exception:  # whatever the model raises: this attack does nothing; the run of the suite has told it
        return torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)
    return ~_right(task, got.x)


def _right(task: Task, x: Tensor) -> Tensor:
    with eval_mode(task.model):
        if task.random:
            return fresh_draws(task.model, x, task.y, draws.key(task.seed, "control"), 20) > 0.5
        with torch.no_grad():
            return torch.cat([task.model(a).argmax(1) for a in x.split(task.batch_size)]) == task.y


def _nothing(task: Task) -> dict[str, float]:
    """At eps 0 every attack must leave the clean accuracy."""
    clean, left = _right(task, task.x), torch.ones_like(task.y, dtype=torch.bool)
    for attack, settings in ((attacks.fgsm, {}), (attacks.pgd, {"steps": 3, "restarts": 1})):
        left &= ~_broken(task, task.threat.scaled(0.0), attack, settings, Own())
    return {"clean": float(clean.float().mean()), "left": float((left & clean).float().mean())}


def _everything(task: Task) -> dict[str, float]:
    """At eps 1 (every image is allowed), from the image itself, gradients must bring accuracy to chance."""
    eps = {"linf": 1.0, "l2": task.x[0].numel() ** 0.5, "l1": float(task.x[0].numel())}[task.threat.norm]
    threat, left = type(task.threat)(eps), _right(task, task.x)
    chance = 1.0 / max(int(task.y.max()) + 1, 2)
    for estimator, loss in product(LADDER, ("ce", "margin")):
        if float(left.float().mean()) <= chance:
            break
        settings = {"steps": 20, "step_size": eps / 8, "start": False, "loss": loss}
        left &= ~_broken(task, threat, attacks.pgd, settings, estimator)
    return {"left": float(left.float().mean()), "chance": chance}


def _against_noise(task: Task) -> list[dict[str, float]]:
    """At two and four times the budget gradients must break more than random points do, as many as the
    gradients had steps.

    Nothing where so few images are right that no outcome could tell the two apart.
    """
    rows: list[dict[str, float]] = []
    right = _right(task, task.x)
    if not float(task.threat.per_sample(task.x).max()) or mcnemar(int(right.sum()), 0) >= ALPHA:
        return rows
    for factor in (2.0, 4.0):
        threat = task.threat.scaled(factor)
        by_noise, by_gradient = torch.zeros_like(right), torch.zeros_like(right)
        for number, (estimator, loss) in enumerate(
            product(LADDER, ("ce", "margin"))
        ):  # the first that clearly wins is enough
            by_noise = by_noise | right & _broken(
                task, threat, attacks.random_noise, {"tries": 20, "seed": number}
            )
            by_gradient = by_gradient | right & _broken(
                task, threat, attacks.pgd, {"steps": 20, "restarts": 1, "loss": loss}, estimator
            )
            only = (int((by_gradient & ~by_noise).sum()), int((by_noise & ~by_gradient).sum()))
            if mcnemar(*only) < ALPHA and only[0] > only[1]:
                break
        told = {
            "eps factor": factor,
            "right": int(right.sum()),
            "noise": int(by_noise.sum()),
            "gradient": int(by_gradient.sum()),
        }
        rows.append({**told, "p": mcnemar(*only), "better": float(only[0] > only[1])})
    return rows


RUNS: dict[str, tuple[Callable[..., Attacked], dict[str, Any], Estimator]] = {
    "FGSM": (attacks.fgsm, {}, Own()),
    "PGD-20": (attacks.pgd, {"steps": 20, "restarts": 1}, Own()),
    "PGD-20 x 5": (attacks.pgd, {"steps": 20, "restarts": 5}, Own()),
    "PGD-40": (attacks.pgd, {"steps": 40, "restarts": 1}, Own()),
    "APGD-40": (attacks.apgd, {"steps": 40}, Own()),
    **{f"EOT-{n}": (attacks.pgd, {"steps": 10, "restarts": 1}, EOT(n)) for n in (1, 10, 20)},
}
PAIRS = (("PGD-20", "FGSM"), ("PGD-40", "PGD-20"), ("APGD-40", "PGD-40"))  # the stronger one first
RANDOM_PAIRS = (("EOT-10", "EOT-1"), ("EOT-20", "EOT-10"))


class _Outcomes(dict[str, Tensor]):
    """What the attacks of ``RUNS`` break, each run once it is asked for."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def __missing__(self, name: str) -> Tensor:
        self[name] = _broken(self.task, self.task.threat, *RUNS[name])
        return self[name]

    def left(self, name: str) -> float:
        """Share of the images that the attack leaves."""
        return 1 - float(self[name].float().mean())


def _pairs(broken: _Outcomes) -> list[dict[str, Any]]:
    """Attacks of which one must not be significantly weaker than the other."""
    rows = []
    for strong, weak in (*PAIRS, *(RANDOM_PAIRS if broken.task.random else ())):
        only = (int((broken[weak] & ~broken[strong]).sum()), int((broken[strong] & ~broken[weak]).sum()))
        told = {
            "stronger": strong,
            "weaker": weak,
            "only the weaker breaks": only[0],
            "only the stronger breaks": only[1],
            "p": mcnemar(*only),
        }
        rows.append({**told, "left by": [broken.left(name) for name in (strong, weak)]})
    return rows


def _restarts(broken: _Outcomes) -> dict[str, float]:
    """What PGD-20 with the own gradient leaves after one and after five starts."""
    return {"1": broken.left("PGD-20"), "5": broken.left("PGD-20 x 5")}


def _silent(task: Task) -> dict[str, float]:
    """Per layer of ours.

    The share of potentials at which its own surrogate gives less than a hundredth of what it gives at the
    threshold.
    """
    if not (isinstance(task.model, nn.Module) and known(task.model)):
        return {}
    with eval_mode(task.model), torch.no_grad(), tap(task.model) as seen:
        task.model(task.x)
    shares = {}
    for name, layer in spiking(task.model).items():
        if name in seen.potentials and type(layer.spec.surrogate).observe is Surrogate.observe:
            u = seen.potentials[name]
            slopes = layer.spec.surrogate.derivative(u) / layer.spec.surrogate.derivative(
                torch.zeros_like(u[:1, :1])
            )
            shares[name] = float((slopes < 0.01).float().mean())
    return shares


def curve(task: Task, count: int, steps: int) -> dict[str, Any]:
    """Accuracy against eps under SA-PGD with ASSG and with the model's own gradient."""
    small, points = panel(task, spread(task, count)), []
    broken = ~_right(small, small.x)
    for factor in CURVE:
        if factor:
            for estimator in (ASSG(start_from_first=True), Own()):
                settings = {"steps": steps, "restarts": 1, "loss": "margin"}
                broken = broken | _broken(
                    small, small.threat.scaled(factor), attacks.sapgd, settings, estimator
                )
        points.append([factor, 1 - float(broken.float().mean())])
    return {"images": len(small.x), "steps": steps, "points": points}


def survivors_with_gradient(task: Task, state: State) -> dict[str, float]:
    """By estimator.

    The share of up to 100 surviving samples at whose best point so far it gives any gradient.
    """
    rows = torch.nonzero(state.right > runner.BROKEN).flatten()[:100]
    if not len(rows):
        return {}
    shares = {}
    with eval_mode(task.model):
        for name, estimator in (
            ("own", Own()),
            ("straight-through", SwapSurrogate(StraightThrough())),
            ("unlocked", BPDA(Atan(4.0))),
        ):
            g = gradient(task.model, estimator, state.found[rows], task.y[rows])
            shares[name] = 0.0 if g is None else float((g.flatten(1).abs().amax(1) > 0).float().mean())
    return shares


def second_look(task: Task, state: State) -> dict[str, Any]:
    """Samples that only black-box attacks broke.

    Attacked once more by the strongest gradients before anything is concluded from them.
    """
    black = torch.tensor([m.family in BLACK for m in task.members], device=task.x.device)
    first, second = state.first, state.second
    only = (first >= 0) & black[first.clamp(min=0)] & ((second == ROBUST) | black[second.clamp(min=0)])
    rows = torch.nonzero(only).flatten()
    told: dict[str, Any] = {"by black box only": len(rows), "images": len(task.x)}
    if len(rows):
        small = panel(task, rows)
        left = torch.ones_like(rows, dtype=torch.bool)
        strongest: list[Estimator] = [BPDA(Atan(4.0)), *LADDER[:-1]]
        for estimator, loss in product(strongest, ("margin", "ce")):
            if int(left.sum()) < ENOUGH:
                break
            left &= ~_broken(
                small, small.threat, attacks.sapgd, {"steps": 100, "restarts": 1, "loss": loss}, estimator
            )
        told["left by the second look"] = int(left.sum())
        told["lower bound of the share"] = share_above(int(left.sum()), len(task.x))
    return told
