"""``python -m spikeguard``."""

from spikeguard.cli.main import main

raise SystemExit(main())
