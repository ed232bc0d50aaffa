"""The public names of spikeguard.training."""

from spikeguard.training.harden import Hardened as Hardened
from spikeguard.training.hardening import Hardening as Hardening
from spikeguard.training.loop import Run as Run
from spikeguard.training.recipes import RECIPES as RECIPES
from spikeguard.training.trainer import Report as Report
