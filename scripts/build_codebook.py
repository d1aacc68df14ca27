"""Cluster features into a codebook file, for `FeatureCodebook` ("vqgan_lc") and `CascadedCodebook` ("cascaded").

    python scripts/build_codebook.py features.safetensors --codebook-size 16384 --out codebook.safetensors

Each input is a safetensors file with one floating-point tensor (M, base_dim), such as the patch features of a
pretrained network; several are taken together. The output holds one float32 tensor "vectors" (codebook_size, base_dim),
the k-means centres. Everything is held in memory: --samples clusters a random part of many features.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vqkit.clustering import kmeans
from vqkit.saving.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, nargs="+", help="safetensors files of one tensor (M, base_dim) each")
    parser.add_argument("--codebook-size", type=int, required=True, help="how many centres")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--iterations", type=int, default=10, help="most rounds of k-means (default: 10)")
    parser.add_argument("--samples", type=int, help="cluster so many of the features, drawn at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the k-means (default: 0)")
    arguments = parser.parse_args()
    try:
        features = joined([read(path) for path in arguments.features], arguments.features)
        features = drawn(features, arguments.samples, arguments.seed)
        check(arguments.codebook_size, len(features))
        result = kmeans(features, arguments.codebook_size, iterations=arguments.iterations, seed=arguments.seed)
        write_whole(arguments.out, save({"vectors": result.centers.contiguous()}))
    except (OSError, ValueError) as error:
        sys.exit(f"build_codebook: {error}")
    print(
        f"{arguments.out}: {len(result.centers):,} centres of {len(features):,} features of {features.shape[1]} "
        f"dimensions; a centre stands for {int(result.counts.min()):,} to {int(result.counts.max()):,} of them"
    )


def read(path: Path) -> Tensor:
    """The one tensor of a file, as float32 (M, base_dim)."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a valid safetensors file ({error})") from error
    if len(tensors) != 1:
        raise ValueError(f"{path} holds {len(tensors)} tensors {sorted(tensors)}: expected one of shape (M, base_dim)")
    (tensor,) = tensors.values()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(f"{path} holds {tensor.dtype} of shape {tuple(tensor.shape)}: expected floats (M, base_dim)")
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise ValueError(f"{path} holds NaN or infinity (in float32): drop such features")
    return tensor


def joined(tensors: list[Tensor], paths: list[Path]) -> Tensor:
    """The features of all files, which must agree in size."""
    sizes = {tensor.shape[1] for tensor in tensors}
    if len(sizes) > 1:
        held = ", ".join(f"{path}: {tensor.shape[1]}" for path, tensor in zip(paths, tensors, strict=True))
        raise ValueError(f"the files hold features of different sizes ({held}): expected one size")
    return torch.cat(tensors)


def drawn(features: Tensor, samples: int | None, seed: int) -> Tensor:
    """So many of the features, without replacement; None for all."""
    if samples is None or samples >= len(features):
        return features
    if samples < 1:
        raise ValueError(f"--samples {samples}: expected at least 1")
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:samples]]


def check(codebook_size: int, features: int) -> None:
    """Whether there is something to cluster."""
    if not 1 <= codebook_size <= features:
        raise ValueError(f"--codebook-size {codebook_size}: expected 1 to {features}, the number of features")


if __name__ == "__main__":
    main()
