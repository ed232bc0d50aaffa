"""Errors and warnings that a user meets."""


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
