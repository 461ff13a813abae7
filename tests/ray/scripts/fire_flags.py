"""A script whose flags fire reads, as its author wrote it."""

import json

import fire


def main(lr, layers=2, amp=False):
    print(json.dumps({"loss": lr, "layers": layers, "amp": amp}))


if __name__ == "__main__":
    fire.Fire(main)
