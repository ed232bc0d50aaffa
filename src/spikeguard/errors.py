"""Errors and warnings that a user meets."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and what is allowed.

    The command line exits with 2.
    """


class Interrupted(Exception):
    """Work stopped by the user after its state was saved; the message says how to go on.

    The command line exits with 130.
    """


class SpikeguardWarning(UserWarning):
    """Something that works, but probably not as meant."""


class AttackError(UserError):
    """An attack that cannot be trusted: no gradient reaches the input, or a result outside its budget."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'epochs'? "`` where one of the known names is near, else ``""``.

    >>> from spikeguard.errors import did_you_mean
    >>> did_you_mean("epoch", ["lr", "epochs"])
    "did you mean 'epochs'? "
    """
    near = get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}? " if near else ""
