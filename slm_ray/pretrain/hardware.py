"""What a graphics processor could do at most, and which part of it a run used."""

from __future__ import annotations

# Peak dense matrix-multiplication FLOP/s by tensor type, from NVIDIA's data sheets and architecture white papers (A100,
# H100, H200, L4, L40S, T4, V100, A10G: data sheets; RTX 3090, 4090: GA102 and AD102 white papers). Dense: half of the
# figures "with sparsity". "fp32" is without tensor cores (no TF32); "tf32" with. fp16 and bf16 accumulate in fp32.
# The first name found in a device's name counts, so the longer ones stand first.
_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    ("H200", {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}),
    ("H100 PCIe", {"bf16": 756e12, "fp16": 756e12, "tf32": 378e12, "fp32": 51e12}),
    ("H100 80GB HBM3", {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}),
    ("H100 SXM", {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}),
    ("A100", {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12}),
    ("A10G", {"bf16": 70e12, "fp16": 70e12, "tf32": 35e12, "fp32": 35e12}),
    ("L40S", {"bf16": 362e12, "fp16": 362e12, "tf32": 183e12, "fp32": 91.6e12}),
    ("L4", {"bf16": 121e12, "fp16": 121e12, "tf32": 60e12, "fp32": 30.3e12}),
    ("T4", {"fp16": 65e12, "fp32": 8.1e12}),
    ("V100-PCIE", {"fp16": 112e12, "fp32": 14e12}),
    ("V100-SXM2", {"fp16": 125e12, "fp32": 15.7e12}),
    ("RTX 4090", {"bf16": 165.2e12, "fp16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12}),
    ("RTX 3090", {"bf16": 71e12, "fp16": 71e12, "tf32": 35.6e12, "fp32": 35.6e12}),
)


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak dense matrix-multiplication FLOP/s of a device.

    Args:
        device_name: As ``torch.cuda.get_device_name`` gives it.
        dtype: ``bf16``, ``fp16``, ``tf32`` or ``fp32``.

    Returns:
        FLOP/s, or None where the device or its speed in that type is not known.
    """
    for name, peaks in _PEAKS:
        if name in device_name:
            return peaks.get(dtype)
    return None


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
