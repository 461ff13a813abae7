"""Random search: configs are independent of one another and of all results."""

from siftune.searchers.base import Searcher
from siftune.space import Config


class Random(Searcher):
    """Random search (Bergstra and Bengio 2012): uniform in every coordinate."""

    def propose(self, number: int, attempt: int = 0) -> Config:
        return self.space.sample(self.rng(number, attempt))
