"""The networks that come with the package: src/spikeguard/zoo and docs/zoo.md, from records.

python tools/zoo_page.py NAME RUN "WHAT IT IS"    adds the network of a training
spikeguard audit NAME --out FOLDER                judges it by that name
python tools/zoo_page.py NAME FOLDER              adds that audit; writes card and page
python tools/zoo_page.py                          only cards and docs/zoo.md

Weights, records and witnesses are copied; a network of more than 3 MB or an unreliable audit is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from spikeguard import zoo
from spikeguard.auditing.export import budget_text, methods
from spikeguard.records.files import write_bytes
from spikeguard.records.schema import AuditRecord
from spikeguard.records.training import TrainingRecord
from spikeguard.report.markdown import bullets, paragraph, table
from spikeguard.report.text import percent, with_interval
from spikeguard.training.checkpoint import WEIGHTS

PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
MOST = 3 * 2**20  # bytes of a file of weights
Records = tuple[TrainingRecord, AuditRecord]


def add_network(name: str, run: Path, about: str) -> None:
    """Copy the weights and the record of a training."""
    if (size := (run / WEIGHTS).stat().st_size) > MOST:
        sys.exit(f"{run / WEIGHTS} has {size} bytes, may have {MOST}")
    folder = zoo.FOLDER / name
    folder.mkdir(exist_ok=True)
    for file in (WEIGHTS, zoo.TRAINING):
        shutil.copyfile(run / file, folder / file)
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    listed = {**zoo.entries(), name: zoo.Entry(about, digest)}
    text = json.dumps({k: asdict(e) for k, e in listed.items()}, indent=1) + "\n"
    write_bytes(zoo.INDEX, text.encode())
    zoo.entries.cache_clear()


def add_audit(name: str, audit: Path) -> None:
    """Copy an audit with its witnesses; exits where it is no evidence about the network."""
    record = AuditRecord.read(audit / zoo.AUDIT)
    if record.errors:
        sys.exit(f"{audit} is not reliable ({', '.join(record.errors)}): it is no evidence")
    if record.origin.target != name:
        sys.exit(f"{audit} is about {record.origin.target}, not about {name}")
    folder = zoo.folder(name)
    shutil.copyfile(audit / zoo.AUDIT, folder / zoo.AUDIT)
    if record.witnesses is not None:
        shutil.copyfile(audit / record.witnesses.file, folder / record.witnesses.file)


def records(name: str) -> Records:
    """Of its training and of its audit."""
    folder = zoo.folder(name)
    return TrainingRecord.read(folder / zoo.TRAINING), AuditRecord.read(folder / zoo.AUDIT)


def card(name: str, about: str, training: TrainingRecord, audit: AuditRecord) -> str:
    """The card of a network."""
    recipe, own = training.recipe, audit.masking.pgd20 if audit.masking else None
    images = audit.origin.images or audit.images
    facts = [
        f"**Network**: `{recipe['network']}`, {training.parameters:,} parameters, {recipe['timesteps']} time "
        f"steps, trained on `{recipe['data']}` ({training.cost.images:,} images, {recipe['epochs']} epochs, "
        f"{training.cost.seconds:.0f} s on {training.machine.cores} cores), seed {recipe['seed']}.",
        f"**Defenses**: {', '.join(_defenses(recipe)) or 'none'}.",
        f"**Clean accuracy**: {with_interval(audit.clean)} % of {images} test images.",
        f"**Worst case** at {audit.threat.norm} {budget_text(audit.threat)}: "
        f"**{with_interval(audit.worst_case)} %**"
        + (f"; PGD-20 with its own gradient leaves {percent(own)} %." if own is not None else "."),
        f"**Flags**: {', '.join(f.id for f in audit.flags) or 'none'}.",
        f"**SHA-256** of the weights: `{zoo.entries()[name].sha256}`.",
        "**License**: that of spikeguard, Apache-2.0.",
        "**Limits**: small gray images; for comparisons and tests, not for use in a product.",
    ]
    lines = [f"# {name}", "", *paragraph(f"{about[0].upper()}{about[1:]}."), "", *bullets(facts), ""]
    return "\n".join([*lines, *paragraph(methods(audit)), ""])


def _defenses(recipe: dict[str, object]) -> list[str]:
    held = recipe["defenses"]
    return [str(name) for name in held] if isinstance(held, dict) else []


def page() -> str:
    """docs/zoo.md."""
    header = ["network", "what it is", "parameters", "clean", "PGD-20, own gradient", "worst case (95 %)"]
    rows, threats = [], set()
    for name, entry in zoo.entries().items():
        training, audit = records(name)
        own = "" if audit.masking is None else percent(audit.masking.pgd20)
        numbers = (percent(audit.clean.value), own, f"**{with_interval(audit.worst_case)}**")
        rows.append([f"`{name}`", entry.about, f"{training.parameters:,}", *numbers])
        threats.add(f"{audit.threat.norm} {budget_text(audit.threat)}, {audit.suite.version}")
    lines = ["# Networks that come with the package", ""]
    lines += paragraph(
        "Load one by its name. Each has a card, the record of its training, and an audit (effort "
        f"`standard`; {'; '.join(sorted(threats))}) with the input that breaks each broken image. Accuracies "
        "are in %."
    )
    example = '    >>> net = sg.load("embedded-robust")   # in eval mode, images in [0, 1] to logits'
    shell = ["    spikeguard zoo embedded-robust", "    spikeguard audit embedded-robust --images 50"]
    lines += ["", *table(header, rows), "", example, "", *shell, ""]
    lines += paragraph("Made by `tools/zoo_page.py` from the records in `src/spikeguard/zoo`.")
    return "\n".join([*lines, ""])


def main() -> None:
    given = sys.argv[1:]
    if len(given) == 3:
        add_network(given[0], Path(given[1]), given[2])
        return
    if given:
        add_audit(given[0], Path(given[1]))
    for name, entry in zoo.entries().items():
        write_bytes(zoo.FOLDER / name / zoo.CARD, card(name, entry.about, *records(name)).encode())
    write_bytes(PAGE, page().encode())


if __name__ == "__main__":
    main()
