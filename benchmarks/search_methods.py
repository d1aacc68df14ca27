"""Ways to find the nearest of K codes for each of N rows: vqkit's paths, and what they are compared with.

Each function takes x (N, D) and codes (K, D), float32, and returns a call without arguments that searches: (N,) int64
indices, or nothing for the product alone. Some find k > 1 codes of each row, too: (N, k), the nearest first. What the
function itself does is preparation, which is not measured.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from benchmarks.arguments import Shape
from benchmarks.device import torch_device
from vqkit.kernels import native, nearest
from vqkit.kernels.nearest import Precision

PEER_NAME = "vector-quantize-pytorch"
TILE_ROWS = 256  # for each thread
TILE_CODES = 1024

Call = Callable[[], Tensor | None]


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        title: as the table calls it.
        prepare: see the module's docstring.
        finds_several: whether k may be more than 1; it is the third argument of `prepare`.
        state: what exactly is measured, for the table's foot.
        bytes_per_score: of memory that grows with N x K, 0 for none.
        module: that has to be installed, None for none.
        only_on: the device that it needs, None for any.
        takes: whether it can search rows and codes of a shape on a device.
    """

    title: str
    prepare: Callable[..., Call]
    state: str
    bytes_per_score: int = 0
    module: str | None = None
    only_on: str | None = None
    takes: Callable[[Shape, str, int], bool] = lambda shape, device, k: True
    finds_several: bool = False

    def prepared(self, x: Tensor, codes: Tensor, k: int) -> Call:
        """A search for k codes of each row."""
        return self.prepare(x, codes, k) if self.finds_several else self.prepare(x, codes)

    def refusal(self, shape: Shape, device: str, free: int | None, k: int = 1) -> str | None:
        """Why it cannot be measured, None where it can; `free` is the memory that is left, in bytes."""
        here = "cuda" if device == "interpreter" else device
        if self.only_on not in (None, here):
            return f"only on {self.only_on}"
        if self.module is not None and importlib.util.find_spec(self.module) is None:
            return "not installed"
        if self.module is not None and device == "interpreter":
            return "needs a GPU"
        if not self.takes(shape, device, k):
            return "not built for these inputs"
        needed = self.bytes_per_score * shape.vectors * shape.codes
        if free is not None and needed > free:
            return f"needs {needed / 2**30:.3g} GiB, {free / 2**30:.3g} GiB are free"
        return None


def tiled_product(x: Tensor, codes: Tensor) -> Call:
    """The product alone, tile after tile into one buffer that stays in the cache: as fast as a search could be."""
    rows, columns = (TILE_ROWS * torch.get_num_threads(), TILE_CODES) if x.device.type == "cpu" else (8192, 8192)
    buffer = x.new_empty(min(rows, len(x)) * min(columns, len(codes)))
    row_tiles, code_tiles = x.split(rows), codes.T.split(columns, 1)

    def search() -> None:
        for row_tile in row_tiles:
            for code_tile in code_tiles:
                size = len(row_tile), code_tile.shape[1]
                torch.mm(row_tile, code_tile, out=buffer[: size[0] * size[1]].view(size))

    return search


def cdist_argmin(x: Tensor, codes: Tensor) -> Call:
    return lambda: torch.cdist(x, codes).argmin(1)


def addmm_argmin(x: Tensor, codes: Tensor) -> Call:
    return lambda: torch.addmm(codes.square().sum(1), x, codes.T, alpha=-2).argmin(1)


