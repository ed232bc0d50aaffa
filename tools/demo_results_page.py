"""docs/results/demo.md from results/demo-seeds.json, and the machine in results/demo.json.

python tools/demo_results_page.py
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spikeguard.records.files import read_json, write_bytes

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "results" / "demo-seeds.json", ROOT / "docs" / "results" / "demo.md"
SHOWN = ROOT / "results" / "demo.json"
COLUMNS = {
    "seed": "seed",
    "worst_vanilla": "vanilla",
    "worst_control": "gains scaled",
    "worst_tgo": "TGO",
    "gain_over_vanilla": "TGO over vanilla",
    "gain_over_control": "TGO over control",
    "clean_lost": "clean accuracy lost",
    "fewer_neighbors": "fewer near the threshold, %",
}


def page(record: Mapping[str, Any], shown: Mapping[str, Any]) -> str:
    """The page's text. ``shown``: the record of the demo in the README."""
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
            "Each row is the whole demo with another seed: both trainings, the control and the audits. Worst",
            "case of the quick audit at 8/255 in %, 300 test images; gains and losses in points.",
            "",
            *table,
            "",
            f"- TGO lies {span['gain_over_vanilla']} points above vanilla.",
            f"- TGO lies {span['gain_over_control']} points above the control: the vanilla network, its",
            "  gains scaled until about as few potentials lie near the threshold as in the TGO network.",
            "- `quick` is short. [The standard audit](../audit.md) of one TGO network leaves less.",
            "- The share near the threshold is that of potentials with |u| < 0.2, a mean over layers.",
            *_machines(machine, shown),
            "",
        ]
    )


def _machines(here: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Which machine trained these networks, and why the README has other numbers for the same seed."""
    there = shown["machine"]
    made = f"- Made with torch {here['versions']['torch']} on {_processor(here)}."
    if there["instructions"] == here["instructions"]:
        return [made]
    return [
        made,
        f"- The README shows seed {shown['seed']} from another processor, {_processor(there)}.",
        "  Its numbers differ from the row of that seed here: other instructions round the last bits of a",
        "  sum in another way, a spike can turn on one bit, and training ends in another network.",
    ]


def _processor(machine: Mapping[str, Any]) -> str:
    return f"{machine['cores']} cores ({', '.join(machine['instructions'])})"


def _cell(name: str, value: float) -> str:
    return str(value) if name == "seed" else f"{value:.1f}"


if __name__ == "__main__":
    write_bytes(PAGE, page(read_json(RECORD), read_json(SHOWN)).encode())
