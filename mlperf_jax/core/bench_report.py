"""What a measurement of speed says: as a table, in a notebook, and as JSON."""

from __future__ import annotations

import dataclasses
import html
from dataclasses import dataclass
from typing import Any

from mlperf_jax.core.profiling import Operation
from mlperf_jax.results import durable

SHOWN = 5  # operations of a profile in the table; JSON has all
NOTICE = "Speed only: nothing was trained to a target, so this is not a benchmark result."


@dataclass(frozen=True, kw_only=True, repr=False)
class BenchReport:
    """What `bench` measured. Fields that do not belong to the kind of input are None.

    Attributes:
        config: every field of the benchmark.
        changed: those that are not as the recipe has them, but for the type of the computation.
        parameters: trained weights, those of tables among them.
        mesh: mesh axes larger than 1.
        examples_per_second: of the window, training.
        step_seconds: of the window, mean; the percentiles are of the steps that were waited for.
        flops_per_second_per_device: model FLOP/s (no recomputation) at the window's rate.
        mfu: of the device's dense peak, in [0, 1]; None where no peak is known.
        mfu_text: the same with its denominator.
        input_wait_share: of the window, in [0, 1], spent waiting for a batch.
        input_examples_per_second, input_bytes_per_second: of the pipeline alone, onto the devices.
        memory_bytes: most used on one device; `memory_source` "allocator" or "compiler".
        evaluation_examples_per_second: forward only, on synthetic input.
        compile_cached: all programs came from the compile cache, so the seconds are for loading.
        profile: folder of the trace.
        operations: of the trace, what took most of the device's time, see `core/profiling.py`.
        commit: of the checkout the package lies in.
    """

    benchmark: str
    tiny: bool
    config: dict[str, Any]
    batch_size: int
    evaluation_batch_size: int
    mesh: dict[str, int]
    dtype: str
    device: str
    device_count: int
    input: str
    steps: int
    warmup: int
    examples_per_second: float | None = None
    step_seconds: float | None = None
    step_seconds_p10: float | None = None
    step_seconds_median: float | None = None
    step_seconds_p90: float | None = None
    flops_per_second_per_device: float | None = None
    mfu: float | None = None
    mfu_text: str | None = None
    input_wait_share: float | None = None
    input_examples_per_second: float | None = None
    input_bytes_per_second: float | None = None
    memory_bytes: int | None = None
    memory_source: str | None = None
    evaluation_examples_per_second: float | None = None
    compile_seconds_train: float | None = None
    compile_seconds_evaluation: float | None = None
    compile_cached: bool | None = None
    profile: str | None = None
    operations: list[Operation] | None = None
    parameters: int | None = None
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)
    versions: dict[str, str]
    date: str
    commit: str | None

    def to_dict(self) -> dict[str, Any]:
        """Every field as plain JSON values."""
        return durable.plain(dataclasses.asdict(self), "the report")

    def rows(self) -> dict[str, str]:
        """The table: what, and how much."""
        rows = {"configuration": self._what()}
        if self.examples_per_second is not None:
            rows |= self._training_rows()
        if self.compile_seconds_train is not None:
            rows["compile"] = self._compiling()
        if self.input_examples_per_second is not None:
            megabytes = (self.input_bytes_per_second or 0) / 1e6
            rows["input alone"] = (
                f"{figure(self.input_examples_per_second)} examples/s, {figure(megabytes)} MB/s, "
                f"over {self.steps} batches"
            )
        if self.profile:
            rows["profile"] = f"{self.profile} (xprof --logdir {self.profile})"
        if self.operations:
            rows["most time"] = ", ".join(map(str, self.operations[:SHOWN]))
        rows["versions"] = ", ".join(
            f"{name} {self.versions[name]}"
            for name in ("python", "jax", "flax")
            if name in self.versions
        )
        rows["measured"] = self.date + (f", commit {self.commit}" if self.commit else "")
        return rows

    def _what(self) -> str:
        mesh = ",".join(f"{axis}={size}" for axis, size in self.mesh.items()) or "data=1"
        return (
            f"{self.benchmark}{' (tiny)' if self.tiny else ''}, batch {self.batch_size}, {self.dtype}, "
            f"{self.device_count} x {self.device} ({mesh}), {self.input} input"
        )

    def _training_rows(self) -> dict[str, str]:
        assert self.examples_per_second is not None
        assert self.step_seconds is not None
        each = (self.step_seconds_median, self.step_seconds_p10, self.step_seconds_p90)
        median, p10, p90 = (figure(1e3 * (seconds or 0)) for seconds in each)
        rows = {
            "training": f"{figure(self.examples_per_second)} examples/s",
            "step": f"{figure(1e3 * self.step_seconds)} ms, mean of {self.steps} end to end",
            "step alone": f"{median} ms median, {p10} p10, {p90} p90, each of {self.steps} waited for",
            "waiting for input": f"{100 * (self.input_wait_share or 0):.1f} % of the time",
        }
        if self.flops_per_second_per_device is not None:
            rows["model FLOP/s"] = f"{_flops(self.flops_per_second_per_device)} per device"
            rows["MFU"] = self.mfu_text or (
                f"no percentage: the peak of {self.device!r} in {self.dtype} is not known"
            )
        if self.memory_bytes is not None:
            source = (
                "most so far" if self.memory_source == "allocator" else "by the compiler's account"
            )
            rows["memory"] = f"{figure(self.memory_bytes / 2**20)} MiB per device, {source}"
        if self.evaluation_examples_per_second is not None:
            rows["evaluation"] = (
                f"{figure(self.evaluation_examples_per_second)} examples/s, forward only, "
                f"batch {self.evaluation_batch_size}, synthetic input"
            )
        return rows

    def _compiling(self) -> str:
        told = f"{self.compile_seconds_train:.1f} s train"
        if self.compile_seconds_evaluation is not None:
            told += f", {self.compile_seconds_evaluation:.1f} s evaluation"
        return told + (", from the compile cache" if self.compile_cached else "")

    def __str__(self) -> str:
        rows = self.rows()
        width = max(map(len, rows))
        return "\n".join([*(f"{name:{width}}  {text}" for name, text in rows.items()), NOTICE])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
            for name, text in self.rows().items()
        )
        return f"<table>{cells}</table><small>{html.escape(NOTICE)}</small>"


def figure(value: float) -> str:
    """Four significant digits, thousands separated: "7,950", "12.35", "0.001235"."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _flops(value: float) -> str:
    scale, unit = (1e12, "TFLOP/s") if value >= 1e11 else (1e9, "GFLOP/s")
    return f"{figure(value / scale)} {unit}"
