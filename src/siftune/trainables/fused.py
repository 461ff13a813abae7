"""Trials of one shape trained as one program: an epoch of each, whichever epoch that is.

Each trial is a lane. What it trains, in which order, with which dropout, follows from its own
config, seed and epoch, so that it ends as it would alone, but for the order in which floats are
added up. Nothing waits for the device within an epoch, and all batches but the last have one shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adam, AdamW, Optimizer

from siftune.data import Mnist
from siftune.trainables import mnist
from siftune.trainables.loop import Metrics, Training, epoch_seed, reproducible
from siftune.trainables.stack import Stack, stacked, unstack


@dataclass(slots=True)
class Lane:
    """A trial, and how many epochs it has trained."""

    training: Training
    epoch: int = 0


def train_epoch(lanes: Sequence[Lane], data: Mnist, *, seed: int) -> list[Metrics]:
    """Trains each lane for its next epoch; the metrics of each, as `run_epochs` has them.

    Lanes are equal but for lr, weight decay, dropout, schedule and epochs. A lane that diverges has
    metrics that are not finite, and changes no other. Where this raises, no lane has changed.
    """
    begin = time.perf_counter()
    trainings = [lane.training for lane in lanes]
    device, samples = trainings[0].device, trainings[0].samples
    with reproducible(seed, 0, device):  # for its kernels: nothing is drawn from it
        models = Stack([_layers(training) for training in trainings])
        update = Update([training.optimizer for training in trainings])
        noise = _Noise(lanes, seed)
        batches = _orders(lanes, seed).split(trainings[0].batch_size, dim=1)
        rates = update.rates([_planned(lane, len(batches)) for lane in lanes])
        total = torch.zeros(len(lanes), device=device)
        for batch, rate in zip(batches, rates, strict=True):
            total += train_step(models, update, data, batch, noise.masks(batch.shape[1]), rate)
        means = [loss / samples for loss in total.tolist()]
        seconds = time.perf_counter() - begin
        scores = _scores(models, data)
        models.store(len(batches))
        update.store(len(batches))
    metrics = []
    for lane, loss, (val_loss, val_accuracy) in zip(lanes, means, scores, strict=True):
        lane.epoch += 1
        found = {"loss": loss, "epoch": lane.epoch, "samples_per_s": samples / seconds}
        metrics.append(found | {"val_loss": val_loss, "val_accuracy": val_accuracy})
    return metrics


def train_step(
    models: Stack, update: Update, data: Mnist, batch: Tensor, masks: Tensor, rates: Tensor
) -> Tensor:
    """Trains each lane on its batch, of indices [lanes, B]: the sums of the losses, [lanes].

    It reads no value, on which the device would have to be waited for.
    """
    losses = _losses(models(_images(data, batch), masks), data.train_labels[batch])
    gradients = torch.autograd.grad(losses.sum() / batch.shape[1], models.parameters)
    update.step(models.flat, torch.cat([g.flatten(1) for g in gradients], dim=1), rates)
    return losses.detach()


def _layers(training: Training) -> nn.Sequential:
    assert isinstance(training.model, nn.Sequential)
    return training.model


def _orders(lanes: Sequence[Lane], seed: int) -> Tensor:
    """The order of the samples of each lane's next epoch, int64 [lanes, samples]."""
    samples, device = lanes[0].training.samples, lanes[0].training.device
    generators = [torch.Generator().manual_seed(epoch_seed(seed, x.epoch + 1)) for x in lanes]
    return torch.stack([torch.randperm(samples, generator=g) for g in generators]).to(device)


def _planned(lane: Lane, steps: int) -> list[tuple[float, float | None]]:
    """Learning rate and momentum of each step of the lane's next epoch."""
    config, first = lane.training.config, lane.epoch * steps
    whole = lane.training.epochs * steps
    return [mnist.rates(config, step, whole) for step in range(first, first + steps)]


