"""Searchers propose configs. Each has its own file; `SEARCHERS` is the catalogue."""

from siftune.catalogue import Catalogue

SEARCHERS = Catalogue(
    "searcher",
    {
        "random": "siftune.searchers.random:Random",
        "grid": "siftune.searchers.grid:Grid",
        "optuna": "siftune.searchers.optuna:Optuna",
        "hebo": "siftune.searchers.hebo:Hebo",
        "bohb": "siftune.searchers.bohb:Bohb",
        "bayesopt": "siftune.searchers.bayesopt:BayesOpt",
        "portfolio": "siftune.searchers.portfolio:Portfolio",
    },
)
AUTO = "auto"  # chooses one of the above: searchers/auto.py
