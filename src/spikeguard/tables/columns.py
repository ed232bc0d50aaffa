"""The columns of a table: an attack with its settings in one word, or an audit.

``fgsm``, ``pgd20``, ``apgd50-dlr``, ``pgd10-x5-eot10``, ``mtpgd40-t3``: the name, then the steps (queries
and tries of attacks without steps), then options in any order: ``ce``, ``margin``, ``dlr`` the loss; ``xN``
starts; ``tN`` target classes; ``eotN`` gradients averaged in each step against a random network; ``atan:4``
the surrogate of the backward pass. ``quick``,
``standard``, ``full`` and ``autoattack`` are audits: the union of all their attacks.
"""

from __future__ import annotations

import re

from spikeguard.attacks import ATTACKS
from spikeguard.auditing.member import Member
from spikeguard.auditing.single import single_member
from spikeguard.auditing.suite import EFFORTS
from spikeguard.errors import UserError, unknown
from spikeguard.records.schema import Settings
from spikeguard.records.tables import TableColumn
from spikeguard.training.settings import SURROGATES, surrogate_of

AUDIT = "audit"
ALIASES: dict[str, tuple[str, Settings]] = {
    "mtpgd": ("targeted", {"rule": "pgd"}),
    "apgdt": ("apgd_targeted", {}),
    "noise": ("random_noise", {}),
}
"""Short names of attacks: the attack and the settings that they stand for."""
COUNTS = ("steps", "queries", "tries")
LOSSES = ("ce", "margin", "dlr")
MOST = 10**6
NUMBERED = {"x": "restarts", "t": "targets", "eot": "eot"}
_WORD = re.compile(r"([a-z_]+)(\d*)")
_OPTION = re.compile(r"(x|t|eot)(\d+)")


def column(text: str) -> TableColumn:
    """The column that a word stands for; UserError names what is wrong with it."""
    first, *options = text.strip().lower().split("-")
    if first in EFFORTS and not options:
        return TableColumn(first, AUDIT, effort=first)
    match = _WORD.fullmatch(first)
    name, count = (match[1], match[2]) if match else (first, "")
    attack, fixed = ALIASES.get(name, (name, {}))
    if attack not in ATTACKS:
        raise unknown("attack", name, [*ATTACKS, *ALIASES, *EFFORTS], f"column {text!r}: ")
    eot: int | None = None
    parameters, settings = ATTACKS[attack].parameters, dict(fixed)
    if count:
        counted = next((c for c in COUNTS if c in parameters), None)
        if counted is None:
            raise UserError(f"column {text!r}: {attack} takes no number of steps")
        settings[counted] = _whole(count, text)
    for option in options:
        if option.partition(":")[0] in SURROGATES and "gradient" in parameters:
            surrogate_of(option)  # refuses what is none
            settings["surrogate"] = option
            continue
        numbered = _OPTION.fullmatch(option)
        key = NUMBERED[numbered[1]] if numbered else "loss"
        if not numbered and option not in LOSSES:
            raise UserError(
                f"column {text!r}: unknown option {option!r} (known: {', '.join(LOSSES)}, xN, tN, eotN, "
                "atan:4)"
            )
        if key == "eot" and "gradient" in parameters and numbered:
            eot = _whole(numbered[2], text)
        elif key in parameters:
            settings[key] = _whole(numbered[2], text) if numbered else option
        else:
            raise UserError(f"column {text!r}: {attack} has no {key}")
    if attack == "pgd":
        settings.setdefault("restarts", 1)  # as the names of papers and of suites have it
    return TableColumn(text.strip().lower(), attack, settings, eot)


def _whole(digits: str, text: str) -> int:
    if not 1 <= int(digits[:8]) <= MOST or len(digits) > len(str(MOST)):
        raise UserError(f"column {text!r}: {digits[:20]} must be at least 1 and at most {MOST}")
    return int(digits)


def columns(text: str, norm: str) -> tuple[TableColumn, ...]:
    """The columns of a list with commas; UserError for one that is there twice or does not know the norm."""
    found = tuple(column(word) for word in text.split(",") if word.strip())
    if not found:
        raise UserError("a table needs at least one attack, as in fgsm,pgd20,quick")
    names = [c.name for c in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"column {twice[0]!r} is there twice")
    for one in found:
        check_norm(one, norm)
    return found


def check_norm(one: TableColumn, norm: str) -> None:
    """UserError if the attack of a column does not work under a norm."""
    if one.attack != AUDIT and norm not in ATTACKS[one.attack].norms:
        allowed = " or ".join(ATTACKS[one.attack].norms)
        raise UserError(f"column {one.name!r}: {one.attack} works under {allowed}, not under {norm}")


def title(one: TableColumn) -> str:
    """A column's heading: 'PGD-20', 'worst case (quick)'."""
    if one.attack == AUDIT:
        return f"worst case ({one.effort})"
    first, *options = one.name.split("-")
    match = _WORD.fullmatch(first)
    name, count = (match[1], match[2]) if match else (first, "")
    return ", ".join([f"{name.upper()}{'-' if count else ''}{count}", *(o.upper() for o in options)])


def member(one: TableColumn) -> Member:
    """The attack of a column as a member that attacks every image."""
    return single_member(one.attack, one.settings, one.name)


AUDIT_WORK = {"quick": 400, "standard": 3000, "full": 12000, "autoattack": 3000}
"""About how many passes an image takes in an audit: they weigh the time left, nothing else."""


def work(one: TableColumn) -> int:
    """About how many passes an image takes."""
    if one.effort is not None:
        return AUDIT_WORK[one.effort]
    count = one.eot or 1
    for name in (*COUNTS, "restarts", "targets"):
        parameter = ATTACKS[one.attack].parameters.get(name)
        value = one.settings.get(name, None if parameter is None else parameter.default)
        count *= value if isinstance(value, int) else 1
    return count + 1
