"""Data sets: found, fetched, verified and loaded. Each has a file of its own."""


class DataError(ValueError):
    """A data set that is absent, corrupt or cannot be written, with what to do about it."""
