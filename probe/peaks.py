"""How fast devices are at best, by their makers' data sheets: dense matrix products, without sparsity."""

from __future__ import annotations

import torch

_TERA = 1e12

_PEAKS: tuple[tuple[str, float, float, float], ...] = (
    # part of the name that the driver gives, half precision, TF32, single precision; 10^12 a second
    ("B200", 2250, 1125, 75),
    ("H200", 989, 494, 67),
    ("H100 PCIe", 756, 378, 51),
    ("H100 NVL", 835, 417, 60),
    ("H100", 989, 494, 67),
    ("A100", 312, 156, 19.5),
    ("L40S", 362, 183, 91.6),
    ("L4", 121, 60, 30.3),
    ("A10G", 70, 35, 31.5),
    ("A10", 125, 62.5, 31.2),
    ("T4", 65, 8.1, 8.1),
    ("V100-PCIE", 112, 14, 14),
    ("V100", 125, 15.7, 15.7),
    ("MI300X", 1307, 654, 163),
)
"""NVIDIA's data sheets of each product ("Tensor Core" figures, halved where they are given with sparsity), AMD's of the
Instinct MI300X ("peak matrix" figures). The first entry whose words are all in the name counts."""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Floating-point operations per second at best, or None where that is not known: of processors it never is."""
    if device.type != "cuda":
        return None
    tf32 = torch.backends.cuda.matmul.allow_tf32
    return peak_of(torch.cuda.get_device_name(device), dtype, tf32=tf32)


def peak_of(name: str, dtype: torch.dtype, *, tf32: bool) -> float | None:
    """The same by the device's name.

    Args:
        name: as the driver gives it, e.g. ``"NVIDIA H100 80GB HBM3"``.
        dtype: of the operands.
        tf32: whether single precision may be computed as TF32.
    """
    words = name.replace("-", " ").split()
    known = next((row for row in _PEAKS if all(part in words for part in row[0].replace("-", " ").split())), None)
    if known is None or "MIG" in words:  # of an instance, a part of it
        return None
    _, half, tensor_float, single = known
    if dtype is torch.float16 or (dtype is torch.bfloat16 and tensor_float > single):  # TF32 and bfloat16 came together
        return half * _TERA
    if dtype is torch.float32:
        return (tensor_float if tf32 else single) * _TERA
    return None
