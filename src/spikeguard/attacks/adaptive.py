"""An attack that knows how a defense works, as data: step rule, settings, gradient, and why it is the one.

"Adaptive" as in Tramer et al., NeurIPS 2020: the attack is made for the defense, because attacks made for
undefended networks may fail for reasons that have nothing to do with robustness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from spikeguard.arguments import checked_fields
from spikeguard.attacks.loop import Attacked
from spikeguard.attacks.sapgd import sapgd
from spikeguard.gradients import ASSG, Estimator, ThresholdFirst
from spikeguard.surrogates import Atan


@dataclass(frozen=True)
@checked_fields
class AdaptiveAttack:
    """An attack function with its settings and gradient, and one sentence why it is adaptive.

    ``id`` identifies it in records and keys its random starts, ``title`` is for readers. ``gradient`` None is
    the attack's own default. An audit of a network with the defense runs it as a member of its suite.

    >>> from spikeguard.attacks.adaptive import SHARPEST
    >>> SHARPEST.id, SHARPEST.settings["steps"]
    ('sapgd100-assg-atan0.435', 100)
    """

    id: str
    title: str
    attack: Callable[..., Attacked]
    settings: Mapping[str, Any]
    gradient: Estimator | None
    why: str = field(compare=False)


def because(attack: AdaptiveAttack, why: str) -> AdaptiveAttack:
    """The same attack, for another reason."""
    return replace(attack, why=why)


SHARPEST = AdaptiveAttack(
    "sapgd100-assg-atan0.435",
    "SA-PGD-100, ASSG atan 0.435",
    sapgd,
    {"steps": 100, "loss": "ce"},
    ASSG(0.435, Atan()),
    "A surrogate that fits the potentials of every neuron does not share the blind spots of the training "
    "surrogate.",
)
"""The sharpest general attack, for defenses whose networks have nothing special to go around."""

THRESHOLD_FIRST = AdaptiveAttack(
    "sapgd30-threshold-first",
    "SA-PGD-30, threshold first",
    sapgd,
    {"steps": 30},
    ThresholdFirst(),
    "Guarded potentials lie far from the threshold, where surrogates vanish: the first steps pull them back "
    "to it, the others raise the loss.",
)
"""The attack on defenses that keep potentials away from the threshold."""
