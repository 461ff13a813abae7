"""entrypoints/tune.py on a machine that seems to have GPUs: Ray hands out what it is told there is.

claimed.py GPUS GIB CPUS [flags]: so many GPUs with so much memory, and CPUs.
"""

import runpy
import sys
from pathlib import Path

from siftune.machine import cluster

gpus, gib, cpus = sys.argv[1:4]
cluster.nodes = lambda: [cluster.Node(cpus=float(cpus), gpus=float(gpus))]
cluster.gpu_gib = lambda: float(gib)
sys.argv = ["tune", *sys.argv[4:]]
runpy.run_path(str(Path(__file__).parents[2] / "entrypoints" / "tune.py"), run_name="__main__")
