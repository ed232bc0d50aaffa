"""``python -m spikeguard``, and the installed command."""

from spikeguard.runtime.stop import end_at_once

end_at_once()  # before anything else is imported: a signal that comes early is one line, too

from spikeguard.cli.main import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
