"""``spikeguard attack``: one attack on a network."""

from __future__ import annotations

import argparse
import json
import logging
import time
from contextlib import nullcontext
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikeguard.cli import common
from spikeguard.errors import Interrupted, UserError, unknown

if TYPE_CHECKING:
    from spikeguard.auditing.suite import Member
    from spikeguard.cli.target import Target
    from spikeguard.records.schema import AttackRecord
    from spikeguard.surrogates import Surrogate

log = logging.getLogger("spikeguard")
Settings = dict[str, Any]
DEFAULT_STEPS = {"bim": 10, "pgd": 20}
SPECIFIC = (
    "steps",
    "step_size",
    "restarts",
    "targets",
    "queries",
    "tries",
    "searches",
    "momentum",
    "rule",
    "learning_rate",
)
"""Options that some attacks have, in the order of a record."""


def parser() -> common.Parser:
    from spikeguard.cli.target import HELP

    made = common.Parser(
        "attack",
        "Attack a network by one attack; write a record, and the inputs that it found beside it.",
        epilog="An option that an attack does not have is an error that names the attacks that have it.",
    )
    made.add_argument("target", type=common.named, help=HELP)
    made.add_argument(
        "--attack",
        default="pgd",
        metavar="NAME",
        help="any attack of spikeguard.attacks; rfgsm is the half-strength version of the literature; "
        "--list names all",
    )
    made.add_argument("--list", action="store_true", help="list the attacks with norms and options, and end")
    common.add_budget(made)
    made.add_argument(
        "--steps", type=common.up_to(100_000), help="gradient steps (default 10 for bim, 20 for pgd)"
    )
    made.add_argument("--step-size", type=common.share, help="default max(2.5 eps / steps, eps / 16)")
    made.add_argument("--restarts", type=common.up_to(10_000), help="restarts (default 5 for pgd)")
    made.add_argument("--no-random-start", action="store_true", help="pgd starts at the image itself, once")
    made.add_argument("--targets", type=common.up_to(100_000), help="classes that a targeted attack leads to")
    made.add_argument(
        "--queries", type=common.up_to(10**7), help="forward passes an image of a black-box search"
    )
    made.add_argument("--tries", type=common.up_to(10**6), help="random points an image, of random_noise")
    made.add_argument("--searches", type=common.up_to(1000), help="searches for cw's constant")
    made.add_argument("--momentum", type=common.share, help="momentum of pgd's gradient; 1 is MI-FGSM")
    made.add_argument("--rule", choices=["apgd", "sapgd"], help="step rule of targeted")
    made.add_argument("--learning-rate", type=common.share, help="learning rate of cw's optimizer")
    made.add_argument(
        "--loss", choices=["ce", "margin", "dlr"], help="what to maximize (default: the attack's)"
    )
    made.add_argument(
        "--surrogate",
        help="derivative in the backward pass, as atan:8, triangle:2, straightthrough (default: the "
        "network's own)",
    )
    made.add_argument(
        "--eot",
        type=common.up_to(10_000),
        default=1,
        help="gradients averaged per step, for a random network",
    )
    made.add_argument(
        "--images", type=common.positive, default=1000, help="test images, balanced over the classes"
    )
    made.add_argument("--seed", type=common.seed, default=0, help="seed of all random draws")
    made.add_argument("--batch-size", type=common.positive, default=250, help="images per batch")
    common.add_data_options(made, of_user=True)
    made.add_argument(
        "--out",
        type=common.path,
        metavar="FILE",
        help="record to write (default: TARGET/attacks/ATTACK-EPS-SETTINGS.json)",
    )
    made.add_argument(
        "--resume", action="store_true", help="go on with an interrupted attack, to the same result"
    )
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    if "--list" in arguments:
        return _list()
    given = made.read(arguments)
    _check(given, made)
    settings = _settings(given)
    member = _member(given, settings)
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


def _check(given: argparse.Namespace, made: common.Parser) -> None:
    """Refuse names and options that do not fit together."""
    from spikeguard.attacks import ATTACKS

    if given.attack not in ATTACKS:
        raise unknown("attack", given.attack, ATTACKS)
    attack = ATTACKS[given.attack]
    if given.norm not in attack.norms:
        made.error(f"{given.attack} works under --norm {' or '.join(attack.norms)}, not under {given.norm}")
    common.check_budget(made, given)
    flags = {name: name for name in (*SPECIFIC, "loss")}
    flags |= {"no_random_start": "start", "surrogate": "gradient"}
    for name, parameter in flags.items():
        if getattr(given, name) and parameter not in attack.parameters:
            able = [n for n, a in ATTACKS.items() if parameter in a.parameters]
            made.error(
                f"--{name.replace('_', '-')} is for {', '.join(able[:-1])}{' and ' if able[1:] else ''}"
                f"{able[-1]}, not for {given.attack}"
            )


