"""The same codes on a GPU as on the CPU, for every quantizer. Runs by itself where CUDA is present."""

import pytest
import torch

from tests.contract.cases import Case, every_case
from tests.contract.test_contract import initialized

pytestmark = pytest.mark.gpu


@every_case
def test_the_codes_of_the_cpu(case: Case) -> None:
    quantizer = initialized(case).eval()
    x = case.example(16)
    expected = quantizer(x)
    output = quantizer.cuda()(x.cuda())
    assert torch.equal(output.indices.cpu(), expected.indices)
    torch.testing.assert_close(output.quantized.cpu(), expected.quantized)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_training_under_autocast(case: Case, dtype: torch.dtype) -> None:
    quantizer = initialized(case).cuda()
    x = case.example(16).cuda().requires_grad_()
    with torch.autocast("cuda", dtype=dtype):
        output = quantizer(x.to(dtype))
    (output.quantized.float().square().mean() + output.loss).backward()
    assert output.quantized.dtype == dtype and output.loss.dtype == torch.float32
    assert x.grad.isfinite().all()
