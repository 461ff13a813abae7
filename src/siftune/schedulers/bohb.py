"""The scheduler that belongs to the searcher `bohb`."""

from siftune.schedulers.hyperband import HyperBand


class BohbHyperBand(HyperBand):
    """HyperBand's brackets, unchanged.

    Falkner et al. 2018, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale"
    (arXiv:1807.01774): HyperBand decides how long each config is trained, and where HyperBand
    draws configs at random a model proposes them. That model is the searcher `bohb`; nothing is
    left for the scheduler but to be HyperBand. The name says that the two go together.
    """
