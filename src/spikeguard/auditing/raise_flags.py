"""Which flags an audit raises: from the checks before it, from its controls, from its result.

A flag says no more than its number of images can show: a share counts as above a limit if its lower 95 %
bound is (``share_above``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from spikeguard.auditing import findings
from spikeguard.auditing.flags import Flag, flag, sorted_by_level
from spikeguard.auditing.noise_control import beats_noise, noise_saturates
from spikeguard.auditing.second_attack import ENOUGH
from spikeguard.auditing.state import CLEAN_WRONG, State
from spikeguard.auditing.suite import EFFORTS
from spikeguard.auditing.task import BROKEN, Task
from spikeguard.records.schema import Controls, NoiseRow, Ties
from spikeguard.stats import ALPHA, share_above, wilson
from spikeguard.wrapping.repeatable import CHANGED

USE = "use"
"""Evidence that says what to write instead; the message of a flag ends with it."""
INVALID = ("attack left its budget", "attack returned values")
"""How the messages of an attack begin whose result breaks the rules."""
PAIR_FLAGS = {
    "PGD-20": "pgd-weaker-than-fgsm",
    "PGD-40": "more-steps-weaker",
    "APGD-40": "apgd-weaker-than-pgd",
}
WEAKNESS = ("no-gradient", "not-broken-at-eps-1", "no-better-than-noise", "black-box-beats-white-box")
"""Flags that say that the attacks are too weak: no matter where none can lower the number."""
STUBBORN = 0.1
"""Share of images that gradients may leave at eps 1 although chance is less: 20 steps do not reach all."""
UNSEEN = 0.01
"""Share of images that may survive without any gradient."""
BLACK_ONLY = 0.005
"""Share of images that only black-box attacks may break."""
FEW_MOVED = 8
"""Images that say whether attacks use their budget."""
TIED = 0.05
"""Share of images above which ties of scores are reported."""
GAP = 0.05
"""Share of images above which a gap is called masking."""


def all_flags(
    task: Task,
    state: State,
    checked: Mapping[str, Mapping[str, object]],
    control: Controls,
    effort: str,
) -> tuple[Flag, ...]:
    """All flags of an audit, errors first. ``checked``: findings of the checks before it."""
    flags = [
        *from_checks(checked),
        *from_controls(control),
        *_from_survivors(task, state, control),
        *_from_failures(task, state),
        *_from_numbers(task, state, control),
        *_from_images(task, state, control, effort),
        *_from_values(state, checked),
    ]
    if _exact(task, state):
        flags = [f for f in flags if f.id not in WEAKNESS]
    return sorted_by_level(flags)


def _exact(task: Task, state: State) -> bool:
    """Whether no attack could lower the number: the budget is 0, or no image is right any more."""
    return not float(task.threat.per_sample(task.x).max()) or not float(state.right.max())


def from_checks(findings: Mapping[str, Mapping[str, object]]) -> list[Flag]:
    """Flags of the checks before any attack."""
    return [flag(id, str(evidence.get(USE, "")), **evidence) for id, evidence in findings.items()]


def from_ties(tied: Ties | None, n: int) -> list[Flag]:
    """The flag of scores that tie, on significantly more images than ``TIED``."""
    if tied is None or share_above(max(tied.clean, tied.broken), n) <= TIED:
        return []
    detail = f"({tied.clean} of {n} images without an attack, {tied.broken} at the input that breaks them)"
    return [flag("tied-scores", detail, **asdict(tied))]


def from_controls(control: Controls) -> list[Flag]:
    """Flags of the controls."""
    flags, zero, full = [], control.zero_budget, control.full_budget
    changed = round(abs(zero.clean - zero.left) * control.images)
    if share_above(changed, control.images) > CHANGED:
        detail = f"({100 * zero.left:.1f} % instead of {100 * zero.clean:.1f} %)"
        flags.append(flag("changed-at-eps-0", detail, **asdict(zero)))
    left = share_above(round(full.left * control.images), control.images)
    if full.breakable and left > max(full.chance, STUBBORN):
        detail = f"({100 * full.left:.0f} % are left, chance is {100 * full.chance:.0f} %)"
        flags.append(flag("not-broken-at-eps-1", detail, **asdict(full)))
    if _no_better_than_noise(control.against_noise):
        flags.append(flag("no-better-than-noise", rows=[asdict(row) for row in control.against_noise]))
    for row in control.pairs:
        if row.p < ALPHA and row.only_weaker > row.only_stronger:
            detail = f"({row.stronger} against {row.weaker})"
            flags.append(flag(PAIR_FLAGS.get(row.stronger, "eot-weaker"), detail, **asdict(row)))
    return flags


def _no_better_than_noise(rows: tuple[NoiseRow, ...]) -> bool:
    if not rows or any(beats_noise(row) for row in rows):
        return False
    last = rows[-1]
    if not (last.noise or last.gradient):
        return False  # nothing could be broken
    worse = last.p < ALPHA and not last.better
    # where noise leaves too few images, only a gradient that does worse says something
    return worse or not noise_saturates(last)


def _from_survivors(task: Task, state: State, control: Controls) -> list[Flag]:
    flags, shares, second = [], control.survivors_with_gradient, control.second_attack
    alive = int((state.right > BROKEN).sum())
    dead = round((1 - max(shares.values(), default=1.0)) * alive)
    if shares and max(shares.values()) <= 0.05 and share_above(dead, len(task.x)) > UNSEEN:
        flags.append(flag("no-gradient", shares=shares))
    if second is None or not second.black_box_only:
        return flags
    many = (second.left or 0) >= ENOUGH and (second.share_low or 0.0) > BLACK_ONLY
    if many and not _exact(task, state):
        flags.append(flag("black-box-beats-white-box", f"({second.left} images)", **asdict(second)))
    else:
        flags.append(flag("black-box-first", f"({second.black_box_only} images)", **asdict(second)))
    return flags


def _from_failures(task: Task, state: State) -> list[Flag]:
    flags = []
    if task.members and len(state.failed) == len(task.members) and not any(state.attempted.values()):
        flags.append(flag("nothing-ran", f"({next(iter(state.failed.values()))})"))
    for why in dict.fromkeys(state.failed.values()):
        names = [name for name, reason in state.failed.items() if reason == why]
        kind = "attack-invalid" if why.startswith(INVALID) else "attack-failed"
        flags.append(flag(kind, f"({', '.join(names)}: {why})", members=names))
    # of the member that lost most: one image at a class border may be lost again by each
    if (lost := max(state.unconfirmed.values(), default=0)) > max(3, 0.01 * len(task.x)):
        flags.append(flag("witness-lost", f"({lost})", **state.unconfirmed))
    return flags


def _from_numbers(task: Task, state: State, control: Controls) -> list[Flag]:
    flags, parts, curve = [], findings.masking(task, state), findings.convergence(task, state)
    if parts is not None:
        # where all gradients agree, those of other estimators are only longer attacks
        gap = parts.rest if control.gradients_agree else parts.gradient + parts.rest
        if share_above(round(gap * len(task.x)), len(task.x)) > GAP:
            flags.append(flag("masking", f"({100 * gap:.1f} points)", **asdict(parts)))
    if curve and curve.last_doubling > 0.005:
        detail = f"({100 * curve.last_doubling:.1f} points, {curve.member})"
        flags.append(flag("not-converged", detail, **asdict(curve)))
    return flags


def _from_images(task: Task, state: State, control: Controls, effort: str) -> list[Flag]:
    flags, clean, n = [], float(state.clean.double().mean()), len(task.x)
    if hardly_better_than_chance(clean, n, control.full_budget.chance):
        flags.append(flag("clean-accuracy-low", f"({100 * clean:.1f} %)", clean=clean))
    moved, eps = task.threat.length(state.found - task.x), task.threat.per_sample(task.x).flatten()
    # an image that did not move says nothing: nothing that was tried raised its margin
    rows = (moved > 0) & (state.first_by != CLEAN_WRONG)
    if int(rows.sum()) >= FEW_MOVED and bool((moved[rows] < 0.5 * eps[rows]).all()):
        flags.append(flag("budget-unused", largest_share=float((moved[rows] / eps[rows]).max())))
    if n < min(EFFORTS[effort] or 1000, 200):
        flags.append(flag("few-images", f"({n} images)", images=n))
    if task.random:
        flags.append(flag("random-model"))
    return flags


def _from_values(state: State, checked: Mapping[str, Mapping[str, object]]) -> list[Flag]:
    """Logits that are no numbers: on clean images that the checks did not see, and where samples broke."""
    flags, values = [], state.margin
    if "no-logits" not in checked and (
        count := int((values.isnan() & (state.first_by == CLEAN_WRONG)).sum())
    ):
        flags.append(flag("no-logits", f"(NaN on {count} clean images)", images=count))
    if count := int((~values.isfinite() & (state.first_by >= 0)).sum()):
        flags.append(flag("broken-by-nan", f"({count} images)", images=count))
    return flags


def hardly_better_than_chance(clean: float, n: int, chance: float) -> bool:
    """Less than twice chance, with few classes less than a quarter of the way from chance to 1.

    So few images that most of them might be right say nothing.
    """
    limit = min(2 * chance, chance + (1 - chance) / 4)
    return clean < limit and wilson(round(clean * n), n)[1] < (1 + chance) / 2
