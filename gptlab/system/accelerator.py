"""The device that computes: which one there is, and how many FLOP/s it can reach."""

from __future__ import annotations

import re
import time

import torch

from gptlab.system.errors import UserError

# Dense bf16 tensor-core peaks in FLOP/s by what torch calls the device, from the vendor's data sheets; the first
# name that stands in the device's name counts, so the longer ones come first. T4 has no bf16: its fp16 peak.
PEAK_FLOPS = {
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756e12,
    "H100": 989.4e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "4090": 165.2e12,
    "3090": 71e12,
}


def listed_peak_flops(device: torch.device) -> float | None:
    """FLOP/s that `device` can reach in half precision, from the data sheets; None where there is none of it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)  # A1000: no A100


def peak_flops(device: torch.device, precision: str, *, measured: bool = False) -> float:
    """FLOP/s that `device` can reach: from the data sheets, else measured here by a matrix product.

    Args:
        precision: fp32, bf16, fp16 or bf16_true; the data sheets' peaks are those of half precision, whatever is used.
        measured: leave the data sheets out.
    """
    if not measured and (listed := listed_peak_flops(device)) is not None:
        return listed
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    # A GPU needs a large product, or its start is all that is measured.
    return measured_peak_flops(device, dtype, size=1024 if device.type == "cpu" else 8192)


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """The best of the products of two (size, size) matrices that fit into `seconds`, in FLOP/s."""
    # No random numbers: the run's generators stay as they are. No constant either: zeros run faster on some GPUs.
    a = torch.linspace(-1, 1, size * size, device=device).view(size, size).to(dtype)

    def product() -> float:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # .item() waits for the device
        return time.perf_counter() - start

    product()
    end = time.perf_counter() + seconds
    best = product()
    while time.perf_counter() < end:
        best = min(best, product())
    return 2 * size**3 / best


def device(name: str) -> torch.device:
    """The device that --device names; for "auto", the best one here.

    Raises:
        UserError: there is none of that name.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device {name}: there is none here; use --device cpu")
    return torch.device(name)


def device_name(kind: str) -> str:
    """The name of the first device of a kind: a GPU's as torch has it, else the kind."""
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def fast_bf16(kind: str) -> bool:
    """Whether this machine's device of a kind multiplies bf16 faster than fp32."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
