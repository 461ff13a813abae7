"""Schedulers stop, pause or clone trials. One file each; `SCHEDULERS` is the catalogue."""

SCHEDULERS = {
    "none": "siftune.schedulers.none:NoScheduler",
    "asha": "siftune.schedulers.asha:Asha",
    "hyperband": "siftune.schedulers.hyperband:HyperBand",
    "bohb": "siftune.schedulers.bohb:BohbHyperBand",
    "median": "siftune.schedulers.median:Median",
    "pbt": "siftune.schedulers.pbt:Pbt",
}
