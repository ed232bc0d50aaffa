"""docs/results/demo.md from results/demo-seeds.json.

python tools/demo_results_page.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo_seeds import median_seed

from spikeguard.records.files import read_json, write_bytes

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "results" / "demo-seeds.json", ROOT / "docs" / "results" / "demo.md"
COLUMNS = {
    "seed": "seed",
    "worst_vanilla": "vanilla",
    "worst_control": "larger gains",
    "worst_nlif": "noise alone",
    "worst_tgo": "TGO",
    "gain_over_vanilla": "TGO over vanilla",
    "gain_over_control": "TGO over the better control",
    "clean_lost": "clean accuracy lost",
    "fewer_neighbors": "fewer near the threshold, %",
}


def page(record: Mapping[str, Any]) -> str:
    """The page's text."""
    rows, machine = record["rows"], record["machine"]
    span = {
        name: f"{min(row[name] for row in rows):.1f} to {max(row[name] for row in rows):.1f}"
        for name in ("gain_over_vanilla", "gain_over_control")
    }
    table = [
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(_cell(name, row[name]) for name in COLUMNS) + " |" for row in rows),
    ]
    return "\n".join(
        [
            "# The demo over several seeds",
            "",
            "Written by `tools/demo_results_page.py` from [the record](../../results/demo-seeds.json).",
            "",
            "Each row is the whole demo with another seed: four trainings and their audits. Worst case of",
            "the quick audit at 8/255 in %, 300 test images; gains and losses in points.",
            "",
            *table,
            "",
            f"- TGO lies {span['gain_over_vanilla']} points above vanilla.",
            f"- TGO lies {span['gain_over_control']} points above the better of two controls. Larger gains:",
            "  a network without a defense, trained from the batch-norm gains at which vanilla has about as",
            "  few potentials near the threshold as TGO. Noise alone: TGO's noisy neurons without its loss.",
            "- `quick` is short. [The standard audit](../audit.md) of one TGO network leaves less.",
            "- The share near the threshold is that of potentials with |u| < 0.2, a mean over layers.",
            f"- The README shows seed {median_seed(rows)}: TGO's median worst case.",
            f"- Made with torch {machine['versions']['torch']} on {machine['cores']} cores "
            f"({', '.join(machine['instructions'])}). On a processor with other instructions the",
            "  numbers of a seed differ: the last bits of a sum are rounded in another way, a spike can turn",
            "  on one bit, and training ends in another network.",
            "",
        ]
    )


def _cell(name: str, value: float) -> str:
    return str(value) if name == "seed" else f"{value:.1f}"


if __name__ == "__main__":
    write_bytes(PAGE, page(read_json(RECORD)).encode())
