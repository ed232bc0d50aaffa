"""The standard streams of a program, whatever its caller has made of them: closed, full, a pipe to ``head``.

Work does not end because nobody reads its progress, and what is opened next does not become stdout.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from spikeguard.errors import UserError


class Stream(io.TextIOWrapper):
    """stdout or stderr. Once it cannot be written, the rest of what is printed is dropped.

    UserError where ``needed`` and the reason is another than a reader that has ended, such as a full disk.
    """

    needed = False

    def write(self, text: str) -> int:
        """Write the text, or drop it."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Flush what was written, or drop it."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """From now on the null device takes everything."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        if self.needed and error.errno != errno.EPIPE:
            raise UserError(f"cannot write to stdout: {error.strerror}") from error


def own_streams() -> None:
    """Make the standard streams of this process usable, for a program that starts."""
    _open_closed()
    out = _stream(sys.stdout, 1)
    out.needed = True
    sys.stdout, sys.stderr = out, _stream(sys.stderr, 2)


def _open_closed() -> None:
    """Put the null device in place of closed descriptors 0 to 2: the next file would take their numbers."""
    while True:
        number = os.open(os.devnull, os.O_RDWR)
        if number > 2:
            os.close(number)
            return
        os.set_inheritable(number, True)


def _stream(held: object, number: int) -> Stream:
    """The stream again, as a ``Stream``; a name beyond its encoding is no reason to fail."""
    if not isinstance(held, io.TextIOWrapper):
        return Stream(open(number, "wb", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    return Stream(held.buffer, held.encoding, "backslashreplace", line_buffering=held.line_buffering)
