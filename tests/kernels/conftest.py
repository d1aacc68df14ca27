"""Which path a search takes: the tests of results run on each that is there."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.kernels.stand_ins import interpreted, without
from vqkit.kernels import engines, gpu, native
from vqkit.kernels.torch_search import search


@pytest.fixture
def torch_path() -> Iterator[None]:
    """The search in plain torch, with the tiles that it ships."""
    with without(native):
        yield


@pytest.fixture
def small_tiles(torch_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The search in plain torch, with several tiles in both directions."""
    for name, value in {"TILE_CODES": search.GROUP, "TILE_SCORES": 1, "FEWEST_ROWS": 70}.items():
        monkeypatch.setattr(search, name, value)


@pytest.fixture(params=["torch", "native"])
def path(request: pytest.FixtureRequest) -> str:
    """Each path in turn, by name; the compiled one where it was built."""
    if request.param == "torch":
        request.getfixturevalue("small_tiles")
    elif native.variant() is None:
        pytest.skip("the compiled search was not built")
    return request.param


@pytest.fixture(params=["torch", "native"])
def shipped_path(request: pytest.FixtureRequest) -> None:
    """As `path`, with the tiles that the torch path ships."""
    if request.param == "torch":
        request.getfixturevalue("torch_path")
    elif native.variant() is None:
        pytest.skip("the compiled search was not built")


@pytest.fixture
def gpu_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device on which tensors go through the fused kernels: a GPU where there is one, else Triton's interpreter."""
    if torch.cuda.is_available():
        monkeypatch.setenv(engines.SWITCH, "1")
        yield torch.device("cuda")
        return
    with interpreted():
        yield torch.device("cpu")


@pytest.fixture
def several_parts(gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """As `gpu_path`; what a program streams is split into parts at the sizes of tests, as on a GPU it is anyway."""
    if gpu_path.type == "cpu":
        monkeypatch.setattr(gpu, "multiprocessors", lambda device: 4)
    return gpu_path


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that were started."""
    names: list[str] = []
    launch = gpu.launch

    def recorded(kernel: Any, *arguments: object, **options: object) -> None:
        names.append(kernel.fn.__name__)
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(gpu, "launch", recorded)
    return names
