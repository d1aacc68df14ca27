"""What the products of a device can be trusted with."""

import torch


def product_is_lowered(device: torch.device) -> bool:
    """Whether the user let float32 products be computed with fewer bits (`set_float32_matmul_precision` and kin)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision not in ("none", "ieee")


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, but float32 on devices that have none: there, nothing can be proven beyond float32."""
    return torch.float32 if device.type == "mps" else torch.float64
