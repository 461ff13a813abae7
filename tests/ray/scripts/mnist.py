"""A network on small images, in the style of PyTorch's MNIST example: it prints sentences."""

import argparse

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4 * 6 * 6, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = F.relu(self.conv(images))
        return F.log_softmax(self.fc(features.flatten(1)), dim=1)


def digits(count: int, seed: int) -> TensorDataset:
    """Returns noisy images of 8x8 pixels, in which one of ten pixels is bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (count,), generator=generator)
    images = torch.rand(count, 64, generator=generator)
    images[torch.arange(count), 6 * labels] += 2
    return TensorDataset(images.view(count, 1, 8, 8), labels)


def train(args, model, loader, optimizer, epoch) -> None:
    model.train()
    for index, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        if index % args.log_interval == 0:
            done, whole = index * len(data), len(loader.dataset)
            share = 100.0 * index / len(loader)
            print(f"Train Epoch: {epoch} [{done}/{whole} ({share:.0f}%)]\tLoss: {loss.item():.6f}")
            if args.dry_run:
                break


def test(model, loader) -> None:
    model.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += int((output.argmax(dim=1) == target).sum())
    count = len(loader.dataset)
    print(
        f"\nTest set: Average loss: {loss / count:.4f}, "
        f"Accuracy: {correct}/{count} ({100.0 * correct / count:.0f}%)\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="PyTorch on small images")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="(default: 64)")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="epochs (default: 3)")
    parser.add_argument("--lr", type=float, default=1.0, metavar="LR", help="(default: 1.0)")
    parser.add_argument("--gamma", type=float, default=0.7, metavar="M", help="(default: 0.7)")
    parser.add_argument("--no-cuda", action="store_true", default=False)
    parser.add_argument("--dry-run", action="store_true", default=False)
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--log-interval", type=int, default=5, metavar="N")
    parser.add_argument("--save-model", action="store_true", default=False)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    train_loader = DataLoader(digits(512, 0), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(digits(128, 1), batch_size=128)
    model = Net()
    optimizer = optim.Adadelta(model.parameters(), lr=args.lr)
    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)
    for epoch in range(1, args.epochs + 1):
        train(args, model, train_loader, optimizer, epoch)
        test(model, test_loader)
        scheduler.step()
    if args.save_model:
        torch.save(model.state_dict(), "mnist_cnn.pt")


if __name__ == "__main__":
    main()
