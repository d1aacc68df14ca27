"""Which engine runs a call, why, and what becomes of fused kernels that nobody has verified."""

import json
import warnings
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.stand_ins import interpreted, without
from vqkit import Search
from vqkit.kernels import (
    assignment_entropy,
    engines,
    gpu,
    native,
    nearest,
    residual_nearest,
    search_path,
    segment_stats,
)

pytest.importorskip("triton")
self_check = pytest.importorskip("vqkit.kernels.gpu.self_check")
CPU = torch.device("cpu")


@pytest.fixture
def unverified(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A stand-in for a GPU that the fused kernels have not been verified on."""
    monkeypatch.delenv(engines.SWITCH, raising=False)
    monkeypatch.setattr(gpu, "_triton_version", lambda: "9.8.7")
    monkeypatch.setattr("vqkit.kernels.gpu.self_check.ROWS", 20)  # several tiles of the interpreter
    monkeypatch.setattr("vqkit.kernels.gpu.self_check.CODES", 20)
    monkeypatch.setattr("vqkit.kernels.gpu.self_check.DEPTH", 4)
    with interpreted(verified=False):
        yield


def call_everything(impl: engines.Impl | None = None) -> None:
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    nearest(x, codes, impl=impl)
    residual_nearest(x, [codes, codes], impl=impl)
    segment_stats(x, torch.zeros(5, dtype=torch.int64), 4, impl=impl)
    assignment_entropy(x.requires_grad_(), codes, impl=impl).per_sample.sum().backward()


def test_unverified_kernels_are_not_taken_in_silence(unverified: None, launched: list[str]) -> None:
    call_everything()
    assert not launched
    path = search_path("cpu")
    assert path.name == "torch"
    assert path.reason == (
        "the fused kernels are not verified for sm_0 with Triton 9.8.7; set VQKIT_FUSED=1 to use them"
    )
    assert str(path) in repr(Search())


@pytest.mark.slow
def test_the_switch_takes_them_after_a_check(
    unverified: None, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(engines.SWITCH, "1")
    assert search_path("cpu").name == "triton sm_0" and "VQKIT_FUSED=1" in search_path("cpu").reason
    checked = len(launched)
    assert checked > 0
    call_everything()
    assert {"scan_kernel", "levels_kernel", "_chunk_sums", "row_sums_kernel", "gradient_kernel"} <= {*launched}
    launched.clear()
    nearest(torch.randn(5, 3), torch.randn(4, 3))
    assert launched.count("scan_kernel") == 1  # the check is not made again


@pytest.mark.slow
def test_impl_takes_them_after_a_check(unverified: None, launched: list[str]) -> None:
    call_everything("triton")
    assert {"scan_kernel", "levels_kernel", "_chunk_sums", "row_sums_kernel", "gradient_kernel"} <= {*launched}


@pytest.mark.parametrize(
    ("family", "module", "function", "told"),
    [
        ("nearest", "nearest", "nearest", "nearest, euclidean: 1 of 40 indices"),
        ("residual", "residual", "search_levels", "residual_nearest: 1 of 60 indices"),
        ("statistics", "statistics", "segment_sums", "segment_stats: 1 of "),
        ("soft", "soft", "assignment_entropy", "assignment_entropy: "),
        ("soft", "soft", "assignment_entropy_backward", "assignment_entropy_backward: "),
        ("soft", "soft", "index_backpropagation_backward", "index_backpropagation_backward: "),
        ("soft", "soft", "reinmax_backward", "reinmax_backward: "),
    ],
)
def test_a_wrong_result_is_told_once_and_torch_taken(
    family: str, module: str, function: str, told: str, unverified: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One number of a result is wrong: the check sees it, says what differs, and the call runs in torch."""
    from vqkit.kernels.gpu import self_check

    fused = getattr(self_check, module)
    right = getattr(fused, function)

    def wrong(*arguments):  # type: ignore[no-untyped-def]
        result = right(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        first.view(-1)[-1] += 1
        return result

    monkeypatch.setattr(fused, function, wrong)
    monkeypatch.setenv(engines.SWITCH, "1")
    x = torch.randn(5, 3)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always", UserWarning)
        choices = [engines.choose(family, (x,), None) for _ in range(2)]
    (warning,) = [str(warning.message) for warning in given if warning.category is UserWarning]
    assert "differ from the torch engine on sm_0 with Triton 9.8.7" in warning and told in warning
    choice = choices[1]
    assert choices[0].engine == "torch" and choice.engine == "torch" and told in choice.reason
    with pytest.raises(ValueError, match="impl is 'triton', which cannot run this call: the fused kernels differ"):
        engines.choose(family, (x,), "triton")


def test_an_engine_that_cannot_run_the_call_is_refused() -> None:
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="impl is 'cuda', expected 'torch', 'native', 'triton' or None"):
        nearest(x, codes, impl="cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="which cannot run this call: the fused kernels run on NVIDIA GPUs, not on"):
        nearest(x, codes, impl="triton")
    with pytest.raises(ValueError, match="impl is 'native', which cannot run this call: the compiled search"):
        nearest(x.double(), codes, impl="native")
    with pytest.raises(ValueError, match="impl is 'native', which cannot"):
        segment_stats(x, torch.zeros(5, dtype=torch.int64), 4, impl="native")


def test_what_the_fused_kernels_have_no_form_for_runs_in_torch(gpu_path: torch.device) -> None:
    x, codes = torch.randn(5, 3, device=gpu_path), torch.randn(4, 3, device=gpu_path)
    with pytest.raises(ValueError, match="the fused kernels find one code a row, not 2"):
        nearest(x, codes, k=2, impl="triton")
    with pytest.raises(ValueError, match="take float32, float16 and bfloat16, not"):
        nearest(x.double(), codes, impl="triton")
    with pytest.raises(ValueError, match="add up in float32, not"):
        segment_stats(x, torch.zeros(5, dtype=torch.int64, device=gpu_path), 4, dtype=torch.float64, impl="triton")
    with pytest.raises(ValueError, match="all levels at once take 'euclidean', 'dot'"):
        residual_nearest(x, [codes, codes], metric="cosine", impl="triton")
    assert torch.equal(nearest(x, codes, k=2).indices, nearest(x, codes, k=2, impl="torch").indices)


def test_a_cpu_takes_what_was_built() -> None:
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    if native.variants():
        assert search_path("cpu").name == f"native {native.variant()}"
        assert torch.equal(nearest(x, codes, impl="native").indices, nearest(x, codes, impl="torch").indices)
    with without(native):
        assert search_path("cpu").name == "torch" and "python -m vqkit.kernels.native" in search_path("cpu").reason


def test_the_list_of_verified_devices(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """It holds pairs; a pair of both numbers counts, one of them does not."""
    for pair in json.loads(gpu.VERIFIED.read_text()):
        assert pair["capability"] >= gpu.OLDEST and pair["triton"][0].isdigit()
    listed = tmp_path / "verified.json"
    listed.write_text(json.dumps([{"capability": 90, "triton": "3.6.0"}]))
    monkeypatch.setattr(gpu, "VERIFIED", listed)
    gpu._verified.cache_clear()
    try:
        for capability, version, verified in ((90, "3.6.0", True), (90, "3.7.0", False), (80, "3.6.0", False)):
            monkeypatch.setattr(gpu, "architecture", lambda device, capability=capability: capability)
            monkeypatch.setattr(gpu, "_triton_version", lambda version=version: version)
            assert gpu.is_verified(CPU) is verified
    finally:
        gpu._verified.cache_clear()


def test_a_check_that_fails_is_a_difference(
    unverified: None, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(device: torch.device) -> str:
        raise RuntimeError("out of resource")

    monkeypatch.setenv(engines.SWITCH, "1")
    monkeypatch.setitem(self_check.CHECKS, "nearest", fails)
    x, codes = torch.randn(5, 3), torch.randn(4, 3)
    with pytest.warns(UserWarning, match="RuntimeError: out of resource; the torch engine is taken instead"):
        found = nearest(x, codes).indices
    assert torch.equal(found, nearest(x, codes, impl="torch").indices) and not launched
