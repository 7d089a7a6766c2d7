"""What the twins share: how a model is compiled, and the optimizers that PyTorch lacks, over lists of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

RATE = 3e-4  # constant, as a schedule costs nothing; no twin is trained to anything


class Model(torch.nn.Module):
    """A network whose call gives the loss of a batch."""

    def layers_to_compile(self) -> Iterable[torch.nn.Module]:
        """Modules that are compiled one by one; those of one class are compiled once."""
        return (self,)

    def compile_parts(self) -> None:
        for layer in self.layers_to_compile():
            layer.compile()


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def adamw(model: torch.nn.Module, given: Any, decay: float) -> torch.optim.Optimizer:
    """PyTorch's fused AdamW over what is trained, with the benchmark's moments."""
    return torch.optim.AdamW(
        trained(model),
        lr=RATE,
        betas=(given.beta_1, given.beta_2),
        eps=given.epsilon,
        weight_decay=decay,
        fused=True,
    )


class Optimizer:
    """State by parameter, of two lists: matrices, and what takes neither decay nor a trust ratio."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        whole = [p for p in trained(model) if p.ndim > 1]
        self.groups = [whole, [p for p in trained(model) if p.ndim <= 1]]
        self.rate, self.decay, self.count = RATE, decay, 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in (p for group in self.groups for p in group):
            p.grad = None

    def zeros(self) -> list[list[torch.Tensor]]:
        return [[torch.zeros_like(p) for p in group] for group in self.groups]

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        for number, group in enumerate(self.groups):
            self.update(number, group, [p.grad for p in group], whole=number == 0)

    def update(
        self, number: int, weights: Sequence[Any], gradients: Sequence[Any], whole: bool
    ) -> None:
        """One list; `whole` if it takes decay and a trust ratio."""
        raise NotImplementedError


def scaled(tensors: Sequence[Any], factors: Sequence[Any]) -> None:
    """Each tensor times a scalar tensor of its own, in place."""
    for tensor, factor in zip(tensors, factors, strict=True):
        tensor.mul_(factor)


class Lars(Optimizer):
    """As MLPerf has it: a trust ratio of 0.001 |w| / (|g| + decay |w|), the rate within the momentum."""

    def __init__(self, model: torch.nn.Module, decay: float, momentum: float) -> None:
        super().__init__(model, decay)
        self.momentum, self.buffers = momentum, self.zeros()

    def update(self, number, weights, gradients, whole):
        steps = gradients
        if whole:
            norms, slopes = torch._foreach_norm(weights), torch._foreach_norm(gradients)
            steps = torch._foreach_add(gradients, weights, alpha=self.decay)
            trust = [0.001 * w / (g + self.decay * w) for w, g in zip(norms, slopes, strict=True)]
            scaled(steps, trust)
        torch._foreach_mul_(self.buffers[number], self.momentum)
        torch._foreach_add_(self.buffers[number], steps, alpha=self.rate)
        torch._foreach_sub_(weights, self.buffers[number])


class Lamb(Optimizer):
    """Adam's step and the decay, times |w| / |step|."""

    def __init__(self, model: torch.nn.Module, decay: float, betas: Any, eps: float) -> None:
        super().__init__(model, decay)
        self.betas, self.eps, self.mu, self.nu = betas, eps, self.zeros(), self.zeros()

    def update(self, number, weights, gradients, whole):
        mu, nu = self.mu[number], self.nu[number]
        one, two = self.betas
        torch._foreach_lerp_(mu, gradients, 1 - one)
        torch._foreach_mul_(nu, two)
        torch._foreach_addcmul_(nu, gradients, gradients, 1 - two)
        below = torch._foreach_div(nu, 1 - two**self.count)
        torch._foreach_sqrt_(below)
        torch._foreach_add_(below, self.eps)
        steps = torch._foreach_div(mu, 1 - one**self.count)
        torch._foreach_div_(steps, below)
        if whole:
            torch._foreach_add_(steps, weights, alpha=self.decay)
            norms, sizes = torch._foreach_norm(weights), torch._foreach_norm(steps)
            trust = [w / s.clamp(min=1e-12) for w, s in zip(norms, sizes, strict=True)]
            scaled(steps, trust)
        torch._foreach_sub_(weights, steps, alpha=self.rate)
