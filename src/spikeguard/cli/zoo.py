"""``spikeguard zoo``: the networks that come with the package."""

from __future__ import annotations

from spikeguard import zoo
from spikeguard.cli import common

HEADER = ("network", "what it is", "parameters", "threat", "clean", "PGD-20, own gradient", "worst case")


def parser() -> common.Parser:
    made = common.Parser(
        "zoo", "The networks that come with the package, and what their audits found; with NAME: its card."
    )
    made.add_argument("name", nargs="?", help="a network of the zoo, such as embedded-robust")
    return made


def run(arguments: list[str]) -> int:
    given = parser().read(arguments)
    if given.name is not None:
        card = zoo.card(given.name)
        if given.json:
            common.print_json({"name": given.name, "folder": zoo.folder(given.name), "card": card})
        else:
            common.say(card)
            common.say(f'next: sg.load("{given.name}") in Python, or spikeguard audit {given.name}')
        return 0
    rows = [_row(name, entry.about) for name, entry in zoo.entries().items()]
    if given.json:
        common.print_json({"networks": [dict(zip(HEADER, row, strict=True)) for row in rows]})
        return 0
    common.table("networks of the zoo", HEADER, rows)
    common.say("next: spikeguard zoo NAME, for the card of one")
    return 0


def _row(name: str, about: str) -> tuple[str, ...]:
    """What the records of its training and of its audit say."""
    from spikeguard.auditing.export import NORMS, budget_text
    from spikeguard.records.schema import AuditRecord
    from spikeguard.records.training import TrainingRecord

    folder = zoo.folder(name)
    training, audit = TrainingRecord.read(folder / zoo.TRAINING), AuditRecord.read(folder / zoo.AUDIT)
    threat = f"{NORMS[audit.threat.norm]} {budget_text(audit.threat)}"
    own = "" if audit.masking is None else f"{100 * audit.masking.pgd20:.1f}"
    accuracies = (f"{100 * audit.clean.value:.1f}", own, f"{100 * audit.worst_case.value:.1f}")
    return (name, about, f"{training.parameters:,}", threat, *accuracies)
