"""The published ensemble of 19 backward passes."""

from __future__ import annotations

from spikeguard.gradients.base import Estimator
from spikeguard.gradients.relaxed import ReLUTwin
from spikeguard.gradients.sequence import BPTR
from spikeguard.gradients.surrogate import SwapSurrogate
from spikeguard.surrogates import Exponential, Rectangle, StraightThrough, Triangle

ENSEMBLE: dict[str, Estimator] = {
    **{f"triangle {g}": SwapSurrogate(Triangle(g)) for g in (0.25, 0.5, 1.0, 2.0, 3.0)},
    **{f"exponential 0.3 {b}": SwapSurrogate(Exponential(b, 0.3)) for b in (0.5, 1.0, 2.0)},
    **{f"exponential {b}": SwapSurrogate(Exponential(b)) for b in (0.5, 1.0, 2.0)},
    **{f"rectangle {g}": SwapSurrogate(Rectangle(g)) for g in (0.25, 0.5, 1.0, 2.0, 4.0)},
    "straight-through": SwapSurrogate(StraightThrough()),
    "BPTR": BPTR(),
    "ReLU twin": ReLUTwin(),
}
"""The 19 backward passes of Ozdenizci and Legenstein, TMLR 2024, by name."""
