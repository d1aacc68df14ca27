"""What a quantizer is given: extremes of a dtype, tensors of other kinds, and calls under `torch.func`."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, DIM, MATRIX, Case, each
from tests.contract.test_contract import initialized
from vqkit import BaseQuantizer, Quantizer

typical_cases = each(CASES, MATRIX, "nsvq", "ibq", "lfq", "residual_nsvq", "grouped")

REFUSED: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "array": (lambda x: x.numpy(), r"x is a numpy.ndarray: expected a torch.Tensor; use torch.as_tensor\(x\)"),
    "list": (lambda x: x.tolist(), "x is a builtins.list: expected a torch.Tensor"),
    "none": (lambda x: None, "x is a builtins.NoneType: expected a torch.Tensor"),
    "sparse": (lambda x: x.to_sparse(), r"layout torch.sparse_coo: expected torch.strided; use x.to_dense\(\)"),
    "mkldnn": (lambda x: x.to_mkldnn(), "layout torch._mkldnn: expected torch.strided"),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[0, :5]]), "x is nested: expected one size for all"),
    "named": (lambda x: x.refine_names("B", "T", "D"), r"names \('B', 'T', 'D'\): expected none; use x.rename\(None\)"),
    "meta": (lambda x: x.to("meta"), "x is on meta: expected cpu, where the module is"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "torch.qint8: expected floating point"),
    "complex": (lambda x: x.to(torch.complex64), "torch.complex64: expected floating point"),
    "bool": (lambda x: x > 0, "torch.bool: expected floating point"),
    "integer": (lambda x: x.int(), "torch.int32: expected floating point"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:Named tensors", "ignore:.*[Qq]uantiz", "ignore:The PyTorch API of nested tensors")
def test_another_kind_of_tensor_is_refused_with_words(make: Callable[[Tensor], object], message: str) -> None:
    for name in ("vq", "ibq", "lfq", "fsq", "residual"):
        quantizer, given = CASES[name].build(), make(CASES[name].example())
        for call in (quantizer, quantizer.encode):
            with pytest.raises(ValueError, match=message):
                call(given)
    with pytest.raises(ValueError, match=message):
        CASES["vq"].build().initialize([given])


def test_a_part_on_each_rank_is_refused_with_words() -> None:
    from torch.distributed.tensor import DTensor, init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        x = DTensor.from_local(torch.randn(5, DIM), init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match=r"DTensor, a part on each rank: .* use x.to_local\(\)"):
            CASES["vq"].build()(x)
    finally:
        torch.distributed.destroy_process_group()


@typical_cases
def test_any_strides_any_leaf_and_none_at_all(case: Case) -> None:
    """Not contiguous, expanded, a leaf, a parameter; on meta the shapes alone."""
    reference = initialized(case).eval()
    x = case.example()
    for y in (x.mT.contiguous().mT, x[:1].expand(x.shape), x.clone().requires_grad_(), torch.nn.Parameter(x)):
        output, plain = reference(y), reference(y.detach().clone(memory_format=torch.contiguous_format))
        assert torch.equal(output.indices, plain.indices) and torch.equal(output.quantized, plain.quantized)
    with torch.device("meta"):
        quantizer = case.build().eval()
    output, shapes = quantizer(x.to("meta")), reference(x)
    assert output.indices.shape == shapes.indices.shape == quantizer.encode(x.to("meta")).shape
    assert output.quantized.shape == quantizer.decode(output.indices).shape == x.shape


@typical_cases
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, pytest.param(torch.float8_e4m3fn, marks=pytest.mark.slow)], ids=str
)
def test_extremes_of_a_dtype_stay_finite(case: Case, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)
    for training in (True, False):
        for size in (limits.max, limits.tiny, limits.smallest_normal * limits.eps):
            quantizer = initialized(case).train(training)
            x = (case.example().sign() * size).to(dtype).requires_grad_()
            output = quantizer(x)
            (output.quantized.float().mean() + output.loss).backward()
            quantizer.step()
            assert output.quantized.dtype == dtype and output.quantized.float().isfinite().all()
            assert x.grad.float().isfinite().all()
            assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def total(quantizer: BaseQuantizer, x: Tensor) -> Tensor:
    output = quantizer(x)
    return output.quantized.square().mean() + output.loss


@typical_cases
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch 2.11 uses it itself
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no vmap of attention on a CPU: it loops
def test_transforms_of_torch_func(case: Case) -> None:
    """`grad` to vectors and parameters is that of autograd, bit for bit, and `vmap` is a loop."""
    quantizer, x = initialized(case).eval(), case.example().requires_grad_()
    parameters = dict(quantizer.named_parameters())
    expected = torch.autograd.grad(total(quantizer, x), [x, *parameters.values()], materialize_grads=True)

    def of(vectors: Tensor, values: dict[str, Tensor]) -> Tensor:
        output = torch.func.functional_call(quantizer, values, (vectors,))
        return output.quantized.square().mean() + output.loss

    found, to_parameters = torch.func.grad(of, argnums=(0, 1))(x.detach(), parameters)
    for mine, theirs in zip([found, *to_parameters.values()], expected, strict=True):
        assert torch.equal(mine, theirs)

    batch = torch.stack([case.example(seed=seed) for seed in range(3)])
    indices = torch.vmap(quantizer.encode)(batch)
    assert torch.equal(indices, torch.stack([quantizer.encode(entry) for entry in batch]))
    decoded = torch.vmap(quantizer.decode)(indices)
    torch.testing.assert_close(decoded, torch.stack([quantizer.decode(entry) for entry in indices]))
    slope = torch.func.grad(lambda vectors: total(quantizer, vectors))
    torch.testing.assert_close(torch.vmap(slope)(batch), torch.stack([slope(entry) for entry in batch]))

    quantizer.train()
    with pytest.raises(RuntimeError, match=r"under a transform of torch.func .* call .eval\(\)"):
        slope(batch[0])


def test_second_derivatives_are_refused_under_torch_func() -> None:
    quantizer = Quantizer("ibq", dim=4, codebook_size=8).eval()
    slope = torch.func.grad(lambda z: quantizer(z).quantized.square().sum())
    with pytest.raises(RuntimeError, match="index_backpropagation has no second derivative"):
        torch.func.grad(lambda z: slope(z).sum())(torch.randn(2, 4))
