"""Options of ``spikeguard attack``: which attack takes which, and the settings that they are in a record."""

from __future__ import annotations

import argparse
from typing import Any

from spikeguard.cli import common
from spikeguard.errors import unknown

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


def check(given: argparse.Namespace, made: common.Parser) -> None:
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


def settings_of(given: argparse.Namespace) -> Settings:
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
