"""An example with a generator that yields its metrics once per epoch.

A network with one hidden layer learns a sine.

Train one config without Ray, then run a search:
    train --trainable my_train.py:train --set lr=0.01
    tune  --trainable my_train.py:train --trials 20
"""

import torch
from ray import tune
from torch import nn

SPACE = {"lr": tune.loguniform(1e-4, 1e-1), "width": tune.choice([8, 16, 32, 64]), "epochs": 20}


def train(config):
    x = torch.linspace(-3, 3, 512).unsqueeze(1)
    y = torch.sin(2 * x)
    model = nn.Sequential(nn.Linear(1, config["width"]), nn.Tanh(), nn.Linear(config["width"], 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    for _ in range(config["epochs"]):
        for batch in torch.randperm(len(x)).split(64):
            loss = nn.functional.mse_loss(model(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield {"loss": loss.item()}