def _images(data: Mnist, batch: Tensor) -> Tensor:
    """Of indices [lanes, B], float32 [B, lanes, 28, 28]."""
    return mnist.normalised(data.train_images[batch.t()]).squeeze(1)


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Of logits [lanes, B, classes] and labels [lanes, B] the sums [lanes]."""
    each = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return each.view(labels.shape).sum(1)


@torch.inference_mode()
def _scores(models: Stack, data: Mnist) -> list[tuple[float, float]]:
    """Mean loss and accuracy (0 to 1) of each lane over the validation images."""
    loss = torch.zeros(models.lanes, device=data.val_images.device)
    correct = torch.zeros_like(loss)
    for images, labels in zip(
        data.val_images.split(mnist.VALIDATION_BATCH),
        data.val_labels.split(mnist.VALIDATION_BATCH),
        strict=True,
    ):
        logits = models(mnist.normalised(images).expand(-1, models.lanes, -1, -1))
        labels = labels.expand(models.lanes, -1)
        loss += _losses(logits, labels)
        correct += (logits.argmax(2) == labels).sum(1)
    both = torch.stack([loss, correct], dim=1) / len(data.val_images)
    return [(val_loss, accuracy) for val_loss, accuracy in both.tolist()]


class _Noise:
    """What dropout multiplies with: of each lane the numbers that nn.Dropout draws in a process
    that trains it alone, from a generator of its own."""

    def __init__(self, lanes: Sequence[Lane], seed: int) -> None:
        self._device = lanes[0].training.device
        model = _layers(lanes[0].training)
        self._features = next(m.in_features for m in model if isinstance(m, nn.Linear))
        self._chances = [float(lane.training.config["dropout"]) for lane in lanes]
        self._generators = [
            torch.Generator(self._device).manual_seed(epoch_seed(seed, lane.epoch + 1))
            for lane in lanes
        ]

    def masks(self, batch: int) -> Tensor:
        """Of the next batch, [lanes, B, features]."""
        ones = torch.ones(batch, self._features, device=self._device)
        drawn = zip(self._chances, self._generators, strict=True)
        return torch.stack([self._mask(ones, *lane) for lane in drawn])

    @staticmethod
    def _mask(ones: Tensor, chance: float, generator: torch.Generator) -> Tensor:
        if chance == 0:
            return ones
        if ones.is_cuda and chance < 1:
            # The kernel of nn.Dropout there. It is not bernoulli_'s, whose numbers are others.
            mask: Tensor = torch._fused_dropout(ones, 1 - chance, generator)[0]
            return mask
        return torch.empty_like(ones).bernoulli_(1 - chance, generator=generator).div_(1 - chance)


# ── Optimizers ──────────────────────────────────────────────────────────────────────────────────

Planned = Sequence[tuple[float, float | None]]


class Update:
    """Optimizers of one kind, torch's Adam, AdamW or SGD with momentum, with rates of their own.

    Moments are copies, [lanes, P]; they go back to the optimizers by `store`.
    """

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._optimizers = optimizers
        self._kind = type(optimizers[0])
        self._names, self._columns, self._step = _RULES[self._kind]
        self._moments = [
            stacked(_moments(optimizer, name) for optimizer in optimizers) for name in self._names
        ]

    def rates(self, planned: Sequence[Planned]) -> Tensor:
        """What `step` needs, of every step of an epoch: float [steps, values, lanes, 1].

        `planned`: of each lane, the learning rate and the momentum of each step. No momentum: the
        optimizer's own.
        """
        columns = []
        for optimizer, plan in zip(self._optimizers, planned, strict=True):
            group = optimizer.param_groups[0]
            own = group["betas"][0] if "betas" in group else group["momentum"]
            lr, momentum = torch.tensor(
                [(lr, own if momentum is None else momentum) for lr, momentum in plan],
                dtype=torch.float64,
            ).T
            steps = torch.arange(1, len(plan) + 1) + _steps(optimizer)
            columns.append(torch.stack(self._columns(group, lr, momentum, steps), dim=1))
        device = self._moments[0].device
        return torch.stack(columns, dim=2).unsqueeze(3).to(device, self._moments[0].dtype)

    @torch.no_grad()
    def step(self, weights: Tensor, gradients: Tensor, rates: Tensor) -> None:
        """Changes weights [lanes, P] by gradients [lanes, P] and one step's rates."""
        self._step(weights, gradients, self._moments, rates)

    def store(self, steps: int) -> None:
        """Gives the optimizers their moments back, after so many steps."""
        for lane, optimizer in enumerate(self._optimizers):
            done = _steps(optimizer) + steps
            parameters = optimizer.param_groups[0]["params"]
            for parameter in parameters:
                state = optimizer.state[parameter]
                for name in self._names:
                    # Laid out in memory as the weights are, which torch's kernels take for granted.
                    state.setdefault(name, torch.empty_like(parameter, requires_grad=False))
                if self._kind is not SGD:
                    state["step"] = torch.tensor(
                        float(done), dtype=torch.float32, device=parameter.device
                    )
            for name, moments in zip(self._names, self._moments, strict=True):
                unstack(moments[lane], [optimizer.state[p][name] for p in parameters])


