"""Networks of other tools: NIR graphs, read and written, and weights of published code."""

from spikeguard.interchange.network import ImportedNetwork
from spikeguard.interchange.nir_export import to_nir
from spikeguard.interchange.nir_import import from_nir
from spikeguard.interchange.state_import import import_state
from spikeguard.networks.classifier import Folded

__all__ = ["Folded", "ImportedNetwork", "from_nir", "import_state", "to_nir"]
