"""The version: of the package, of ``sg.__version__``, of ``spikeguard --version`` and in records."""

__version__ = "0.2.0"
