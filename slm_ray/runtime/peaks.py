"""What a graphics processor could do at most, and which part of it a run used."""

from __future__ import annotations

import re

# Peak dense matrix-multiplication FLOP/s by tensor type, from NVIDIA's data sheets (RTX 3090 and 4090: the GA102 and
# AD102 white papers). Dense: half of the figures "with sparsity". "fp32" is without tensor cores, "tf32" with them;
# fp16 and bf16 sum in fp32. The names are those of torch.cuda.get_device_name without the maker's words in front,
# matched whole: a laptop's or a cut-up (MIG) device of a like name is another one.
_H100_SXM = {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}
_PEAKS: dict[str, dict[str, float]] = {
    r"A100(-SXM4|-PCIE| )-?\d+GB( PCIe)?": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    r"H100 80GB HBM3": _H100_SXM,
    r"H100 PCIe": {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12},
    r"H200": _H100_SXM,
    r"A10G": {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 35e12},
    r"L40S": {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
    r"L4": {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
    r"T4": {"fp16": 65e12, "fp32": 8.1e12},
    r"V100-PCIE-\d+GB": {"fp16": 112e12, "fp32": 14e12},
    r"V100-SXM2-\d+GB": {"fp16": 125e12, "fp32": 15.7e12},
    r"RTX 4090": {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
    r"RTX 3090": {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12},
}
_MAKERS_WORDS = re.compile(r"^(NVIDIA |Tesla |GeForce )+")


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak dense matrix-multiplication FLOP/s of a device.

    Args:
        device_name: As ``torch.cuda.get_device_name`` gives it.
        dtype: ``bf16``, ``fp16``, ``tf32`` or ``fp32``.

    Returns:
        FLOP/s, or None where the device or its speed in that type is not known.
    """
    name = _MAKERS_WORDS.sub("", device_name)
    return next((peaks.get(dtype) for pattern, peaks in _PEAKS.items() if re.fullmatch(pattern, name)), None)


def model_flops_utilization(
    flops: float, seconds: float, device_name: str, dtype: str, num_devices: int
) -> float | None:
    """MFU (PaLM, arXiv 2204.02311, appendix B): a run's own FLOPs over what its devices could have done in that time.

    Args:
        flops: The model's own training FLOPs, without what activation checkpointing computes again.
        seconds: Wall time they took.
        device_name: As ``torch.cuda.get_device_name`` gives it.
        dtype: Of the matrix multiplications; see :func:`peak_flops`.
        num_devices: How many devices shared the work.

    Returns:
        Between 0 and 1, or None where the peak is not known.
    """
    peak = peak_flops(device_name, dtype)
    return flops / (seconds * peak * num_devices) if peak and seconds > 0 else None
