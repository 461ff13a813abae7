"""Runs entrypoints/tune.py as if this machine had other CPUs and GPUs; Ray does not check them.

claimed.py GPUS GIB CPUS [flags]: the number of GPUs, the memory of each, and the number of CPUs.
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
