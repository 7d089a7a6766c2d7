"""How long a compiled step takes, from what it does and what the chip can do.

An instruction that its products bind takes what the TPU compiler's own cost model says, which knows how
the operands are cut into tiles; one that its memory traffic binds takes that traffic at the share of the
bandwidth below. (Of these the cost model is several times too dark: by it ResNet-50 would take 1.8 times
what was measured on v4.) Collectives that the compiler runs beside other work are hidden as far as that
work lasts; the others are added. docs/plan.md compares the results with published measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core import peaks
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.planning import devices as names

PRODUCTS = 0.9  # of the peak FLOP/s, for products that the compiler's cost model does not see
MEMORY = 0.9  # of the peak memory bandwidth
LINKS = 0.95  # of a link's, whose rate is the usable one already
LATENCY = 1e-6  # seconds that a collective takes at least
GPU_PRODUCTS = 0.5  # of the peak that whole training steps reach on GPUs, all included
ERROR = 0.25  # of the estimate, for TPUs
GPU_ERROR = 0.5
_REMAT_PASSES = {"full": 4 / 3}  # a GPU's products: the forward pass again


@dataclass(frozen=True)
class StepTime:
    """The estimate of one train step.

    Attributes:
        seconds: of the step; `error` is the fraction by which it may well be wrong.
        products, memory, network: seconds each would take alone at the assumed shares of the peaks.
        exposed: seconds of collectives that nothing hides.
        binds: which of the three takes longest.
        samples_per_second: of all devices together.
        mfu: model FLOPs against the peak of the dtype; None without a peak.
        mfu_text: with its denominator.
        evaluation: seconds of one evaluation, or None.
        assumption: one sentence.
    """

    seconds: float
    error: float
    products: float
    memory: float
    network: float
    exposed: float
    binds: str
    samples_per_second: float
    mfu: float | None
    mfu_text: str
    evaluation: float | None
    assumption: str

    def lines(self) -> Iterator[str]:
        """For the report."""
        rate = self.samples_per_second
        yield (
            f"about {in_words(self.seconds)} (±{self.error:.0%}), {rate:,.{1 if rate < 100 else 0}f} samples/s, "
            f"{self.mfu_text or 'no peak is known'}; {self.binds} bind"
        )
        yield (
            f"alone: products {in_words(self.products)}, memory {in_words(self.memory)}, "
            f"network {in_words(self.network)}, of which nothing hides {in_words(self.exposed)}"
        )
        if self.evaluation is not None:
            yield f"an evaluation takes about {in_words(self.evaluation)}"
        yield self.assumption


def in_words(value: float) -> str:
    """Seconds in a unit that suits them.

    >>> in_words(0.0123), in_words(2.5), in_words(150), in_words(9000)
    ('12.3 ms', '2.5 s', '2.5 min', '2.5 hours')
    """
    if value >= 6000:
        return f"{value / 3600:,.1f} hours"
    if value >= 100:
        return f"{value / 60:.3g} min"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def step_time(benchmark: Benchmark, devices: names.Devices, programs: Any) -> StepTime | None:
    """The estimate, or None where a program gave nothing to estimate from."""
    train = [p for p in programs if p.name.split()[0] == "train" and p.work]
    if not train:
        return None
    peak = devices.chip.peak
    flops = peak.flops(benchmark.dtype)
    if flops is None or peak.bandwidth is None:
        return None
    parts = [_parts(p.work, devices, flops) for p in train]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}
    if not devices.tpu:
        mean = _gpu_parts(benchmark, devices, flops, mean)
    rate = samples_per_step(benchmark) / mean["seconds"]
    mfu = _mfu(benchmark, devices, rate)
    alone = {key: mean[key] for key in ("products", "memory", "network")}
    evaluation = [p for p in programs if p.name.split()[0] == "evaluation" and p.work]
    return StepTime(
        **mean,
        error=ERROR if devices.tpu else GPU_ERROR,
        binds=max(alone, key=lambda name: alone[name]),
        samples_per_second=rate,
        mfu=mfu,
        mfu_text="" if mfu is None else peaks.describe(mfu, devices.chip.kind, benchmark.dtype),
        evaluation=_evaluation(benchmark, devices, flops, evaluation) if devices.tpu else None,
        assumption=_assumption(devices),
    )


def samples_per_step(benchmark: Benchmark) -> float:
    """The mean over the first epoch."""
    steps = benchmark.epoch_steps
    return benchmark.samples(steps) / steps


def _assumption(devices: names.Devices) -> str:
    if devices.tpu:
        return (
            f"assumes the compiler's cost model of products, {MEMORY:.0%} of the peak in memory traffic, "
            f"{LINKS:.0%} on links, and input that keeps up"
        )
    return (
        f"assumes {GPU_PRODUCTS:.0%} of the peak in products and nothing else in the way: coarse, meant for "
        "decoders; what is bound by memory takes longer"
    )


def _mfu(benchmark: Benchmark, devices: names.Devices, rate: float) -> float | None:
    try:
        flops = benchmark.flops_per_sample
    except NotImplementedError:
        return None
    kind = devices.chip.kind
    return peaks.utilisation(flops, rate, kind, devices.count, benchmark.dtype)


def _evaluation(
    benchmark: Benchmark, devices: names.Devices, flops: float, programs: list[Any]
) -> float | None:
    if not programs:
        return None
    each = [_parts(p.work, devices, flops)["seconds"] for p in programs]
    samples = [bucket.rows * benchmark.eval_row_samples for bucket in benchmark.eval_buckets()]
    return math.ceil(benchmark.eval_samples * len(samples) / sum(samples)) * sum(each) / len(each)


def _parts(work: Mapping[str, Any], devices: names.Devices, flops: float) -> dict[str, float]:
    """Seconds of one call, in all and by what takes them."""
    peak = devices.chip.peak
    traffic = (peak.bandwidth or 0) * 1e9 * MEMORY
    busy = products = memory = 0.0
    for count, size, cycles, times in work["instructions"]:
        product, moved = count / (flops * PRODUCTS), size / traffic
        if product > moved and cycles and peak.clock:
            product = cycles / (peak.clock * 1e9)
        busy += max(product, moved) * times
        products, memory = products + product * times, memory + moved * times
    hidden = exposed = 0.0
    for kind, size, group, spans, asynchronous, times in work["collectives"]:
        seconds = collective_seconds(devices, kind, size, group, spans) * times
        hidden, exposed = hidden + seconds * asynchronous, exposed + seconds * (not asynchronous)
    left = max(0.0, hidden - busy)
    return {
        "seconds": busy + left + exposed,
        "products": products,
        "memory": memory,
        "network": hidden + exposed,
        "exposed": left + exposed,
    }


def _gpu_parts(
    benchmark: Benchmark, devices: names.Devices, flops: float, found: Mapping[str, float]
) -> dict[str, float]:
    """The same for GPUs, from the model's own FLOPs: the CPU's program says little about their time."""
    passes = _REMAT_PASSES.get(getattr(benchmark, "remat", None) or "", 1.0)
    total = benchmark.flops_per_sample * samples_per_step(benchmark) * passes
    products = total / (devices.count * flops * GPU_PRODUCTS)
    left = max(0.0, found["network"] - products)
    return {
        "seconds": products + left,
        "products": products,
        "memory": 0.0,
        "network": found["network"],
        "exposed": left,
    }


# -- the network -----------------------------------------------------------------------------------


def collective_seconds(
    devices: names.Devices, kind: str, size: float, group: int, spans: int
) -> float:
    """Seconds of one collective.

    Args:
        devices: where.
        kind: as the compiler calls it.
        size: bytes of the whole array: what is gathered, or was not yet scattered.
        group: devices that take part.
        spans: over how many slices or nodes they are spread.
    """
    if group <= 1 or size <= 0:
        return 0.0
    peak = devices.chip.peak
    rounds = 2 if kind == "all-reduce" else 1
    each = max(1, group // spans)  # devices of one slice
    seconds = LATENCY
    if spans > 1 and peak.network:
        # every device of a slice sends its share of what the slices exchange
        seconds += rounds * size * (spans - 1) / spans / each / (peak.network * 1e9 * LINKS)
    if each > 1 and peak.link:
        rate = peak.link * 1e9 * LINKS * _lanes(devices, kind, each)
        if kind == "collective-permute":
            return seconds + size / rate
        share = 0.25 if kind.endswith("all-to-all") else (each - 1) / each
        seconds += rounds * size * share / rate
    elif kind == "collective-permute" and spans == 1 and peak.link:
        seconds += size / (peak.link * 1e9 * LINKS)
    return seconds


def _lanes(devices: names.Devices, kind: str, group: int) -> float:
    """How many times one link's rate a group of devices of one slice has, one way."""
    if not devices.tpu:
        return 1.0  # a GPU's links are counted together
    if kind == "collective-permute":
        return 2.0  # the compiler sends around the ring both ways at once
    lanes, left = 0.0, group
    for side in sorted(devices.shape, reverse=True):
        if left <= 1:
            break
        # a ring closes along a side in 3-D from whole cubes on, in 2-D for the whole pod
        wraps = side >= 4 and side % 4 == 0 if devices.chip.dims == 3 else side >= 16
        lanes += 2.0 if wraps else 1.0
        left = math.ceil(left / side)
    return max(1.0, lanes)
