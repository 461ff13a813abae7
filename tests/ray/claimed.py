"""entrypoints/tune.py on a machine that seems to have GPUs: Ray hands out what it is told there is.

claimed.py GPUS GIB CPUS [flags]: so many GPUs with so much memory, and CPUs.
"""

import runpy
import sys
from pathlib import Path

from siftune.machine import gpus as gpu_facts
from siftune.machine import resources

gpus, gib, cpus = sys.argv[1:4]
resources.nodes = lambda: [resources.Node(cpus=float(cpus), gpus=float(gpus))]
gpu_facts.memory_gib = lambda: float(gib)
sys.argv = ["tune", *sys.argv[4:]]
runpy.run_path(str(Path(__file__).parents[2] / "entrypoints" / "tune.py"), run_name="__main__")