def _settings(given: argparse.Namespace) -> Settings:
    """The settings of the attack, as a record keeps them. Random draws depend on them: keep their order."""
    from spikeguard.attacks import ATTACKS

    parameters = ATTACKS[given.attack].parameters
    has_loss, has_gradient = "loss" in parameters, "gradient" in parameters
    settings: Settings = {
        **({"loss": given.loss or parameters["loss"].default} if has_loss else {}),
        **(
            {"surrogate": given.surrogate, "eot": given.eot if given.eot > 1 else None}
            if has_gradient
            else {}
        ),
    }
    for name in SPECIFIC:
        if name in parameters:
            settings[name] = getattr(given, name) or DEFAULT_STEPS.get(
                given.attack if name == "steps" else ""
            )
            if (
                name in ("steps", "restarts", "targets", "queries", "tries", "rule")
                and settings[name] is None
            ):
                settings[name] = parameters[name].default
    if given.attack == "pgd":
        settings["start"] = not given.no_random_start
        if given.no_random_start:
            settings["restarts"] = 1
    return {name: value for name, value in settings.items() if value is not None or name in KEPT}


KEPT = ("surrogate", "eot", "step_size")
"""Settings that a record names even where they are not set."""


def _member(given: argparse.Namespace, settings: Settings) -> Member:
    """The attack as a member of a suite."""
    from spikeguard.attacks import ATTACKS
    from spikeguard.auditing.suite import OWN, Member
    from spikeguard.gradients import SwapSurrogate

    title = " ".join([given.attack, *(f"{k}={v}" for k, v in settings.items() if v is not None)])
    gradient = None if given.surrogate is None else SwapSurrogate(_surrogate(given.surrogate))
    keywords = {k: v for k, v in settings.items() if k not in ("surrogate", "eot") and v is not None}
    return Member(title, OWN, ATTACKS[given.attack].function, keywords, gradient, all=True)


def _surrogate(text: str) -> Surrogate:
    """A surrogate from a text such as ``atan:8``."""
    from spikeguard.training.settings import SURROGATES

    name, colon, value = text.partition(":")
    if name not in SURROGATES:
        raise unknown("surrogate", name, SURROGATES, "attack: ")
    kind = SURROGATES[name]
    first = [f.name for f in fields(kind)][:1]  # type: ignore[arg-type]
    if not colon:
        return kind()
    if not first:
        raise UserError(f"attack: --surrogate {text}: {name} has no number")
    try:
        number = float(value)
    except ValueError as error:
        raise UserError(f"attack: --surrogate {text}: {value!r} must be a number") from error
    return kind(**{first[0]: number})


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
    from spikeguard.auditing.record import attack_record, save, weights
    from spikeguard.auditing.run import Plan, Session, Task, kept, run_suite, settle
    from spikeguard.auditing.state import digest
    from spikeguard.cli.target import seen_from
    from spikeguard.runtime.float32 import exact
    from spikeguard.runtime.stop import ctrl_c
    from spikeguard.threat import THREATS

    state_file = out.with_suffix(".state.npz")
    if state_file.exists() and not given.resume:
        raise UserError(
            f"{state_file} holds an interrupted attack: go on with --resume, or name another --out"
        )
    x, y = target.test.pixels(), target.test.y
    threat = THREATS[given.norm](given.eps)
    conditions = {
        "attack": member.id,
        "threat": [given.norm, given.eps],
        "seed": given.seed,
        "eot": given.eot,
        "batch_size": given.batch_size,
        "images": digest(x, y),
        "model": weights(target.model),
    }
    _announce(target, settings, given)
    with common.progress() as shown, exact(), ctrl_c() as stop:
        task = Task(
            target.model,
            x,
            y,
            threat,
            [member],
            target.test.index,
            Plan(given.seed, given.batch_size, given.eot),
            Session(shown.show, (state_file, conditions), stop),
        )
        state = run_suite(task)
        witnesses = settle(task, state)
        if stop.is_set():
            raise Interrupted(f"attack stopped at its end; {kept(task)}")
    if member.id in state.failed:
        state_file.unlink(missing_ok=True)
        raise UserError(f"attack: {state.failed[member.id]}")
    origin = seen_from(out.parent, target.origin)
    record = attack_record(task, state, given.attack, dict(settings), origin)
    entry = save(record, witnesses, out)
    state_file.unlink(missing_ok=True)
    return entry


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
