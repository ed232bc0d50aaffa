"""Images: sets of them by name, the embedded sample, batches."""

from spikeguard.data.images import Dataset, Images
from spikeguard.data.sources import DATA, Source

__all__ = ["DATA", "Dataset", "Images", "Source"]
