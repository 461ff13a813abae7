"""A launcher that trains in a child process, as torchrun and accelerate do."""

import argparse
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
arguments = parser.parse_args()

code = "import json, sys, time\n"
code += "for e in range(3): print(json.dumps({'loss': float(sys.argv[1]) / (e + 1)}), flush=True)\n"
subprocess.run([sys.executable, "-c", code, str(arguments.lr)], check=True)
