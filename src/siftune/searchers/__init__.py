"""Searchers propose configs. One file each; `SEARCHERS` is the catalogue."""

SEARCHERS = {
    "random": "siftune.searchers.random:Random",
    "grid": "siftune.searchers.grid:Grid",
    "optuna": "siftune.searchers.optuna:Optuna",
    "hebo": "siftune.searchers.hebo:Hebo",
    "bohb": "siftune.searchers.bohb:Bohb",
    "bayesopt": "siftune.searchers.bayesopt:BayesOpt",
}
