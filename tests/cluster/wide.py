"""A user's function that trains on several GPUs, and does not always do well."""

import os
from pathlib import Path

import torch
from ray import tune

from siftune import parallel

SPACE = {"case": tune.choice(["well", "crash", "error"]), "epochs": 3}


def train(config):
    model = torch.nn.Linear(3, 1)
    together = parallel.wrap(model)
    optimizer = torch.optim.SGD(together.parameters(), lr=0.1)
    inputs = torch.arange(24.0).view(8, 3) / 24
    last = parallel.rank() == parallel.processes() - 1
    for epoch in range(config["epochs"]):
        if config["case"] == "error" and last and epoch == 1:
            raise ValueError("the last one is at fault")
        if config["case"] == "crash" and last and epoch == 1 and not Path("crashed").exists():
            Path("crashed").touch()
            os._exit(3)
        loss = together(parallel.part(inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights = model.weight[0].detach()
        mean = parallel.total(weights.clone()) / parallel.processes()
        tune.report({"loss": loss.item(), "apart": (weights - mean).abs().max().item()})
