"""The table of docs/plan.md: full-size benchmarks on TPUs, and predictions beside published rates.

python -m mlperf_jax.planning.table            # every benchmark fits somewhere
python -m mlperf_jax.planning.table published  # predicted beside published
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from mlperf_jax import benchmarks
from mlperf_jax.planning.planner import plan
from mlperf_jax.planning.report import Plan, gib


@dataclass(frozen=True)
class Case:
    """A configuration that must fit.

    Attributes:
        benchmark, on, batch_size: as `plan` takes them.
        mesh: the same; None lets the planner choose.
    """

    benchmark: str
    on: str
    batch_size: int
    mesh: str | None = None

    @property
    def command(self) -> str:
        """What plans it from a shell."""
        mesh = f" --mesh {self.mesh}" if self.mesh else ""
        return (
            f"mlperf-jax plan {self.benchmark} --on {self.on} --batch-size {self.batch_size}{mesh}"
        )


# A batch size of the reference convergence points each, so that nothing but the devices is new.
CASES = (
    Case("resnet", "v5p:2x2x2", 3264),
    Case("resnet", "v5e:4x4", 3264),
    Case("resnet", "v6e:16x16", 65_536),
    Case("retinanet", "v5p:4x4x4", 256),
    Case("unet3d", "v5p:2x2x2", 56),
    Case("dlrm_dcnv2", "v5p:2x2x4", 65_536, "data=16"),
    Case("dlrm_dcnv2", "v6e:8x8", 65_536, "data=64"),
    Case("llama31_8b", "v5p:2x2x4", 16),
    Case("llama31_8b", "v6e:4x8", 32),
    Case("gpt3", "v5p:8x8x16", 2048, "fsdp=128,tensor=8"),
    Case("llama31_405b", "v5p:8x16x16", 1152),
    Case("llama2_70b_lora", "v5p:2x2x4", 8),
)


@dataclass(frozen=True)
class Published:
    """A measured rate to compare a prediction with.

    Attributes:
        case: what is planned.
        rate: samples a second and chip.
        source: who measured it, and how their program differs from ours.
    """

    case: Case
    rate: float
    source: str


PUBLISHED = (
    Published(
        Case("llama31_8b", "v6e:4x8", 96),
        7207 / 8192,
        "MaxText, 7,207 tokens/s/chip, bf16; it keeps more activations by offloading them",
    ),
    Published(
        Case("gpt3", "v6e:16x16", 768, "fsdp=256"),
        357.6 / 2048,
        "Google's recipe, 256 chips, 3 sequences a chip, bf16, full remat: 357.6 tokens/s/chip",
    ),
    Published(
        Case("gpt3", "v5p:8x8x16", 2048, "fsdp=128,tensor=8"),
        344 / 2048,
        "MLPerf logs, 344 to 364 tokens/s/chip with evaluation inside; 8-bit products",
    ),
    Published(
        Case("llama31_405b", "v5p:8x16x16", 1152),
        125 / 8192,
        "MaxText, 125 tokens/s/chip, bf16, fsdp only",
    ),
    Published(
        Case("resnet", "v4:4x4x4", 4096),
        44 * 1_281_167 / (4.30 * 60 * 64),
        "MLPerf v1.0, 4.30 minutes on 64 chips for 44 epochs, evaluation included",
    ),
)


def rows() -> Iterator[str]:
    """The table of what fits, line by line, in Markdown."""
    yield (
        "| benchmark | devices | batch | mesh | parameters | optimizer | temporaries | all | of | "
        "evaluation | processor seconds | verdict |"
    )
    yield "| --- " * 12 + "|"
    for case in cases():
        yield row(case, _planned(case))


def cases() -> tuple[Case, ...]:
    """Those of the benchmarks that this version has."""
    return tuple(case for case in CASES if case.benchmark in benchmarks.names())


def row(case: Case, made: Plan) -> str:
    """One line of it; sizes in GiB of one device, processor seconds of all the compiling."""
    train = next(p for p in made.programs if p.name == "train")
    evaluation = next(p for p in made.programs if p.name == "evaluation")
    seconds = sum(program.cpu_seconds for program in made.programs)
    cells = [
        case.benchmark,
        case.on,
        f"{case.batch_size:,}",
        made.mesh_text,
        *(gib(made.state[part]) for part in ("parameters", "optimizer")),
        _size(train.temporaries),
        _size(train.total),
        gib(made.room),
        _size(evaluation.total),
        f"{seconds:.0f}",
        made.outcome,
    ]
    return f"| {' | '.join(cells)} |"


def published_rows() -> Iterator[str]:
    """Predicted beside published, in Markdown."""
    yield "| benchmark | devices | batch | predicted | published | ratio | within 25 % | what was measured |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in PUBLISHED:
        case, made = entry.case, _planned(entry.case)
        if made.time is None:
            yield f"| {case.benchmark} | {case.on} | {case.batch_size:,} | {made.outcome} | | | | |"
            continue
        predicted = made.time.samples_per_second / made.chips
        ratio = predicted / entry.rate
        close = "yes" if 0.75 <= ratio <= 1.25 else "no"
        yield (
            f"| {case.benchmark} | {case.on} | {case.batch_size:,} | {predicted:.3g} | {entry.rate:.3g} | "
            f"{ratio:.2f} | {close} | {entry.source} |"
        )


def _planned(case: Case) -> Plan:
    return plan(case.benchmark, on=case.on, mesh=case.mesh, batch_size=case.batch_size)


def _size(value: int | None) -> str:
    return "" if value is None else gib(value)


if __name__ == "__main__":
    lines = published_rows() if "published" in sys.argv[1:] else rows()
    for line in lines:
        print(line, flush=True)
