"""Downloads: a file appears when it is complete, and progress is logged."""

from __future__ import annotations

import logging
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from spikeguard.errors import UserError
from spikeguard.records.files import write_atomic

log = logging.getLogger("spikeguard")


def fetch(url: str, path: Path, timeout: float = 30.0) -> None:
    """Download ``url`` to ``path``; the caller verifies the contents.

    Raises UserError if the server does not answer or the connection breaks.
    """
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            total = int(response.headers.get("Content-Length") or 0)

            def copy(file: BinaryIO) -> None:
                done, logged = 0, time.monotonic()
                while block := response.read(1 << 18):
                    file.write(block)
                    done += len(block)
                    if time.monotonic() - logged > 2:
                        logged = time.monotonic()
                        log.info("%s: %.1f of %.1f MB", path.name, done / 1e6, total / 1e6)
                if total and done != total:
                    raise UserError(
                        f"{url} broke off after {done} of {total} bytes; nothing was kept, try again"
                    )

            write_atomic(path, copy)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(
            f"cannot download {url} ({getattr(error, 'reason', error)}); put the file into {path.parent} by "
            "hand"
        ) from error
    log.info("wrote %s", path)
