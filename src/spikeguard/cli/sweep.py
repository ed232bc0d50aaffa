"""spikeguard sweep"""

from __future__ import annotations

from pathlib import Path

from spikeguard.cli import common


def run(arguments: list[str]) -> int:
    parser = common.Parser(
        "sweep",
        "Train every defence under the same conditions, rank them by the quick audit, score the best; the same command goes on where it stopped.",
    )
    parser.add_argument("study", choices=["embedded"], help="which study")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="folder of networks, record and page")
    parser.add_argument("--seeds", type=common.positive, default=3, help="seeds of every network; a larger number adds to what is there")
    parser.add_argument("--epochs", type=common.positive, default=4, help="epochs of every training")
    parser.add_argument("--ranked-on", type=common.positive, default=100, help="validation images of the quick audits")
    parser.add_argument("--scored-on", type=common.positive, default=200, help="test images of the standard audits")
    given = parser.parse_args(arguments)
    common.start(given.threads)

    from spikeguard.records import write_bytes
    from spikeguard.study.matrix import MARK, Settings, run
    from spikeguard.study.pages import page
    from spikeguard.training.interrupt import ctrl_c

    settings = Settings(given.seeds, given.epochs, given.ranked_on, given.scored_on)
    with common.progress() as shown, ctrl_c() as stop:
        record = run(settings, given.out, shown.tell, stop)
    write_bytes(given.out / "embedded.md", page(record).encode())
    if given.json:
        common.print_json(record)
        return 0
    print(page(record))
    print(f"wrote {given.out / MARK} and {given.out / 'embedded.md'}; networks in {given.out / 'runs'}")
    print(f"next: spikeguard audit {given.out / 'runs'}/NAME --effort standard, or the same command with --seeds {given.seeds + 1}")
    return 0
