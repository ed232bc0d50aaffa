"""Does bfloat16 cost accuracy? The demo's TGO network trains in float32 and in bfloat16, three seeds each.

    python tools/precision_seeds.py

Both are scored in float32. Writes results/precision.json: for each training its seconds, the accuracy on all
test images, and the accuracy that PGD-20 with Atan(8) leaves of 300 at 8/255.
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from spikeguard.attacks import pgd
from spikeguard.data.sources import load_data
from spikeguard.gradients import SwapSurrogate
from spikeguard.records.files import SCHEMA, write_json
from spikeguard.runtime.machine import machine
from spikeguard.runtime.memory import keep_freed_pages
from spikeguard.surrogates import Atan
from spikeguard.threat import Linf
from spikeguard.training.loop import train
from spikeguard.training.objective import accuracy
from spikeguard.training.recipes import recipe

RESULT = Path(__file__).parent.parent / "results" / "precision.json"
SEEDS = 3


def main() -> None:
    keep_freed_pages()
    data = load_data("embedded")
    test = data.test.balanced(300)
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for precision in ("float32", "bfloat16"):
            run = train(replace(recipe("tgo"), seed=seed, precision=precision), data=data)
            net = run.net.prefer(True, None)
            got = pgd(
                net,
                test.pixels(),
                test.y,
                Linf(8 / 255),
                restarts=1,
                gradient=SwapSurrogate(Atan(8.0)),
                index=test.index,
            )
            left = 1 - float(got.broken.float().mean())
            rows.append(
                {
                    "seed": seed,
                    "precision": precision,
                    "seconds": run.record.cost.seconds,
                    "clean": accuracy(net, data.test),
                    "left": left,
                }
            )
            print(rows[-1], flush=True)
    summary = {}
    for name in ("clean", "left"):
        full, half = ([r[name] for r in rows if r["precision"] == p] for p in ("float32", "bfloat16"))
        summary[name] = {
            "difference": mean(half) - mean(full),
            "seed_noise": stdev(full),
            "seed_noise_bfloat16": stdev(half),
        }
    write_json(
        RESULT,
        {
            "schema": SCHEMA,
            "kind": "precision",
            "rows": rows,
            "summary": summary,
            "machine": machine(),
            "threads": torch.get_num_threads(),
        },
    )


if __name__ == "__main__":
    main()
