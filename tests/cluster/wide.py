"""A user's function that trains on several GPUs and sometimes fails, as its config says."""

import os
import tempfile
from pathlib import Path

import torch
from ray import tune

from siftune.trainables.training import parallel

SPACE = {"case": tune.choice(["well", "crash", "error"]), "epochs": 3}


def train(config):
    model, done = torch.nn.Linear(3, 1), 0
    if checkpoint := tune.get_checkpoint():
        state = torch.load(Path(checkpoint.path, "state.pt"), weights_only=True)
        model.load_state_dict(state["model"])
        done = state["epoch"]
    together = parallel.wrap(model)
    optimizer = torch.optim.SGD(together.parameters(), lr=0.1)
    inputs = torch.arange(24.0).view(8, 3) / 24
    last = parallel.rank() == parallel.processes() - 1
    for epoch in range(done, config["epochs"]):
        if config["case"] == "error" and last and epoch == 1:
            raise ValueError("an error in the last process")
        if config["case"] == "crash" and last and epoch == 1 and not Path("crashed").exists():
            Path("crashed").touch()
            os._exit(3)
        loss = together(parallel.part(inputs)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights = model.weight[0].detach()
        mean = parallel.total(weights.clone()) / parallel.processes()
        apart = (weights - mean).abs().max().item()
        with tempfile.TemporaryDirectory() as directory:
            state = {"model": model.state_dict(), "epoch": epoch + 1}
            torch.save(state, Path(directory, "state.pt"))
            saved = tune.Checkpoint.from_directory(directory)
            tune.report({"loss": loss.item(), "apart": apart}, checkpoint=saved)
