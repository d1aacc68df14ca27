import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.backbones.activations import SignedSnake, Snake
from vqkit.saving.config import from_config, to_config


def test_signed_snake_is_the_released_equation_for_frequencies_of_both_signs() -> None:
    snake = SignedSnake(4).double()
    a = torch.tensor([[2.5], [-0.7], [1e-3], [-40.0]], dtype=torch.float64)
    snake.load_state_dict({"frequency": a})
    x = torch.randn(2, 4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x + (a + 1e-9).reciprocal() * torch.sin(a * x).pow(2)
    torch.testing.assert_close(snake(x), expected, rtol=1e-14, atol=1e-14)


def test_signed_snake_subtracts_where_snake_cannot() -> None:
    x = torch.randn(1, 1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    above, below = (SignedSnake(1, frequency=sign).double()(x) - x for sign in (1.0, -1.0))
    # 1e-9 beside 1, on either side of 0.
    torch.testing.assert_close(above, -below, rtol=0, atol=3e-9)
    torch.testing.assert_close(above + x, Snake(1).double()(x), rtol=0, atol=2e-9)


def test_signed_snake_computes_in_float32_and_is_saved() -> None:
    snake = SignedSnake(2, frequency=-20.0).bfloat16()
    x = torch.linspace(-8, 8, 64).bfloat16().expand(1, 2, -1)
    expected = SignedSnake(2, frequency=-20.0)(x.float()).bfloat16()
    assert torch.equal(snake(x), expected)
    assert from_config(to_config(snake)).frequency.tolist() == [[-20.0], [-20.0]]


@pytest.mark.parametrize(("channels", "frequency"), [(0, 1.0), (2, 0.0), (2, math.inf), (2, math.nan)])
def test_signed_snake_refuses(channels: int, frequency: float) -> None:
    with pytest.raises(ValueError, match=f"channels={channels}, frequency={frequency}: expected a positive number"):
        SignedSnake(channels, frequency=frequency)


@pytest.mark.parametrize("build", [Snake, SignedSnake])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_snake_without_gradients_is_the_same_and_overwrites_nothing_of_others(build: type, dtype: torch.dtype) -> None:
    snake = build(3, frequency=0.3).to(dtype)
    x = torch.linspace(-50, 50, 64, dtype=dtype).expand(2, 3, -1)  # its numbers share memory
    before, recorded = x.clone(), snake(x)
    with torch.no_grad():
        computed = snake(x)
    assert torch.equal(computed, recorded) and computed.dtype == dtype
    assert torch.equal(x, before)


@pytest.mark.parametrize("build", [Snake, SignedSnake])
def test_snake_without_gradients_takes_the_memory_of_one_tensor(build: type) -> None:
    snake, x = build(4), torch.zeros(1, 4, 2**16)
    with torch.no_grad(), Written() as written:
        snake(x)
    storages = {made.untyped_storage().data_ptr() for made in written.tensors if made.numel() == x.numel()}
    assert len(storages) == 1


class Written(TorchDispatchMode):
    """Keeps what every operation returned, so that no memory is taken twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        self.tensors += [made] if isinstance(made, torch.Tensor) else []
        return made
