"""``spikeguard export``: records as a table or as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spikeguard.cli import common
from spikeguard.cli.records import load_records
from spikeguard.errors import UserError

if TYPE_CHECKING:
    from spikeguard.records.base import Record

SUFFIXES = {".csv": "csv", ".tex": "latex", ".md": "markdown", ".txt": "methods"}
FORMATS = ("csv", "latex", "markdown", "methods")


def parser() -> common.Parser:
    made = common.Parser(
        "export",
        "Records of audits as one table, or a paragraph on the method for each; or a network as a NIR graph.",
        epilog="--out FILE takes the format from the file's name: "
        + ", ".join(f"{suffix} {form}" for suffix, form in SUFFIXES.items()),
    )
    made.add_argument(
        "record",
        nargs="+",
        type=common.named,
        help="records of audits (files or folders); with --nir, a run folder or a file of weights",
    )
    made.add_argument(
        "--format", choices=FORMATS, help="the default is the format of FILE's name, csv without one"
    )
    made.add_argument(
        "--out", type=common.path, metavar="FILE", help="file to write (default: print on stdout)"
    )
    made.add_argument(
        "--nir",
        type=common.path,
        metavar="FILE",
        help="write the network of a run as a graph for other tools",
    )
    made.add_argument(
        "--convention", help="with --nir: the tool that reads it (euler, snntorch, spikingjelly, sinabs)"
    )
    return made


def run(arguments: list[str]) -> int:
    made = parser()
    given = made.read(arguments)
    if given.nir is not None or given.convention is not None:
        if given.nir is None or len(given.record) > 1 or given.format or given.out:
            made.error("--nir FILE takes one run, and nothing else but --convention")
        return _as_graph(given.record[0], given.nir, given.convention or "euler", given.json)
    if given.out is not None and given.out.is_dir():
        made.error(f"--out {given.out} is a folder: name a file")
    if given.out is not None and given.out.exists() and given.out.suffix not in SUFFIXES:
        made.error(f"--out {given.out} holds something else, which would be lost: name another file")
    form = given.format or ("csv" if given.out is None else SUFFIXES.get(given.out.suffix))
    if form is None:
        made.error(f"{given.out} has no known suffix ({', '.join(SUFFIXES)}): name a --format")
    records = load_records(given.record)
    if given.json:
        from spikeguard.auditing.export import rows

        header, table = rows(records)
        common.print_json({"rows": [dict(zip(header, row, strict=True)) for row in table]})
        return 0
    text = _writers()[form](records)
    if given.out is None:
        common.say(text, end="")
        return 0
    from spikeguard.records.files import write_bytes
    from spikeguard.runtime.shown import printable

    write_bytes(given.out, printable(text).encode())
    common.say(f"wrote {given.out} ({form}, {len(records)} record{'s' * (len(records) != 1)})")
    common.say("next: spikeguard compare A B, for a paired test of two of them")
    return 0


def _as_graph(run_folder: str, path: Path, convention: str, as_json: bool) -> int:
    """Write the network of a run as a NIR graph."""
    from spikeguard.interchange import to_nir
    from spikeguard.interchange.network import ImportedNetwork
    from spikeguard.networks.classifier import Classifier
    from spikeguard.training.load import load_network

    net = load_network(run_folder, here=True).net
    if not isinstance(net, (Classifier, ImportedNetwork)):
        raise UserError(
            f"{run_folder} holds a {type(net).__name__} of your own, which does not name the shape of its "
            "images: write it from Python with sg.interchange.to_nir(net, path, in_shape=...)"
        )
    to_nir(net, path, convention=convention)
    if as_json:
        common.print_json({"file": path, "convention": convention, "timesteps": net.timesteps})
        return 0
    common.say(f"wrote {path} (NIR, convention {convention}); batch norms are folded")
    common.say(f"scores are the mean of its outputs over {net.timesteps} time steps")
    return 0


def _writers() -> dict[str, Callable[[Sequence[Record]], str]]:
    from spikeguard.auditing import export

    return {
        "csv": export.as_csv,
        "latex": export.as_latex,
        "markdown": export.as_markdown,
        "methods": lambda records: "\n\n".join(export.methods(record) for record in records) + "\n",
    }
