"""The training loop of the built-in trainables, in one process or in several."""
