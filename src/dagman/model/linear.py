"""Linear layers that use oneDNN for float32 products on processors where it is faster than MKL (docs/decisions/0027)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dagman.devices import read_processor_vendor


class Linear(nn.Linear):
    """Like `nn.Linear`, with the same weights, and outputs equal up to rounding."""

    def forward(self, input: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        """Apply the layer to each row."""
        return apply_linear(input, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden)
        self.linear2 = Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*tokens C"]) -> Float[Tensor, "*tokens C"]:
        """Apply the MLP to each token."""
        # The exact GELU, because the tanh approximation is three times slower on a CPU.
        return self.linear2(apply_linear_gelu(self.linear1, x))


def apply_linear(x: Float[Tensor, "*rows I"], weight: Float[Tensor, "O I"], bias: Tensor | None) -> Float[Tensor, "*rows O"]:
    """Compute x W^T + b, with oneDNN where it is faster."""
    if not _takes_onednn(x, weight):
        return F.linear(x, weight, bias)
    product: Tensor = _Product.apply(x, weight, bias)
    return product


def apply_linear_gelu(linear: nn.Linear, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
    """Compute the exact GELU of a linear layer; without gradients, oneDNN does both in one pass over the output."""
    if torch.is_grad_enabled() or not _takes_onednn(x, linear.weight):
        return F.gelu(linear(x))
    return _multiply(x, linear.weight, linear.bias, "gelu")


@cache
def prefers_onednn() -> bool:
    """Check whether float32 products use oneDNN: on AMD processors, where torch's MKL uses only half of the vector units.

    This is decided by the processor's vendor, not by timing, so that two runs on the same machine give identical bits.
    """
    available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return available and read_processor_vendor() == "AuthenticAMD"


def _takes_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not prefers_onednn():
        return False
    return x.dtype == weight.dtype == torch.float32 and x.numel() > 0 and not torch.is_autocast_enabled("cpu")


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Compute x W^T + b and the activation with oneDNN."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, activation, [], "none")
    return product


class _Product(torch.autograd.Function):
    """Linear layer with gradients: oneDNN computes that of the input; MKL, which is equally fast there, that of the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            _multiply(gradient, weight.t(), None) if needs_x else None,
            rows.t() @ x.reshape(-1, x.shape[-1]) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )
