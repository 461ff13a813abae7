"""Models of one shape as one: the network of each is a lane of a common one.

Method: HFTA (Wang et al., "Horizontally Fused Training Array", MLSys 2021). The convolutions of all
lanes are one with a group for each, batch normalisation is over the channels of all, a linear layer
is a batched matrix product. torch.vmap gives the same numbers, for any model, but moves the lanes'
dimension to and fro between layers: a test holds this against it.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

ELEMENTWISE = (nn.ReLU, nn.GELU, nn.SiLU)


class Stack:
    """A copy of several models with the same layers. Values go back to them by `store`.

    `flat` [lanes, P] has all parameters, a row a lane; `parameters` are views of it.
    """

    def __init__(self, models: Sequence[nn.Sequential]) -> None:
        self._models = models
        self.lanes = len(models)
        self.flat = stacked(model.parameters() for model in models)
        self.parameters = [part.detach().requires_grad_() for part in self._parts(self.flat)]
        self._buffers = [
            torch.cat([buffer.flatten() for buffer in buffers]) if buffers[0].dim() else None
            for buffers in zip(*(model.buffers() for model in models), strict=True)
        ]

    def __call__(self, x: Tensor, masks: Tensor | None = None) -> Tensor:
        """Images [B, lanes × channels, H, W] to logits [lanes, B, classes].

        `masks` [lanes, B, F] is what dropout multiplies with. Without it the models are in
        evaluation mode; with it they train, and running statistics change.
        """
        parameters, buffers = iter(self.parameters), iter(self._buffers)
        for layer in self._models[0]:
            if isinstance(layer, nn.Conv2d):
                weight, bias = next(parameters), next(parameters)
                x = functional.conv2d(
                    x,
                    weight.flatten(0, 1),
                    bias.flatten(),
                    layer.stride,
                    layer.padding,
                    groups=self.lanes,
                )
            elif isinstance(layer, nn.BatchNorm2d):
                weight, bias = next(parameters), next(parameters)
                mean, variance, _ = next(buffers), next(buffers), next(buffers)
                assert layer.momentum is not None
                x = functional.batch_norm(
                    x,
                    mean,
                    variance,
                    weight.flatten(),
                    bias.flatten(),
                    training=masks is not None,
                    momentum=layer.momentum,
                    eps=layer.eps,
                )
            elif isinstance(layer, nn.Flatten):
                x = x.reshape(len(x), self.lanes, -1).transpose(0, 1)
            elif isinstance(layer, nn.Dropout):
                x = x if masks is None else x * masks
            elif isinstance(layer, nn.Linear):
                weight, bias = next(parameters), next(parameters)
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            else:
                assert isinstance(layer, (*ELEMENTWISE, nn.MaxPool2d)), layer
                x = layer(x)
        return x

    def store(self, steps: int) -> None:
        """Gives the models their values back, after so many steps."""
        with torch.no_grad():
            for model, row in zip(self._models, self.flat, strict=True):
                unstack(row, model.parameters())
            for buffers, values in zip(
                zip(*(model.buffers() for model in self._models), strict=True),
                self._buffers,
                strict=True,
            ):
                for lane, buffer in enumerate(buffers):
                    if values is None:  # batch normalisation counts its batches
                        buffer += steps
                    else:
                        buffer.copy_(values.view(self.lanes, *buffer.shape)[lane])

    def _parts(self, flat: Tensor) -> list[Tensor]:
        shapes = [parameter.shape for parameter in self._models[0].parameters()]
        parts = flat.split([shape.numel() for shape in shapes], dim=1)
        return [part.view(self.lanes, *shape) for part, shape in zip(parts, shapes, strict=True)]


def stacked(rows: Iterable[Iterable[Tensor]]) -> Tensor:
    """Lists of tensors as one tensor [lists, values of all tensors]."""
    return torch.stack([torch.cat([t.detach().flatten() for t in row]) for row in rows])


def unstack(row: Tensor, tensors: Iterable[Tensor]) -> None:
    """Copies a row of `stacked` into tensors of the shapes it was made of, however they lie."""
    start = 0
    for tensor in tensors:
        tensor.copy_(row[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
