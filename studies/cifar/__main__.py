"""python -m studies.cifar: see studies/README.md."""

import os
import sys


def start() -> int:
    """Run the command with threads that sleep while they wait: this must be set before torch is loaded."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from studies.cifar.command import main

    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(start())
