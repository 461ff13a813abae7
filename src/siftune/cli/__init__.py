"""The command line: one module for each command, and `siftune COMMAND`, which calls it."""

import sys
from importlib import import_module

COMMANDS = {
    "tune": "runs a study",
    "train": "trains one config alone, or evaluates the best weights",
    "status": "says how studies are doing",
    "logs": "prints what a trial has printed",
    "report": "writes report.html",
    "export": "writes a study as CSV, or for Optuna's dashboard or TensorBoard",
    "doctor": "says what this machine can do",
    "data": "fetches MNIST",
    "run": "runs a program that uses Ray itself, in a job",
    "new": "writes a small trainable to start from",
}


def main() -> int:
    """Runs `siftune COMMAND …`."""
    command, *words = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        module = import_module(f"siftune.cli.{command}")
        status: int = module.main(words)
        return status
    print("usage: siftune COMMAND [--help]\n")
    for name, does in COMMANDS.items():
        print(f"  {name:8}{does}")
    if command in ("-h", "--help"):
        return 0
    print(f"\nsiftune: unknown command {command!r}", file=sys.stderr)
    return 2
