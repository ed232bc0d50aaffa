"""spikeguard attack"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spikeguard.cli import common
from spikeguard.errors import UserError


def run(arguments: list[str]) -> int:
    parser = common.Parser("attack", "Attack a trained network; write a record, and what it found beside it.")
    parser.add_argument("target", help="a run folder or a weights file")
    parser.add_argument(
        "--attack",
        default="pgd",
        choices=["fgsm", "rfgsm", "bim", "pgd"],
        help="rfgsm is the literature's half-strength version",
    )
    parser.add_argument(
        "--eps",
        type=common.share,
        default=8 / 255,
        help="budget per pixel, images in [0, 1]; 8/255 may be written so",
    )
    parser.add_argument("--steps", type=common.positive, help="steps of bim and pgd (default 10 and 20)")
    parser.add_argument("--step-size", type=common.share, help="default max(2.5 eps / steps, eps / 16)")
    parser.add_argument("--restarts", type=common.positive, help="restarts of pgd (default 5)")
    parser.add_argument("--no-random-start", action="store_true", help="pgd starts at the image itself, once")
    parser.add_argument("--loss", default="ce", choices=["ce", "margin"], help="what the attack maximizes")
    parser.add_argument(
        "--surrogate",
        help="derivative in the backward pass, as atan:8, triangle:2, straightthrough (default: the "
        "network's own)",
    )
    parser.add_argument(
        "--eot",
        type=common.positive,
        default=1,
        help="gradients averaged a step, for a network with noise at inference",
    )
    parser.add_argument(
        "--images", type=common.positive, default=1000, help="test images, balanced over the classes"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random starts")
    parser.add_argument("--batch-size", type=common.positive, default=250, help="images a chunk")
    parser.add_argument(
        "--data-dir", help="folder of the data set (default: SPIKEGUARD_DATA, else the system's)"
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    parser.add_argument(
        "--out", type=Path, help="record to write (default: TARGET/attacks/ATTACK-EPS-SETTINGS.json)"
    )
    given = parser.parse_args(arguments)
    kept = {
        "steps": ("bim", "pgd"),
        "step_size": ("bim", "pgd"),
        "restarts": ("pgd",),
        "no_random_start": ("pgd",),
    }
    for name, allowed in kept.items():
        if getattr(given, name) and given.attack not in allowed:
            parser.error(f"--{name.replace('_', '-')} is for {' and '.join(allowed)}, not for {given.attack}")
    common.start(given.threads)
    from spikeguard.auditing import run as runner
    from spikeguard.auditing.record import attack_record, save
    from spikeguard.auditing.suite import OWN
    from spikeguard.data.sources import load_data
    from spikeguard.random import draws
    from spikeguard.runtime.float32 import exact
    from spikeguard.threat import Linf
    from spikeguard.training.builder import pick_device
    from spikeguard.training.load import load_with_recipe

    net, recipe = load_with_recipe(given.target, str(pick_device(given.device)))
    data = load_data(recipe.data, given.data_dir)
    test = data.test.balanced(given.images).to(next(net.parameters()).device)
    settings = _settings(given)
    title = " ".join([given.attack, *(f"{k}={v}" for k, v in settings.items() if v is not None)])
    member = _member(given, settings, title, OWN)
    with common.progress() as shown, exact():
        task = runner.Task(
            net,
            test.pixels(),
            test.y,
            Linf(given.eps),
            [member],
            given.seed,
            test.index,
            given.batch_size,
            draws=given.eot,
            tell=shown.tell,
        )
        state = runner.run(task)
        witnesses = runner.settle(task, state)
    if member.name in state.failed:
        raise UserError(f"attack: {state.failed[member.name]}")
    about = {
        "target": str(given.target),
        "recipe": recipe.values(),
        "data": data.name,
        "split": "test",
        "attack": given.attack,
        "settings": settings,
    }
    root = Path(given.target) if Path(given.target).is_dir() else Path(given.target).parent
    which = draws.key(json.dumps(settings), given.images, given.seed) % 16**6  # other settings, another file
    out = (
        given.out or root / "attacks" / f"{given.attack}-{round(given.eps * 255, 3):g}of255-{which:06x}.json"
    )
    entry = save(attack_record(task, state, about), witnesses, out)
    code = 1 if any(f["level"] == "error" for f in entry["flags"]) else 0
    if given.json:
        common.print_json(entry)
        return code
    rows = []
    for name, told in (("clean", entry["clean"]), (title, entry["worst_case"])):
        low, high = told["interval"]
        rows.append([name, f"{100 * told['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}"])
    common.table(
        f"{given.target}, {entry['images']} test images, eps {given.eps * 255:.3g}/255",
        ["", "accuracy, %", "95 % interval"],
        rows,
    )
    if entry["random_model"]:
        print(
            f"the network is random at inference: scored by the {entry['scored_by']}; --eot averages its "
            "gradients"
        )
    print(
        f"robust accuracy is at most this: a stronger attack can only lower it\nwrote {out} and its witnesses"
    )
    for f in entry["flags"]:
        print(f"{f['level']}: {f['message']} (docs/flags/{f['id']}.md)")
    print(f"next: spikeguard audit {given.target} (the network may hide from this attack)")
    return code


def _settings(given: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "loss": given.loss,
        "surrogate": given.surrogate,
        "eot": given.eot if given.eot > 1 else None,
    }
    if given.attack in ("bim", "pgd"):
        settings |= {
            "steps": given.steps or (10 if given.attack == "bim" else 20),
            "step_size": given.step_size,
        }
    if given.attack == "pgd":
        settings |= {
            "restarts": 1 if given.no_random_start else given.restarts or 5,
            "start": not given.no_random_start,
        }
    return settings


def _member(given: Any, settings: dict[str, Any], title: str, family: str) -> Any:
    from spikeguard import attacks
    from spikeguard.auditing.suite import Member
    from spikeguard.gradients import SwapSurrogate

    gradient = None if given.surrogate is None else SwapSurrogate(_surrogate(given.surrogate))
    keywords = {k: v for k, v in settings.items() if k not in ("surrogate", "eot")}
    return Member(title, family, getattr(attacks, given.attack), keywords, gradient, all=True)


def _surrogate(text: str) -> Any:
    from dataclasses import fields

    from spikeguard.training.settings import SURROGATES

    name, _, value = text.partition(":")
    if name not in SURROGATES:
        raise UserError(f"attack: unknown surrogate {name!r} (known: {', '.join(SURROGATES)})")
    first = [f.name for f in fields(SURROGATES[name])][:1]  # type: ignore[arg-type]
    try:
        return SURROGATES[name](**({first[0]: float(value)} if value and first else {}))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"attack: --surrogate {text}: {value!r} must be a number") from error
