"""Which device computes, and how exactly; never another one than was asked for."""

from __future__ import annotations

import torch

from copick_cryosam.config import Device, Precision
from copick_cryosam.errors import DeviceError


def resolve_device(name: Device) -> torch.device:
    """`auto` is the GPU where there is one and the CPU elsewhere; the others are taken at their word.

    Raises
    ------
    DeviceError
        CUDA was asked for and is not available.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "no GPU is visible"
        raise DeviceError(
            f"device: expected cuda, found none ({reason})", hint="Use --device cpu, or install a CUDA build of torch"
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and available) else "cpu")


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16, without which it is emulated and slower than fp32."""
    # torch has no public way to ask; a torch without these names counts as without the instructions
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(one()) for one in asked if one is not None)


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """float32 or bfloat16; `auto` is bfloat16 on the GPUs that have it. Older ones emulate it, which is slower."""
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if precision == "bf16" or (precision == "auto" and able) else torch.float32


def fastest_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """As `compute_dtype`, but `auto` is bfloat16 on CPUs that compute with it, too, for nets that bear it."""
    if precision == "auto" and device.type == "cpu" and cpu_computes_bf16():
        return torch.bfloat16
    return compute_dtype(precision, device)


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Within it, convolutions and matrix products compute in `dtype`: bfloat16, or float32, which changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype is torch.bfloat16)