def _moments(optimizer: Optimizer, name: str) -> list[Tensor]:
    """One kind of moment of all parameters; zeros before the first step."""
    states = [(p, optimizer.state.get(p, {})) for p in optimizer.param_groups[0]["params"]]
    return [state[name] if name in state else torch.zeros_like(p) for p, state in states]


def _steps(optimizer: Optimizer) -> int:
    """Steps behind it. (SGD does not count them, nor depend on it.)"""
    first = optimizer.param_groups[0]["params"][0]
    return int(optimizer.state.get(first, {}).get("step", 0))


def _adam_columns(group: dict, lr: Tensor, momentum: Tensor, steps: Tensor) -> list[Tensor]:
    first, second = 1 - momentum**steps, 1 - SECOND**steps
    decay = torch.full_like(lr, group["weight_decay"])
    return [decay, 1 - momentum, second.sqrt(), lr / first]


def _adamw_columns(group: dict, lr: Tensor, momentum: Tensor, steps: Tensor) -> list[Tensor]:
    return [1 - lr * group["weight_decay"], *_adam_columns(group, lr, momentum, steps)[1:]]


def _sgd_columns(group: dict, lr: Tensor, momentum: Tensor, steps: Tensor) -> list[Tensor]:
    return [torch.full_like(lr, group["weight_decay"]), momentum, lr]


def _adam(weights: Tensor, gradients: Tensor, moments: list[Tensor], rates: Tensor) -> None:
    decay, *rest = rates.unbind()
    _adam_step(weights, torch.addcmul(gradients, weights, decay), moments, rest)


def _adamw(weights: Tensor, gradients: Tensor, moments: list[Tensor], rates: Tensor) -> None:
    keep, *rest = rates.unbind()
    _adam_step(weights.mul_(keep), gradients, moments, rest)


def _adam_step(
    weights: Tensor, gradients: Tensor, moments: list[Tensor], rates: list[Tensor]
) -> None:
    (mean, square), (fresh, root, size) = moments, rates
    mean.lerp_(gradients, fresh)
    square.mul_(SECOND).addcmul_(gradients, gradients, value=1 - SECOND)
    weights.addcmul_(mean / (square.sqrt() / root).add_(EPSILON), size, value=-1)


def _sgd(weights: Tensor, gradients: Tensor, moments: list[Tensor], rates: Tensor) -> None:
    decay, momentum, lr = rates.unbind()
    buffer = moments[0].mul_(momentum).add_(torch.addcmul(gradients, weights, decay))
    weights.addcmul_(buffer, lr, value=-1)


SECOND, EPSILON = 0.999, 1e-8  # torch's defaults for Adam and AdamW, which mnist leaves as they are

_RULES: dict[type[Optimizer], tuple[tuple[str, ...], Callable, Callable]] = {
    Adam: (("exp_avg", "exp_avg_sq"), _adam_columns, _adam),
    AdamW: (("exp_avg", "exp_avg_sq"), _adamw_columns, _adamw),
    SGD: (("momentum_buffer",), _sgd_columns, _sgd),
}
