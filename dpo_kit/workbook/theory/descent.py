"""Two ways to minimise a loss: L-BFGS to find the optimum, and gradient descent to see the path."""

from collections.abc import Callable

import torch
from torch import Tensor

OPTIMISERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int = 200) -> Tensor:
    """The parameters at which the scalar `loss(parameters)` stops falling, found by L-BFGS from `start`.

    Independent of any closed form: it sees the loss and its gradient, nothing else. Where the loss has no minimum,
    as with preferences that are certain, the result is merely far away after `steps` iterations.
    """
    parameters = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [parameters], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    optimiser.step(lambda: _backward(optimiser, loss(parameters)))
    return parameters.detach()


def descend(
    loss: Callable[[Tensor], Tensor], start: Tensor, *, lr: float, steps: int, optimiser: str = "sgd"
) -> Tensor:
    """The whole path of gradient descent, (steps + 1, *start.shape), its first row being `start`.

    `optimiser` is 'sgd' or 'adam'.
    """
    parameters = start.clone().requires_grad_()
    stepper = OPTIMISERS[optimiser]([parameters], lr=lr)
    path = [start.clone()]
    for _ in range(steps):
        stepper.step(lambda: _backward(stepper, loss(parameters)))
        path.append(parameters.detach().clone())
    return torch.stack(path)


def _backward(optimiser: torch.optim.Optimizer, value: Tensor) -> Tensor:
    optimiser.zero_grad()
    value.backward()
    return value
