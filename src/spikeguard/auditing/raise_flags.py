"""Which flags an audit raises: from the checks before it, from its controls, from its result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from spikeguard.auditing import controls, findings
from spikeguard.auditing.flags import Flag, flag, sorted_by_level
from spikeguard.auditing.run import Task
from spikeguard.auditing.state import CLEAN_WRONG, State
from spikeguard.auditing.suite import EFFORTS
from spikeguard.records.schema import Controls, NoiseRow
from spikeguard.stats import ALPHA, mcnemar

INVALID = ("left its budget", "returned values")
"""What the messages of an attack say whose result breaks the rules."""
PAIR_FLAGS = {
    "PGD-20": "pgd-weaker-than-fgsm",
    "PGD-40": "more-steps-weaker",
    "APGD-40": "apgd-weaker-than-pgd",
}


def all_flags(
    task: Task,
    state: State,
    checked: Mapping[str, Mapping[str, object]],
    control: Controls,
    effort: str,
) -> tuple[Flag, ...]:
    """All flags of an audit, errors first. ``checked``: findings of the checks before it."""
    return sorted_by_level(
        [
            *from_checks(checked),
            *from_controls(control),
            *_from_survivors(control),
            *_from_failures(task, state),
            *_from_numbers(task, state),
            *_from_images(task, state, effort),
            *_from_values(state, checked),
        ]
    )


def from_checks(findings: Mapping[str, Mapping[str, object]]) -> list[Flag]:
    """Flags of the checks before any attack."""
    return [flag(id, "", **evidence) for id, evidence in findings.items()]


def from_controls(control: Controls) -> list[Flag]:
    """Flags of the controls."""
    flags, zero, full = [], control.zero_budget, control.full_budget
    if zero.left != zero.clean:
        detail = f"({100 * zero.left:.1f} % instead of {100 * zero.clean:.1f} %)"
        flags.append(flag("changed-at-eps-0", detail, **asdict(zero)))
    if full.left > full.chance + 2.3 * (full.chance * (1 - full.chance) / control.images) ** 0.5:
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
    if not rows or any(r.p < ALPHA and r.better for r in rows):
        return False
    last = rows[-1]
    left = last.right - last.noise
    # where noise leaves too few images, only a gradient that does worse says something
    saturated = left <= 0.2 * last.right or mcnemar(left, 0) >= ALPHA
    return (last.p < ALPHA and not last.better) or not saturated


def _from_survivors(control: Controls) -> list[Flag]:
    flags, shares, second = [], control.survivors_with_gradient, control.second_attack
    if shares and max(shares.values()) <= 0.05:
        flags.append(flag("no-gradient", shares=shares))
    if second is None:
        return flags
    if (second.left or 0) >= controls.ENOUGH and (second.share_low or 0.0) > 0.002:
        flags.append(flag("black-box-beats-white-box", f"({second.left} images)", **asdict(second)))
    elif second.black_box_only:
        flags.append(flag("black-box-first", f"({second.black_box_only} images)", **asdict(second)))
    return flags


def _from_failures(task: Task, state: State) -> list[Flag]:
    flags = []
    if task.members and len(state.failed) == len(task.members):
        flags.append(flag("nothing-ran", f"({next(iter(state.failed.values()))})"))
    for why in dict.fromkeys(state.failed.values()):
        names = [name for name, reason in state.failed.items() if reason == why]
        kind = "attack-invalid" if any(text in why for text in INVALID) else "attack-failed"
        flags.append(flag(kind, f"({', '.join(names)}: {why})", members=names))
    if (lost := sum(state.unconfirmed.values())) > max(3, 0.01 * len(task.x)):
        flags.append(flag("witness-lost", f"({lost})", **state.unconfirmed))
    return flags


def _from_numbers(task: Task, state: State) -> list[Flag]:
    flags, parts, curve = [], findings.masking(task, state), findings.convergence(task, state)
    if parts and (gap := parts.pgd20 - parts.worst_case) > 0.05:
        flags.append(flag("masking", f"({100 * gap:.1f} points)", **asdict(parts)))
    if curve and curve.last_doubling > 0.005:
        detail = f"({100 * curve.last_doubling:.1f} points, {curve.member})"
        flags.append(flag("not-converged", detail, **asdict(curve)))
    return flags


def _from_images(task: Task, state: State, effort: str) -> list[Flag]:
    flags, clean, n = [], float(state.clean.mean()), len(task.x)
    if clean < 2.0 / (int(task.y.max()) + 1):
        flags.append(flag("clean-accuracy-low", f"({100 * clean:.1f} %)", clean=clean))
    moved, eps = task.threat.length(state.found - task.x), task.threat.per_sample(task.x).flatten()
    if float(eps.max()) > 0 and bool((moved < 0.5 * eps).all()):
        flags.append(flag("budget-unused", largest_share=float((moved / eps.clamp(min=1e-12)).max())))
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
