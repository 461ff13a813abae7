"""Hyper-parameter search on a Slurm cluster, from one image."""

__version__ = "0.1.0"
