"""Whole layers on the fused kernels beside the same layers on the torch path: codes, statistics, gradients."""

import copy
from functools import partial

import pytest
import torch

from tests.few import few
from tests.kernels.stand_ins import without
from vqkit import Quantizer, ResidualQuantizer
from vqkit.kernels import gpu, native


def trained_step(layer: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What one training step and one encoding leave behind."""
    x = x.clone().requires_grad_()
    output = layer(x)
    (output.quantized.square().sum() + output.loss).backward()
    found = {"indices": output.indices, "loss": output.loss.detach(), "x": x.grad}
    found |= {name: parameter.grad for name, parameter in layer.named_parameters() if parameter.grad is not None}
    layer.eval()
    found["codes"] = layer.encode(x.detach())
    return found | {name: value.clone() for name, value in layer.state_dict().items()}


@pytest.mark.parametrize("method", few(["vq", "ema", "ibq", "coda", "simvq", "residual"], "ema", "ibq"))
def test_a_training_step(gpu_path: torch.device, method: str) -> None:
    torch.manual_seed(0)
    if method == "residual":
        layer = ResidualQuantizer(partial(Quantizer, "ema", dim=6, codebook_size=20), 3)
    else:
        layer = Quantizer(method, dim=6, codebook_size=20)
    x = torch.randn(2, 7, 6)
    with without(gpu), without(native):
        expected = trained_step(copy.deepcopy(layer), x)
    found = trained_step(layer.to(gpu_path), x.to(gpu_path))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.is_floating_point() else 0
        torch.testing.assert_close(
            found[name].cpu(), value, rtol=0, atol=1e-5 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )
