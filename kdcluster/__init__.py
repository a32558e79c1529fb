"""kdcluster: distil vision models on a cluster, from one file to the results table."""

__version__ = "0.1.0"
