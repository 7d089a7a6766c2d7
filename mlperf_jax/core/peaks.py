"""What devices can do at best, by the name JAX gives them: dense matrix FLOP/s, memory, links.

One table, keyed by `device.device_kind`. Sources: jax-ml/scaling-book, jax's own `tpu_info` and the
pages of Cloud TPU for TPUs (links one way, as scaling-book has them: a tenth below the advertised
rate), vendors' datasheets (halved where they count sparsity) for the rest; the memory of TPUs is what
their compiler grants a program. A kind that is not listed gets no percentage. CPUs are left out on
purpose: they all call themselves "cpu". So are T4 and V100 and older: they have no bfloat16 unit, so
what XLA computes there has no such peak.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """TFLOP/s of one JAX device by compute dtype, and what feeds it; None where it is not known.

    Attributes:
        bfloat16, float32: TFLOP/s; float32 only where the chip has a matrix unit for it. On NVIDIA
            chips that unit computes in TF32, which is what JAX uses for float32 by default.
        memory: GiB that a program may use.
        bandwidth: GB/s of that memory.
        link: GB/s one way to the neighbours: of one link of a TPU, of all NVLinks of a GPU.
        network: GB/s of a device to those beyond its slice or NVLink domain.
        clock: GHz of a TPU's matrix units: its peak over the FLOPs of one cycle.
    """

    bfloat16: float
    float32: float | None = None
    memory: float | None = None
    bandwidth: float | None = None
    link: float | None = None
    network: float | None = None
    clock: float | None = None

    def flops(self, dtype: str) -> float | None:
        """FLOP/s for a compute dtype, or None when no honest peak is known."""
        value = getattr(self, dtype, None)
        return None if value is None else value * 1e12


UNITS = {
    "bfloat16": "bf16",
    "float32": "tf32",
}  # what the matrix unit computes in, by compute dtype

PEAKS = {
    # a v2 or v3 chip is two devices, a v4 or v5p chip one, a TPU7x chip two
    "TPU v2": Peak(22.5),
    "TPU v3": Peak(61.5, None, 15.48, 450, 100, 3.1, 0.94),
    "TPU v4": Peak(275, None, 30.75, 1228, 45, 3.1, 1.05),
    "TPU v4 lite": Peak(137),
    "TPU v5 lite": Peak(197, None, 15.75, 819, 45, 3.1, 1.5),
    "TPU v5e": Peak(197, None, 15.75, 819, 45, 3.1, 1.5),
    "TPU v5": Peak(459, None, 95.74, 2765, 90, 6.25, 1.75),
    "TPU v5p": Peak(459, None, 95.74, 2765, 90, 6.25, 1.75),
    "TPU v6 lite": Peak(918, None, 31.25, 1638, 90, 12.5, 1.75),
    "TPU v6e": Peak(918, None, 31.25, 1638, 90, 12.5, 1.75),
    "TPU7x": Peak(1153.5, None, 94.75, 3690, 90, 6.25),
    "NVIDIA A100-PCIE-40GB": Peak(312, 156),
    "NVIDIA A100 80GB PCIe": Peak(312, 156),
    "NVIDIA A100-SXM4-40GB": Peak(312, 156, 39.5, 1555, 300, 25),
    "NVIDIA A100-SXM4-80GB": Peak(312, 156, 79.2, 2039, 300, 25),
    "NVIDIA H100": Peak(989, 494.5),
    "NVIDIA H100 80GB HBM3": Peak(989, 494.5, 79.6, 3350, 450, 50),
    "NVIDIA H100 PCIe": Peak(756, 378),
    "NVIDIA H200": Peak(989, 494.5, 139.8, 4800, 450, 50),
    "NVIDIA GH200 480GB": Peak(989, 494.5),
    "NVIDIA B200": Peak(2250, 1125, 178, 8000, 900, 50),
    "NVIDIA GB200": Peak(2500, 1250, 184, 8000, 900, 50),
    "NVIDIA L4": Peak(121, 60.5),
    "NVIDIA L40S": Peak(362, 183),
}


def peak_flops(device_kind: str, dtype: str) -> float | None:
    """FLOP/s of one device for this compute dtype, or None where no peak is known."""
    return PEAKS[device_kind].flops(dtype) if device_kind in PEAKS else None


def utilisation(
    flops_per_sample: float, samples_per_second: float, device_kind: str, devices: int, dtype: str
) -> float | None:
    """Model FLOPs utilisation in [0, 1], or None for a device or dtype without a known peak.

    Model FLOPs only (no recomputation), against the dense peak of the compute dtype.

    >>> round(utilisation(24.3e9, 7950, "NVIDIA H200", 1, "bfloat16"), 3)
    0.195
    """
    peak = peak_flops(device_kind, dtype)
    return None if peak is None else flops_per_sample * samples_per_second / (peak * devices)


def describe(mfu: float, device_kind: str, dtype: str) -> str:
    """A utilisation with its denominator named.

    >>> describe(0.512, "NVIDIA H200", "bfloat16")
    '51 % of bf16 989 TFLOP/s'
    """
    peak = peak_flops(device_kind, dtype)
    if peak is None:
        raise ValueError(f"no peak of {device_kind} in {dtype} is known")
    digits = 0 if mfu >= 0.1 else 1
    return f"{100 * mfu:.{digits}f} % of {UNITS[dtype]} {peak / 1e12:g} TFLOP/s"
