"""Errors and warnings that a user meets, and the hint of a near name."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that says what is wrong, where, and what is allowed.

    The command line exits with 2.

    >>> try:
    ...     sg.build("smal", classes=10, in_shape=(1, 8, 8))
    ... except sg.UserError as error:
    ...     print("unknown network 'smal'" in str(error))
    True
    """


class ModelError(UserError):
    """A model that fails, or whose answers are no logits: its code has to change, or to be wrapped."""


class Interrupted(Exception):
    """The user stopped the work after its state was saved; the message says how to go on.

    The command line exits with 130.
    """


class SpikeguardWarning(UserWarning):
    """Something that works, but probably not as meant."""


class AttackError(UserError):
    """An attack whose result means nothing: no gradient reaches the input, or a result outside its budget.

    >>> try:
    ...     sg.fgsm(lambda x: torch.zeros(len(x), 10), x, 0 * y, sg.Linf(8 / 255))
    ... except sg.AttackError as error:
    ...     print("gradient" in str(error))
    True
    """


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most similar to ``name``, if one is similar enough."""
    from difflib import get_close_matches

    names = {candidate.lower(): candidate for candidate in known}
    near = get_close_matches(name.lower(), names, n=1)
    return names[near[0]] if near else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'epochs'? "`` where one of the known names is near, else ``""``.

    >>> from spikeguard.errors import did_you_mean
    >>> did_you_mean("epoch", ["epochs", "lr"])
    "did you mean 'epochs'? "
    """
    near = nearest(name, known)
    return f"did you mean {near!r}? " if near else ""


def unknown(what: str, name: str, known: Iterable[str], where: str = "", more: str = "") -> UserError:
    """The error for a name that is not in a list: it shows the nearest name and the list.

    ``where`` begins the line (``"build: "``); ``more`` ends the list (``"; or a .toml file"``).
    """
    names = list(known)
    near = did_you_mean(name, names)
    return UserError(f"{where}unknown {what} {name!r} ({near}known: {', '.join(names) or 'none'}{more})")
