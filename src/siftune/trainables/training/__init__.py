"""The training loop of the trainables, in one process or in several."""
