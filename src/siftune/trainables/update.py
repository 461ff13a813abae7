"""An optimizer's step at rates that change from one to the next: as numbers, or as tensors on its
device, which nothing waits for. Adam, AdamW and SGD, of torch's fused kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Rates = tuple[float, float | None]  # lr; momentum, of Adam beta1: None where it does not change


def set_rates(optimizer: Optimizer, lr: float, momentum: float | None) -> None:
    """What the optimizer's own `step` goes by."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if momentum is not None and "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        elif momentum is not None:
            group["momentum"] = momentum


def step_at(optimizer: Optimizer, lr: Tensor, momentum: Tensor | None) -> None:
    """One step at rates of shape [], float32: that of `set_rates` and `step`, but for rounding.

    Torch's fused kernels read lr from a tensor, but take momentum as a number, for which they would
    wait. Where it changes the same formulas are written out here.
    """
    if momentum is None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        return
    for group in optimizer.param_groups:
        params = [p for p in group["params"] if p.grad is not None]
        grads = [p.grad for p in params]
        states = [optimizer.state[p] for p in params]
        step = _adam if "betas" in group else _sgd
        with torch.no_grad():
            step(group, params, grads, states, lr, momentum)


def _adam(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    lr: Tensor,
    beta1: Tensor,
) -> None:
    for param, state in zip(params, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), device=param.device)
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
    counts, means, squares = (
        [state[name] for state in states] for name in ("step", "exp_avg", "exp_avg_sq")
    )
    beta2, decay = group["betas"][1], group["weight_decay"]
    if group["decoupled_weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * decay)
    else:
        grads = list(torch._foreach_add(grads, params, alpha=decay))
    torch._foreach_add_(counts, 1)
    count = counts[0].double()  # 1 - 0.999 in float32 is wrong in the fourth digit
    move = (lr / (beta1.double() ** count - 1)).to(lr.dtype)
    scale = (1 - beta2**count).sqrt().to(lr.dtype)
    torch._foreach_mul_(means, beta1)
    torch._foreach_add_(means, torch._foreach_mul(grads, 1 - beta1))
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    divisors = torch._foreach_sqrt(squares)
    torch._foreach_div_(divisors, scale)
    torch._foreach_add_(divisors, group["eps"])
    moves = torch._foreach_div(means, divisors)
    torch._foreach_mul_(moves, move)
    torch._foreach_add_(params, moves)


def _sgd(
    group: dict[str, Any],
    params: list[Tensor],
    grads: list[Tensor],
    states: list[dict[str, Tensor]],
    lr: Tensor,
    momentum: Tensor,
) -> None:
    for param, state in zip(params, states, strict=True):
        if not state:
            state["momentum_buffer"] = torch.zeros_like(param)
    buffers = [state["momentum_buffer"] for state in states]
    grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads)
    moves = list(torch._foreach_mul(buffers, momentum)) if group["nesterov"] else buffers
    if group["nesterov"]:
        torch._foreach_add_(moves, grads)
    torch._foreach_add_(params, torch._foreach_mul(moves, -lr))
