"""The table of docs/plan.md: full-size benchmarks on TPUs, and predictions beside published rates.

python scripts/plan_table.py            # every benchmark fits somewhere
python scripts/plan_table.py bert gpt3  # the rows of some
python scripts/plan_table.py published  # predicted beside published
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlperf_jax import benchmarks
from mlperf_jax.planning.planner import plan
from mlperf_jax.planning.report import Plan, gib
from mlperf_jax.planning.timing import in_words


@dataclass(frozen=True)
class Case:
    """A configuration that must fit.

    Attributes:
        benchmark, on, batch_size: as `plan` takes them.
        mesh: the same; None lets the planner choose.
        more: other fields of the benchmark.
    """

    benchmark: str
    on: str
    batch_size: int
    mesh: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)


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
    Case("bert", "v6e:2x4", 448),
    Case("bert", "v5e:2x4", 448),
    Case("bert", "v6e:8x16", 8192),
    # evaluation generates 128 pictures a chip at once
    Case("stable_diffusion", "v5p:2x2x4", 512, "data=16", {"eval_batch_size": 2048}),
    Case("stable_diffusion", "v6e:4x4", 256, "data=16", {"eval_batch_size": 2048}),
    Case("rgat", "v5p:2x2x4", 16_384, "data=16"),
    Case("rgat", "v6e:4x8", 16_384, "data=32"),
    Case("gpt3", "v5p:8x8x16", 2048),
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


# Tokens a second over tokens of a sequence where a source counts tokens. "Recipe" is the step that Google's
# tpu-recipes print for MaxText on that slice.
FULL = {"remat": "full"}
PUBLISHED = (
    Published(
        Case("llama31_8b", "v6e:4x8", 96, more=FULL),
        7031.7 / 8192,
        "recipe v6e-32, the same batch and mesh; it offloads activations instead of recomputing all",
    ),
    Published(
        Case("gpt3", "v6e:16x16", 768, "fsdp=256", FULL),
        357.58 / 2048,
        "recipe v6e-256 in bf16, the same batch, mesh and recomputation",
    ),
    Published(
        Case("llama31_405b", "v5p:8x8x8", 512, "fsdp=512", FULL),
        124.62 / 8192,
        "recipe v5p-1024 in bf16, the same mesh; two sequences a chip, activations offloaded",
    ),
    Published(
        Case("resnet", "v4:4x4x4", 4096),
        44 * 1_281_167 / (4.30 * 60 * 64),
        "MLPerf v1.0, 4.30 minutes for 44 epochs on 64 chips, evaluation included",
    ),
    Published(
        Case("gpt3", "v5p:8x8x16", 2048, "fsdp=128,tensor=8", FULL),
        344 / 2048,
        "MLPerf v4.1 logs, evaluation included; 8-bit products, which run at twice the rate of ours",
    ),
)


def rows(names: Collection[str] = ()) -> Iterator[str]:
    """The table of what fits, line by line, in Markdown; of the benchmarks of these names, or of all."""
    yield (
        "| benchmark | devices | batch | mesh | remat | parameters | optimizer | other | temporaries | all | of | "
        "evaluation | verdict | step | MFU | processor seconds |"
    )
    yield "| --- " * 16 + "|"
    for case in cases(names):
        yield row(case, _planned(case))


def cases(names: Collection[str] = ()) -> tuple[Case, ...]:
    """Those of the benchmarks of these names, by default of all that this version has."""
    return tuple(case for case in CASES if case.benchmark in (names or benchmarks.names()))


def row(case: Case, made: Plan) -> str:
    """One line of it; sizes in GiB of one device, those of the largest bucket, processor seconds of all the compiling."""
    train, evaluation = (
        max((p for p in made.programs if p.name.startswith(name)), key=lambda p: p.total or 0)
        for name in ("train", "evaluation")
    )
    seconds = sum(program.cpu_seconds for program in made.programs)
    cells = [
        case.benchmark,
        case.on,
        f"{case.batch_size:,}",
        made.mesh_text,
        made.remat or "",
        *(gib(made.state[part]) for part in ("parameters", "optimizer", "other")),
        _size(train.temporaries),
        _size(train.total),
        gib(made.room),
        _size(evaluation.total),
        made.outcome,
        *_speed(made),
        f"{seconds:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def _speed(made: Plan) -> tuple[str, str]:
    """The step's time and the share of the peak."""
    if made.time is None:
        return "", ""
    mfu = made.time.mfu
    return in_words(made.time.seconds), "" if mfu is None else f"{mfu:.0%}"


def published_rows() -> Iterator[str]:
    """Predicted beside published, samples a second and chip, in Markdown."""
    yield (
        "| benchmark | devices | batch | mesh | verdict | predicted | published | ratio | within 25 % | "
        "what was measured |"
    )
    yield "| --- " * 10 + "|"
    for entry in PUBLISHED:
        case, made = entry.case, _planned(entry.case)
        cells = [case.benchmark, case.on, f"{case.batch_size:,}", made.mesh_text, made.outcome]
        if made.time is None:
            yield f"| {' | '.join([*cells, *([''] * 4), entry.source])} |"
            continue
        predicted = made.time.samples_per_second / made.chips
        ratio = predicted / entry.rate
        close = "yes" if 0.75 <= ratio <= 1.25 else "no"
        cells += [_rate(predicted), _rate(entry.rate), f"{ratio:.2f}", close, entry.source]
        yield f"| {' | '.join(cells)} |"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _planned(case: Case) -> Plan:
    return plan(case.benchmark, on=case.on, mesh=case.mesh, batch_size=case.batch_size, **case.more)


def _size(value: int | None) -> str:
    return "" if value is None else gib(value)


if __name__ == "__main__":
    lines = published_rows() if "published" in sys.argv[1:] else rows(sys.argv[1:])
    for line in lines:
        print(line, flush=True)
