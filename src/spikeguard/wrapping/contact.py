"""The first answers of a model, with what to write where they are none or depend on its calls before."""

from __future__ import annotations

import warnings

from torch import Tensor

from spikeguard.errors import ModelError, SpikeguardWarning
from spikeguard.models import Model, check_logits, moved, rounding
from spikeguard.wrapping.guess import suggestion
from spikeguard.wrapping.repeatable import stateful


def first_answers(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As ``check_logits``; its ModelError ends with the arguments of ``wrap`` that give logits, if any do."""
    try:
        return check_logits(model, x, y)
    except ModelError as error:
        use = suggestion(model, x)
        if not use or use in str(error):
            raise
        raise ModelError(f"{error}; {use}") from error


def steady_answers(model: Model, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As ``first_answers``; a warning if the model carries state from call to call.

    An attack on such a model claims success where another call made the difference.
    """
    first, again = first_answers(model, x, y)
    if bool((moved(first, again) > rounding(first)).any()) and stateful(model, x):
        use = suggestion(model, x, carries_state=True)
        warnings.warn(
            "the model gives other logits for the same images the second time, and no random generator "
            "explains it: it carries state from call to call, and what this attack breaks may be right on "
            f"the next call{'; ' if use else ''}{use}",
            SpikeguardWarning,
            stacklevel=2,
        )
    return first, again
