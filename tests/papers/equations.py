"""A quantizer beside its equations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vqkit import BaseQuantizer, QuantizerOutput

Equations = Callable[[Tensor, dict[str, Tensor]], tuple[Tensor, Tensor, Tensor]]
"""Of latents and of weights by name: what is decoded with its straight-through gradient, indices and the loss."""


def assert_computes(
    equations: Equations, quantizer: BaseQuantizer, z: Tensor, *, atol: float = 1e-12, weights: nn.Module | None = None
) -> QuantizerOutput:
    """A step of training computes what the equations do, with the gradients of the loss and of what is decoded.

    Args:
        weights: the part of the quantizer whose weights the equations take; by default all of it.
    """
    weights = quantizer if weights is None else weights
    upstream, x, y = torch.randn_like(z), *(z.detach().clone().requires_grad_() for _ in range(2))
    copies = {name: value.detach().clone().requires_grad_() for name, value in weights.named_parameters()}
    output = quantizer(x)
    (output.loss + (output.quantized * upstream).sum()).backward()
    quantized, indices, loss = equations(y, copies)
    (loss + (quantized * upstream).sum()).backward()
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.quantized, quantized, rtol=0, atol=atol)
    torch.testing.assert_close(output.loss, loss, rtol=0, atol=atol)
    torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=atol)
    for name, value in weights.named_parameters():
        torch.testing.assert_close(value.grad, copies[name].grad, rtol=0, atol=atol, msg=name)
    return output
