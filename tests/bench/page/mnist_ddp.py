"""The Turpan page's training script; parts that the page omits are as in PyTorch tutorials."""

import torch
from ray import tune
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        act = ACTIVATIONS[config["activation"]]

        def layer(before, channels, kernel):
            return nn.Sequential(
                nn.Conv2d(before, channels, kernel, padding=kernel // 2),
                nn.BatchNorm2d(channels),
                act(),
                nn.MaxPool2d(2),
            )

        self.layer1 = layer(1, config["conv1_channels"], config["kernel1"])
        self.layer2 = layer(config["conv1_channels"], config["conv2_channels"], config["kernel2"])
        channels, side = config["conv2_channels"], 7
        self.layer3 = nn.Identity()
        if config["conv3_channels"]:
            self.layer3 = layer(channels, config["conv3_channels"], config["kernel3"])
            channels, side = config["conv3_channels"], 3
        self.fc = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(config["dropout"]),
            nn.Linear(channels * side * side, config["fc_dim"]),
            act(),
            nn.Linear(config["fc_dim"], config["num_classes"]),
        )

    def forward(self, x):
        return self.fc(self.layer3(self.layer2(self.layer1(x))))


def original_main(config):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    )
    train_set = datasets.MNIST("/work/data", train=True, download=True, transform=transform)
    train_loader = DataLoader(train_set, batch_size=config["batch_size"], shuffle=True)
    model = Net(config).to(device)
    kwargs = {"lr": config["lr"], "weight_decay": config["weight_decay"]}
    optimizer = {
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
    }[config["optimizer"]](model.parameters(), **kwargs)
    scheduler = None
    if config["scheduler"] == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["epochs"])
    elif config["scheduler"] == "step":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, config["step_size"], config["gamma"])
    elif config["scheduler"] == "onecycle":
        steps = config["epochs"]
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config["lr"], total_steps=steps + 1
        )
    criterion = nn.CrossEntropyLoss()
    for _ in range(config["epochs"]):
        model.train()
        loss_sum = 0.0
        for images, labels in train_loader:
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
        if scheduler:
            scheduler.step()
        tune.report({"loss": loss_sum / len(train_loader)})
