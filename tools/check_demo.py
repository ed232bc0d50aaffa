"""Check a demo of one seed for CI: one line for each miss, exit code 1 if there is one.

    python tools/check_demo.py FOLDER

The bars themselves (8 points, over five seeds) are in results/demo-seeds.json. One seed on 300 images varies
more, so its bars are lower.
"""

import sys
from pathlib import Path

from demo_seeds import row

from spikeguard.records.studies import DemoRecord

AT_LEAST = {"gain_over_vanilla": 3.0, "gain_over_control": 3.0, "fewer_neighbors": 15.0}
AT_MOST = {"clean_lost": 5.0}
# four trainings and five audits; CI shares a machine, and is half as fast without AVX-512 (LAB.md)
SECONDS, WITHOUT_AVX512 = 720, 1000
NAMESPACES = ("http://www.w3.org", "http://purl.org", "http://creativecommons.org")


def main(folder: Path) -> int:
    record = DemoRecord.read(folder / "demo.json")
    found = row(record)
    misses = [f"{k} = {found[k]}, must be at least {v}" for k, v in AT_LEAST.items() if found[k] < v]
    misses += [f"{k} = {found[k]}, must be at most {v}" for k, v in AT_MOST.items() if found[k] > v]
    instructions = record.machine.instructions if record.machine else ()
    most = SECONDS if "avx512f" in instructions else WITHOUT_AVX512
    if record.seconds > most:
        misses.append(f"the demo took {record.seconds} s, must take at most {most}")
    page = (folder / "index.html").read_text()
    for name in NAMESPACES:
        page = page.replace(name, "")
    if "http://" in page:
        misses.append("the page is not self-contained")
    print("\n".join(misses) or f"demo holds: {found}")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
