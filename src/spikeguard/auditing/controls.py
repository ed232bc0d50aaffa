"""Controls: small experiments on some images whose outcome is known in advance if the attacks work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn

from spikeguard import attacks
from spikeguard.attacks import Attacked
from spikeguard.auditing.checks import gradient
from spikeguard.auditing.run import BROKEN, Task, kept
from spikeguard.auditing.scoring import fresh_draws, seeded
from spikeguard.auditing.state import State
from spikeguard.auditing.suite import BLACK, LOCAL
from spikeguard.errors import Interrupted
from spikeguard.gradients import ASSG, BPDA, EOT, Estimator, Own, SwapSurrogate
from spikeguard.gradients.surrogate import known
from spikeguard.models import eval_mode, is_wrong, logits_of
from spikeguard.neurons import spiking
from spikeguard.neurons.tap import tap
from spikeguard.random import draws
from spikeguard.records.schema import (
    Controls,
    Curve,
    FullBudget,
    NoiseRow,
    PairRow,
    Restarts,
    SecondAttack,
    Settings,
    ZeroBudget,
)
from spikeguard.stats import ALPHA, mcnemar, share_above
from spikeguard.surrogates import Atan, Rectangle, StraightThrough, Surrogate
from spikeguard.threat import Linf, Threat

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
OTHERS: tuple[Estimator, ...] = (SwapSurrogate(StraightThrough()), BPDA(Atan(4.0)))
EOT_DRAWS = 3
ENOUGH = 3
"""Images that only black-box attacks break, from which on it is an error."""
FEW_PIXELS = 16
"""Values an image below which random points find what gradients find: a linear function rises along its
gradient about ``pixels ** 0.5 / 2`` times as far as to the best of 200 random points."""
LEAST_FACTOR = 4.0
"""Of the budget, at which gradients are compared with noise at least."""
T = TypeVar("T")


def evenly_spaced(task: Task, count: int) -> Tensor:
    """Rows of ``count`` images spread evenly over all.

    Of half as many for a random model, whose every gradient is an average.
    """
    count = count // 2 if task.random else count
    last, count = len(task.x) - 1, min(count, len(task.x))
    rows: Tensor = torch.linspace(0, last, count, dtype=torch.float32, device="cpu").round().long().unique()
    return rows


def subset(task: Task, rows: Tensor) -> Task:
    """The task on some of its images, without its session."""
    at = rows.to(task.x.device)
    plan = replace(task.plan, random=task.random, eot_draws=1)
    x, y, threat = task.x[at], task.y[at], task.threat.select(at)
    return Task(task.model, x, y, threat, task.members, task.sample_ids[rows.cpu()], plan)


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


def _broken(
    task: Task,
    threat: Threat,
    attack: Callable[..., Attacked],
    settings: Settings,
    estimator: Estimator | None = None,
) -> Tensor:
    """The samples that an attack breaks, by the model itself, ``[N]`` bool: none where it has no gradient."""
    if estimator is not None:
        averaged = task.random and not isinstance(estimator, EOT)
        settings = {**settings, "gradient": EOT(EOT_DRAWS, estimator) if averaged else estimator}
    try:
        got = attack(task.model, task.x, task.y, threat, **settings)
    except Exception:  # whatever the model raises: the run of the suite has noted it
        return torch.zeros(len(task.x), dtype=torch.bool, device=task.x.device)
    return ~_right(task, got.x)


def _right(task: Task, x: Tensor) -> Tensor:
    with eval_mode(task.model):
        if task.random:
            return fresh_draws(task.model, x, task.y, draws.key(task.seed, "control"), 20) > 0.5
        with torch.no_grad():
            parts = zip(x.split(task.batch_size), task.y.split(task.batch_size), strict=True)
            return ~torch.cat([is_wrong(logits_of(task.model, a), b) for a, b in parts])


def zero_budget(task: Task) -> ZeroBudget:
    """At eps 0 every attack must leave the clean accuracy."""
    clean, left = _right(task, task.x), torch.ones_like(task.y, dtype=torch.bool)
    runs: list[tuple[Callable[..., Attacked], Settings]] = [
        (attacks.fgsm, {}),
        (attacks.pgd, {"steps": 3, "restarts": 1}),
    ]
    for attack, settings in runs:
        left &= ~_broken(task, task.threat.scaled(0.0), attack, settings, Own())
    return ZeroBudget(float(clean.float().mean()), float((left & clean).float().mean()))


def full_budget(task: Task) -> FullBudget:
    """At eps 1 (every image is allowed), from the image itself, gradients must bring accuracy to chance.

    Under every norm in steps of ``Linf``, for all their balls are then the same set of images.
    """
    left, answers = _right(task, task.x), _answers(task)
    chance = 1.0 / max(answers.shape[1], 2)
    breakable = len(answers.argmax(1).unique()) > 1
    for estimator, loss in product(LADDER, ("ce", "margin")):
        if float(left.float().mean()) <= chance or not breakable:
            break
        settings: Settings = {"steps": 20, "step_size": 1 / 8, "start": False, "loss": loss}
        left &= ~_broken(task, Linf(1.0), attacks.pgd, settings, estimator)
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


def against_noise(task: Task) -> tuple[NoiseRow, ...]:
    """From twice the budget on gradients must break more images than as many random points.

    The budget is doubled until they clearly do, or until noise leaves too few images, or every image is
    allowed: where nothing breaks, neither attack says anything. No rows where no outcome is significant, for
    few images are right, or where random points search a ball as well as gradients (``FEW_PIXELS``).
    """
    rows: list[NoiseRow] = []
    budgeted = torch.nonzero(task.threat.per_sample(task.x).flatten() > 0).flatten()
    if not len(budgeted) or task.x[0].numel() < FEW_PIXELS:
        return ()
    task = subset(task, budgeted)
    right, least = _right(task, task.x), float(task.threat.per_sample(task.x).min())
    if mcnemar(int(right.sum()), 0) >= ALPHA:
        return ()
    pixels, factor, done = task.x[0].numel(), 1.0, False
    whole = {"linf": 1.0, "l2": pixels**0.5, "l1": float(pixels)}[task.threat.norm]
    while not done:
        factor *= 2
        rows.append(_against_noise(task, right, factor))
        last, wide = rows[-1], factor >= LEAST_FACTOR
        done = beats_noise(last) or (wide and (noise_saturates(last) or factor * least >= whole))
    return tuple(rows)


def _against_noise(task: Task, right: Tensor, factor: float) -> NoiseRow:
    """Random points against gradients at ``factor`` times the budget; the first estimator that clearly wins
    is enough, and where the first breaks nothing, and noise neither, others are not tried."""
    threat = task.threat.scaled(factor)
    by_noise, by_gradient = torch.zeros_like(right), torch.zeros_like(right)
    row = NoiseRow(int(right.sum()), 0, 0, 1.0, False, factor)
    for number, (estimator, loss) in enumerate(product(LADDER, ("ce", "margin"))):
        noise: Settings = {"tries": 20, "seed": number}
        by_noise = by_noise | right & _broken(task, threat, attacks.random_noise, noise)
        settings: Settings = {"steps": 20, "restarts": 1, "loss": loss}
        by_gradient = by_gradient | right & _broken(task, threat, attacks.pgd, settings, estimator)
        only = (int((by_gradient & ~by_noise).sum()), int((by_noise & ~by_gradient).sum()))
        counts = (int(right.sum()), int(by_noise.sum()), int(by_gradient.sum()))
        row = NoiseRow(*counts, mcnemar(*only), only[0] > only[1], factor)
        if beats_noise(row) or not (row.noise or row.gradient):
            break
    return row


def beats_noise(row: NoiseRow) -> bool:
    """Whether gradients clearly broke more images than random points."""
    return row.p < ALPHA and row.better


def noise_saturates(row: NoiseRow) -> bool:
    """Whether random points leave too few images for anything to be better."""
    left = row.right - row.noise
    return left <= 0.2 * row.right or mcnemar(left, 0) >= ALPHA


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
        self[name] = _broken(self.task, self.task.threat, *RUNS[name])
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
    broken = ~_right(small, small.x)
    for factor in CURVE:
        if factor:
            for estimator in (ASSG(start_from_first=True), Own()):
                settings: Settings = {"steps": steps, "restarts": 1, "loss": "margin"}
                broken = broken | _broken(
                    small, small.threat.scaled(factor), attacks.sapgd, settings, estimator
                )
        points.append((factor, 1 - float(broken.float().mean())))
    return Curve(len(small.x), steps, tuple(points))


def survivors_with_gradient(task: Task, state: State) -> dict[str, float]:
    """By estimator, the share of up to 100 surviving samples that have a gradient at the best point found."""
    rows = torch.nonzero(state.right > BROKEN).flatten()[:100]
    if not len(rows):
        return {}
    shares = {}
    with eval_mode(task.model):
        for name, estimator in zip(("own", "straight-through", "bpda"), (Own(), *OTHERS), strict=True):
            g = gradient(task.model, estimator, state.found[rows], task.y[rows])
            shares[name] = 0.0 if g is None else float((g.flatten(1).abs().amax(1) > 0).float().mean())
    return shares


def only_black_box(task: Task, state: State) -> Tensor:
    """Rows that black-box attacks broke and gradients did not.

    What the local search breaks counts on neither side: gradients brought it near, but it follows none.
    """
    broken = (state.by_family <= BROKEN * (state.clean > 0)) & (state.first_by >= 0)
    black = torch.tensor([f in BLACK for f in task.families], device=task.x.device)
    local = torch.tensor([f == LOCAL for f in task.families], device=task.x.device)
    return torch.nonzero(broken[black].any(0) & ~broken[~black & ~local].any(0)).flatten()


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


def second_attack(task: Task, state: State) -> SecondAttack:
    """Attack the samples that only black-box attacks broke once more, by the strongest gradients.

    Only what they leave again says that gradients are masked. A member that starts at the best point of the
    others stands on their gradients: it is no black-box attack here.
    """
    rows = only_black_box(task, state)
    if not len(rows) or task.x[0].numel() < FEW_PIXELS:
        return SecondAttack(len(rows), len(task.x))
    small = subset(task, rows)
    left = torch.ones_like(rows, dtype=torch.bool)
    strongest: list[Estimator] = [BPDA(Atan(4.0)), *LADDER[:-1]]
    for estimator, loss in product(strongest, ("margin", "ce")):
        if int(left.sum()) < ENOUGH:
            break
        settings: Settings = {"steps": 100, "restarts": 1, "loss": loss}
        left &= ~_broken(small, small.threat, attacks.sapgd, settings, estimator)
    count = int(left.sum())
    return SecondAttack(len(rows), len(task.x), count, share_above(count, len(task.x)))
