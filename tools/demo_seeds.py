"""The demo over several seeds, against its bars. A finished seed does not run again.

    python tools/demo_seeds.py FOLDER [SEEDS]

Writes results/demo-seeds.json: for each seed the worst case at 8/255, TGO's gains over vanilla and over the
better of the two controls, the loss of clean accuracy and the fall of the neighbor share. Names the run that
the README shows: the one with TGO's median worst case.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from spikeguard.demo import run as demo
from spikeguard.records.files import SCHEMA, write_json
from spikeguard.records.studies import DemoRecord, DemoSettings
from spikeguard.runtime.machine import machine
from spikeguard.runtime.memory import keep_freed_pages

RESULT = Path(__file__).parent.parent / "results" / "demo-seeds.json"


def row(record: DemoRecord) -> dict[str, float]:
    """What the bars of the demo are about, in % and points."""
    by_role = {n.role: n for n in record.networks}
    worst = {role: 100 * n.attacks["8/255"].worst_case.value for role, n in by_role.items()}
    vanilla, tgo = by_role["vanilla"], by_role["tgo"]
    return {
        "seed": record.seed,
        **{f"worst_{role}": round(value, 2) for role, value in worst.items()},
        "gain_over_vanilla": round(worst["tgo"] - worst["vanilla"], 2),
        "gain_over_control": round(worst["tgo"] - max(worst["control"], worst["nlif"]), 2),
        "clean_lost": round(100 * (vanilla.clean.value - tgo.clean.value), 2),
        "fewer_neighbors": round(100 * (1 - tgo.neighbors.mean / vanilla.neighbors.mean), 2),
    }


def median_seed(rows: Sequence[Mapping[str, float]]) -> int:
    """The seed whose TGO network has the median worst case (of an even number, the lower middle one)."""
    ranked = sorted(rows, key=lambda r: (r["worst_tgo"], r["seed"]))
    return int(ranked[(len(rows) - 1) // 2]["seed"])


def main(folder: Path, seeds: int) -> None:
    keep_freed_pages()
    rows = []
    for seed in range(seeds):
        out = folder / f"seed-{seed}"
        record = _finished(out / demo.RECORD_NAME) or demo.run(
            DemoSettings(seed=seed), out, resume=(out / demo.RECORD_NAME).exists()
        )
        rows.append(row(record))
        print(rows[-1], flush=True)
        written = {"rows": rows, "machine": machine(), "path": record.path}
        write_json(RESULT, {"schema": SCHEMA, "kind": "demo seeds", **written})
    print(f"next: python tools/readme_picture.py {folder / f'seed-{median_seed(rows)}'}")


def _finished(path: Path) -> DemoRecord | None:
    """The record of a demo that has finished."""
    record = DemoRecord.read(path) if path.exists() else None
    return record if record and record.finished else None


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 5)
