"""A script whose flags click reads, as its author wrote it."""

import json

import click


@click.command()
@click.argument("data")
@click.option("-l", "--learning-rate", "--lr", type=float, required=True)
@click.option("--amp/--no-amp", default=True)
def main(data: str, learning_rate: float, amp: bool) -> None:
    for epoch in range(3):
        print(json.dumps({"loss": learning_rate / (epoch + 1), "amp": amp, "data": data}))


if __name__ == "__main__":
    main()
