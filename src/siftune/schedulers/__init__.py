"""Schedulers stop, pause or clone trials. Each has its own file; `SCHEDULERS` is the catalogue."""

from siftune.catalogue import Catalogue

SCHEDULERS = Catalogue(
    "scheduler",
    {
        "none": "siftune.schedulers.none:NoScheduler",
        "asha": "siftune.schedulers.asha:Asha",
        "hyperband": "siftune.schedulers.hyperband:HyperBand",
        "bohb": "siftune.schedulers.bohb:BohbHyperBand",
        "median": "siftune.schedulers.median:Median",
        "pbt": "siftune.schedulers.pbt:Pbt",
    },
)
