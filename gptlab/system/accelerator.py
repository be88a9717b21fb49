"""The device that computes: which one is available, and how many FLOP/s it can reach."""

from __future__ import annotations

import re
import time

import torch

from gptlab.system.errors import UserError

# Dense bf16 tensor-core peaks in FLOP/s from the vendors' data sheets, by a word in torch's name of the device;
# the first match counts, so longer names come first. T4 has no bf16: this is its fp16 peak.
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
    """Return the FLOP/s of `device` in half precision by its data sheet; None if it is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if re.search(rf"\b{key}\b", name)), None)  # A1000 is not A100


def peak_flops(device: torch.device, precision: str, *, measured: bool = False) -> float:
    """Return the FLOP/s that `device` can reach: from its data sheet, else measured by a matrix product.

    Args:
        precision: fp32, bf16, fp16 or bf16_true; data sheets give the peak in half precision, whatever is used.
        measured: ignore the data sheets.
    """
    if not measured and (listed := listed_peak_flops(device)) is not None:
        return listed
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    # A GPU needs a large product, or only the launch would be measured.
    return measured_peak_flops(device, dtype, size=1024 if device.type == "cpu" else 8192)


def measured_peak_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.15) -> float:
    """Multiply two (size, size) matrices for `seconds`, and return the FLOP/s of the fastest product."""
    # No random numbers, to leave the run's generators alone; no constant, since zeros run faster on some GPUs.
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
    """Return the device that --device names; for "auto", the best one available.

    Raises:
        UserError: the device is not available.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
    if not available[name]:
        raise UserError(f"--device {name}: there is none here; use --device cpu")
    return torch.device(name)


def device_name(kind: str) -> str:
    """Return the name of the first device of a kind: torch's name of a GPU, else the kind."""
    return torch.cuda.get_device_name() if kind == "cuda" else kind


def fast_bf16(kind: str) -> bool:
    """Return whether this machine's device of a kind multiplies bf16 faster than fp32."""
    if kind == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
