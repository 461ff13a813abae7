"""Fetches, verifies and loads data sets. Each has its own module."""


class DataError(ValueError):
    """A data set is missing, corrupt or cannot be written. The message says what to do."""
