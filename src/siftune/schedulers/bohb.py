"""The scheduler that belongs to the searcher `bohb`."""

from siftune.schedulers.hyperband import HyperBand


class BohbHyperBand(HyperBand):
    """HyperBand's brackets, unchanged.

    Falkner et al. 2018, "BOHB: Robust and Efficient Hyperparameter Optimization at Scale"
    (arXiv:1807.01774): HyperBand decides how long each config is trained, and a model proposes the
    configs that HyperBand would draw at random. The model is the searcher `bohb`, so the scheduler
    is plain HyperBand. Its name shows that the two belong together.
    """
