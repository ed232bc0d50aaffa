"""``spikeguard attack``: one attack on a network."""

from __future__ import annotations

import argparse
import json
import logging
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.attack_options import SPECIFIC, Settings, check, parser, settings_of
from spikeguard.cli.progress import progress
from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.auditing.member import Member
    from spikeguard.cli.target import Target
    from spikeguard.records.schema import AttackRecord

log = logging.getLogger("spikeguard")


def run(arguments: list[str]) -> int:
    made = parser()
    if "--list" in arguments:
        return _list()
    given = made.read(arguments)
    check(given, made)
    settings = settings_of(given)
    from spikeguard.auditing.single import single_member

    member = single_member(given.attack, settings)
    common.start(given.threads)
    from spikeguard.cli.target import find

    target = find(given.target, given.images, given.data, given.data_dir, given.device, given.weights)
    out = given.out or _default_file(given, settings)
    entry = _attack(target, member, settings, out, given)
    if given.json:
        common.print_json(entry.to_json())
    else:
        _show(entry, member.title, out, given)
    return 1 if entry.errors else 0


def _list() -> int:
    """Print the registry."""
    from spikeguard.attacks import ATTACKS

    rows = []
    for name, attack in ATTACKS.items():
        options = [f"--{o.replace('_', '-')}" for o in (*SPECIFIC, "loss") if o in attack.parameters]
        rows.append([name, ", ".join(attack.norms), " ".join(options), attack.summary])
    common.table("attacks", ["name", "norms", "options", "what it does"], rows)
    common.say("next: spikeguard attack TARGET --attack NAME")
    return 0


def _default_file(given: argparse.Namespace, settings: Settings) -> Path:
    """The file of the record: other settings, another file."""
    from spikeguard.cli.target import folder_of
    from spikeguard.random.draws import key

    which = (
        key(json.dumps(settings), given.images, given.seed, *common.own_files(given, given.target)) % 16**6
    )
    norm = "" if given.norm == "linf" else f"{given.norm}-"
    size = common.budget(given.norm, given.eps).replace("/", "of")
    return folder_of(given.target) / "attacks" / f"{given.attack}-{norm}{size}-{which:06x}.json"


def _attack(
    target: Target, member: Member, settings: Settings, out: Path, given: argparse.Namespace
) -> AttackRecord:
    """Run the attack; returns its record as written."""
    from spikeguard.auditing.record import seen_from
    from spikeguard.auditing.single import SingleAttack, run_single, state_file
    from spikeguard.auditing.task import Plan
    from spikeguard.cli.records import check_replaceable
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.threat import THREATS

    check_replaceable(out, lambda held: held.get("kind") == "attack")
    if state_file(out).exists() and not given.resume:
        raise UserError(
            f"{state_file(out)} holds an interrupted attack: go on with --resume, or name another --out"
        )
    plan = Plan(given.seed, given.batch_size, given.eot)
    what = SingleAttack(given.attack, settings, member, THREATS[given.norm](given.eps), plan)
    _announce(target, settings, given)
    with progress() as shown, ctrl_c() as stop:
        origin = seen_from(out.parent, target.origin)
        return run_single(what, target.model, target.test, out, origin, shown.show, stop)


PASSES = ("steps", "queries", "tries", "restarts", "targets", "searches")
"""Settings whose product says how many passes an attack takes at most."""
LONG = 60.0  # seconds from which on a user wants to know at once


def _announce(target: Target, settings: Settings, given: argparse.Namespace) -> None:
    """Say how long the attack takes at most if that is long: its first step may take hours."""
    import torch
    from torch import nn

    from spikeguard.random.streams import preserved_noise

    count = given.eot
    for name in PASSES:
        value = settings.get(name)
        count *= value if isinstance(value, int) else 1
    if count <= FEW:
        return
    part = target.test.pixels()[: given.batch_size].requires_grad_()
    begun = time.perf_counter()
    model = target.model
    kept = preserved_noise(model) if isinstance(model, nn.Module) else nullcontext()
    with torch.enable_grad(), kept:
        logits = model(part)
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), part, allow_unused=True)
    seconds = (time.perf_counter() - begun) * count * len(target.test) / len(part)
    if seconds > LONG:
        left = timedelta(seconds=round(seconds)) if seconds < CENTURY else "more than a hundred years"
        log.info("%s takes at most about %s: %d passes over the images", given.attack, left, count)


FEW, CENTURY = 100, 3e9  # passes that are not worth a line; seconds


def _show(entry: AttackRecord, title: str, out: Path, given: argparse.Namespace) -> None:
    from spikeguard.stats import COVERS

    rows = []
    for name, accuracy in (("clean", entry.clean), (title, entry.worst_case)):
        between = f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f}"
        rows.append([name, f"{100 * accuracy.value:.1f}", between])
    size = common.budget(given.norm, given.eps)
    common.table(
        f"{given.target}, {entry.images} test images, {given.norm} eps {size}",
        ["", "accuracy, %", "95 % interval"],
        rows,
    )
    if entry.random_model:
        common.say(
            f"the network is random at inference: scored by the {entry.scored_by}; --eot averages its "
            "gradients"
        )
    common.say(f"robust accuracy is at most this: the interval covers {COVERS}")
    common.print_flags(entry.flags)
    common.say(f"wrote {out} and its witnesses")
    common.say(f"next: spikeguard audit {given.target} (the network may hide from this attack)")
