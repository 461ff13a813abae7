"""A script whose flags typer reads, as its author wrote it."""

import json

import typer


def main(lr: float = typer.Option(...), layers: int = 2, amp: bool = False) -> None:
    print(json.dumps({"loss": lr, "layers": layers, "amp": amp}))


if __name__ == "__main__":
    typer.run(main)