def faiss_index(x: Tensor, codes: Tensor, k: int = 1) -> Call:
    """The index holds the codes before the clock starts, and searches with as many threads as torch uses."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codes.shape[1])
    index.add(codes.numpy())
    rows = x.numpy()
    return lambda: torch.from_numpy(index.search(rows, k)[1]).squeeze(1)


def peer_codebook(x: Tensor, codes: Tensor) -> Call:
    from vector_quantize_pytorch import VectorQuantize

    codebook = VectorQuantize(codes.shape[1], len(codes)).to(codes.device).eval()._codebook
    codebook.embed.copy_(codes[None])
    return lambda: codebook(x[None])[1][0]


def flash_kmeans(x: Tensor, codes: Tensor) -> Call:
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    return lambda: euclid_assign_triton(x[None], codes[None], x[None].square().sum(-1))[0].long()


def halved_product(x: Tensor, codes: Tensor) -> Call:
    """As `tiled_product`, of bfloat16 numbers, which are there before the clock starts."""
    return tiled_product(x.bfloat16(), codes.bfloat16())


def torch_path(x: Tensor, codes: Tensor, k: int = 1) -> Call:
    return lambda: nearest(x, codes, k=k, impl="torch").indices


def native_path(x: Tensor, codes: Tensor, k: int = 1) -> Call:
    return lambda: nearest(x, codes, k=k, impl="native").indices


def fused(precision: Precision) -> Callable[[Tensor, Tensor], Call]:
    """The GPU kernels, at a precision."""
    return lambda x, codes: lambda: nearest(x, codes, precision=precision).indices


def _native_takes(shape: Shape, device: str, k: int) -> bool:
    rows, codes = (torch.empty(1, size, shape.dim, device=device) for size in (shape.vectors, shape.codes))
    return native.can_search(rows, codes, k)


YARDSTICK = "mm"
METHODS: dict[str, Method] = {
    YARDSTICK: Method(
        "mm tiled",
        tiled_product,
        f"`torch.mm` in tiles of {TILE_ROWS} rows for each thread and {TILE_CODES} codes (on CUDA 8192 x 8192)",
    ),
    "mm16": Method("mm bfloat16", halved_product, "the same of bfloat16 numbers, result in bfloat16", only_on="cuda"),
    "cdist": Method("cdist", cdist_argmin, "`torch.cdist(x, codes).argmin(1)`", 4),
    "addmm": Method("addmm", addmm_argmin, "`torch.addmm(|codes|^2, x, codes.T, alpha=-2).argmin(1)`", 4),
    "faiss": Method(
        "faiss",
        faiss_index,
        "`IndexFlatL2.search(x, k)`; the index is built before",
        finds_several=True,
        module="faiss",
        only_on="cpu",
    ),
    "vqp": Method(
        PEER_NAME,
        peer_codebook,
        "forward of the codebook of `VectorQuantize(D, K).eval()`, one-hot and look-up included",
        16,
        module="vector_quantize_pytorch",
    ),
    "flash-kmeans": Method(
        "flash-kmeans",
        flash_kmeans,
        "`euclid_assign_triton` and the norms of x that it asks for; its products are TF32",
        module="flash_kmeans",
        only_on="cuda",
    ),
    "torch": Method(
        "vqkit torch",
        torch_path,
        "`nearest(x, codes, k=k)` without the compiled library and fused kernels",
        finds_several=True,
    ),
    "native": Method(
        "vqkit native",
        native_path,
        "`nearest(x, codes, k=k)`, compiled",
        only_on="cpu",
        takes=_native_takes,
        finds_several=True,
    ),
    **{
        precision: Method(
            f"vqkit {precision}",
            fused(precision),
            f'`nearest(x, codes, precision="{precision}")`, fused',
            only_on="cuda",
        )
        for precision in get_args(Precision)
    },
}


def data(shape: Shape, device: str, seed: int) -> tuple[Tensor, Tensor]:
    """Standard normal x (N, D) and codes (K, D)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.vectors, shape.dim, generator=generator)
    codes = torch.randn(shape.codes, shape.dim, generator=generator)
    return x.to(torch_device(device)), codes.to(torch_device(device))


def float64_order(x: Tensor, codes: Tensor, k: int = 1, *, most_scores: int = 2**22) -> Tensor:
    """(N,), or (N, k): the right answer, as many rows at a time as `most_scores` float64 scores allow."""
    codes = codes.double()
    half_squares = 0.5 * codes.square().sum(1)
    chunks = x.double().split(max(1, most_scores // len(codes)))
    scores = (torch.addmm(half_squares, chunk, codes.T, alpha=-1) for chunk in chunks)
    return torch.cat([part.topk(k, largest=False).indices.squeeze(1) for part in scores])
