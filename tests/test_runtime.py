"""What the host may know of values at no cost."""

import pytest
import torch

from vqkit.runtime import fits_squares


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize(
    ("worst", "fits"), [(0.0, True), (torch.nan, False), (torch.inf, False), (-torch.inf, False), ("root", False)]
)
def test_one_number_decides_whether_squares_fit(
    worst: float | str, fits: bool, contiguous: bool, dtype: torch.dtype
) -> None:
    x = torch.ones(3, 4, 5, dtype=dtype)
    x[1, 2, 3] = 1.5 * torch.finfo(dtype).max ** 0.5 if worst == "root" else worst
    x = x if contiguous else x.movedim(1, -1)
    assert x.is_contiguous() == contiguous
    assert bool(fits_squares(x)) == fits
    assert bool(fits_squares(x[:0]))
