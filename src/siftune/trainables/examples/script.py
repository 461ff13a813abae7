"""An example with a command-line script that does not use siftune.

A network with one hidden layer learns a sine.

Run it alone, train one config, then run a search over the space in my_space.yaml:
    python my_train.py --lr 0.01
    train --trainable my_train.py --space my_space.yaml --set lr=0.01
    tune  --trainable my_train.py --space my_space.yaml --trials 20
"""

import argparse
import json

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-2)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--epochs", type=int, default=20)
arguments = parser.parse_args()

x = torch.linspace(-3, 3, 512).unsqueeze(1)
y = torch.sin(2 * x)
model = nn.Sequential(nn.Linear(1, arguments.width), nn.Tanh(), nn.Linear(arguments.width, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=arguments.lr)
for _ in range(arguments.epochs):
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.mse_loss(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(json.dumps({"loss": loss.item()}), flush=True)
