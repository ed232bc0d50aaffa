"""Downloads that appear by rename and report their progress."""

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

    UserError if the server does not answer or breaks off.
    """
    log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            total = int(answer.headers.get("Content-Length") or 0)

            def copy(file: BinaryIO) -> None:
                done, told = 0, time.monotonic()
                while block := answer.read(1 << 18):
                    file.write(block)
                    done += len(block)
                    if time.monotonic() - told > 2:
                        told = time.monotonic()
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
