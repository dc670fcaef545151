"""Actor-critic building blocks that are exact at every episode boundary and as fast as memory allows."""

__version__ = "0.1.0"
