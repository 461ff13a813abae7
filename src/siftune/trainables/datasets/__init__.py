"""Data sets: found, fetched, verified and loaded."""
