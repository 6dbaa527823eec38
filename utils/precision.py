"""In which precision a device multiplies: float32, or bfloat16 where that is faster."""

from pathlib import Path

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products are native, and so faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    return device.type == "cpu" and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def choose_dtype(device: torch.device, precision: str) -> torch.dtype:
    """`fp32`, `bf16`, or on `auto` the faster: of matrix products on this device, never of one run's clock."""
    use = precision == "bf16" or (precision == "auto" and has_fast_bfloat16(device))
    return torch.bfloat16 if use else torch.float32


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models are trained in a precision."""
    use = choose_dtype(device, precision) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16, enabled=use)
