"""Where a benchmark is laid when nobody says: the mesh and what is recomputed, from the devices' memory and links.

Estimates of a few lines, made for ranking: they rest on what the TPU compiler's own account of the decoders at full
size showed to count (`mlperf-jax plan` compiles, and gives the figures themselves). Weights gathered over `fsdp`
hide behind products, activations passed around over `tensor` do not, nor do the sums of gradients.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from mlperf_jax.core import mesh as meshes, peaks, state as states
from mlperf_jax.core.benchmark import Benchmark
from mlperf_jax.errors import UserError
from mlperf_jax.ops.shard import ROWS

AUTO = "auto"  # what `remat` says to be decided here
REMATS = (None, "dots_no_batch", "attention", "full")  # from the least work to the smallest memory
REPLICATED = 0.2  # a state that takes no more of the memory than this is kept whole on each device
MOST_SPLIT = 16  # a layer's work split further has too little left to do
_FILL = 0.85  # of the memory that an estimate may take
_CLOSE = 1.05  # estimates of time that differ by less say nothing: then the smaller memory wins
_TILE = 8  # parts of an array along its last but one axis are whole sublanes, or all that is gathered is padded
_PASSED = 11  # times that activations go around over `tensor` in a layer, as compiled: gathered six times, summed five
_PRODUCTS = 0.85  # of the peak
# Everything that a layer computes over what its products give, where nothing is recomputed.
_ALL_KEPT = 3.2


@dataclass(frozen=True)
class Place:
    """Equal devices.

    Attributes:
        kind: the `device_kind` that `core.peaks` has its figures under.
        count: of them.
        slices: into how many TPU slices, or nodes of GPUs, they are divided.
    """

    kind: str
    count: int
    slices: int = 1

    @property
    def memory(self) -> float:
        """Bytes of one device that a program may use."""
        return (peaks.PEAKS[self.kind].memory or 0) * 2**30

    def rate(self, group: int) -> float:
        """Bytes a second at which so many devices pass arrays around."""
        peak = peaks.PEAKS[self.kind]
        if group > self.count // self.slices:
            return (peak.network or 1) * 1e9
        axes = 1 if group <= 16 else 2  # of the network of a TPU, each with links both ways
        return (peak.link or 1) * 1e9 * (2 * axes if "TPU" in self.kind else 1)


class Layers(NamedTuple):
    """A stack of transformer layers, as far as its place depends on it.

    Attributes:
        layers: of them.
        tokens: of a row.
        width: of what goes from layer to layer.
        heads: parts into which a layer can be split over `tensor`.
        parameters: of a layer.
        table: values of embedding and head together.
        products: values a token that the products of a layer give.
        attended: values a token that attention gives.
    """

    layers: int
    tokens: int
    width: int
    heads: int
    parameters: int
    table: int
    products: int
    attended: int

    def kept(self, remat: str | None) -> float:
        """Values a token and layer that are kept beside the layer's input."""
        dots = self.products + self.attended
        return {
            "full": 0,
            "attention": self.attended,
            "dots_no_batch": dots,
            None: _ALL_KEPT * dots,
        }[remat]


@runtime_checkable
class Layered(Protocol):
    """A benchmark that says what its layers are."""

    def layered(self) -> Layers: ...


def here() -> Place | None:
    """The devices at hand; None where nothing is known of their memory."""
    devices = meshes.available()
    kind = devices[0].device_kind
    if kind not in peaks.PEAKS or peaks.PEAKS[kind].memory is None:
        return None
    apart = "slice_index" if devices[0].platform == "tpu" else "process_index"
    return Place(kind, len(devices), len({getattr(device, apart, 0) for device in devices}))


def settle(
    benchmark: Benchmark, mesh: str | None, optimizer: Any = None
) -> tuple[Benchmark, str | None]:
    """The benchmark with `remat="auto"` decided, and the mesh, for the devices at hand.

    Where nothing is known of them, or the benchmark says nothing of its layers, the mesh stays as it is.

    Args:
        benchmark: of a run, its dtype decided.
        mesh: as a run takes it; None where nobody said.
        optimizer: as `states.assemble` takes it.
    """
    place = here()
    if place is None or not isinstance(benchmark, Layered):
        return with_remat(benchmark, None, {}), mesh
    if mesh is None:
        sizes = mesh_for(benchmark, place, optimizer)
        mesh = ",".join(f"{axis}={n}" for axis, n in sizes.items())
    return with_remat(benchmark, place, meshes.parse_mesh(mesh), optimizer), mesh


# -- the mesh --------------------------------------------------------------------------------------


def mesh_for(benchmark: Benchmark, place: Place, optimizer: Any = None) -> dict[str, int]:
    """Axis sizes for a run whose mesh nobody chose.

    Rows go over as many devices as divide the batches, over `data` alone while a device can hold the whole state,
    else over `fsdp`; what devices are left go to `tensor`. Of a benchmark that says what its layers are, and whose
    state is too large, all ways to share the devices are compared by what they pass around.

    Raises:
        UserError: devices would be left without rows, and the model has nothing to split instead.
    """
    ways, state = row_ways(benchmark, place.count), state_size(benchmark, optimizer)
    small = state <= REPLICATED * place.memory
    if not small and isinstance(benchmark, Layered):
        best = _best(benchmark, benchmark.layered(), place, ways, state)
        if best:
            return best
    rest = place.count // ways
    if rest > 1 and not splits(benchmark, "tensor"):
        raise UserError(
            f"batch size {benchmark.batch_size} goes over {ways:,} of the {place.count:,} devices: choose a "
            f"multiple of {place.count:,} or fewer devices"
        )
    return {"data" if small else "fsdp": ways} | ({"tensor": rest} if rest > 1 else {})


def row_ways(benchmark: Benchmark, devices: int) -> int:
    """Over how many of so many devices rows can go: what divides them and every batch."""
    micro = [bucket.rows // benchmark.gradient_accumulation_steps for bucket in benchmark.buckets()]
    return math.gcd(devices, *micro, *(bucket.rows for bucket in benchmark.eval_buckets()))


def splits(benchmark: Benchmark, axis: str) -> bool:
    """Whether the benchmark's sharding rules know an axis."""
    return any(axis in str(spec) for _, spec in benchmark.rules)


def state_size(benchmark: Benchmark, optimizer: Any = None) -> int:
    """Bytes of the whole state."""
    one = meshes.make_mesh("data=1")
    abstract = states.assemble(benchmark, one, optimizer).abstract
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))


def _best(
    benchmark: Benchmark, shape: Layers, place: Place, ways: int, state: int
) -> dict[str, int] | None:
    """The fastest by estimate, of those about as fast the leanest; None if there is none that fits."""
    peak = peaks.PEAKS[place.kind].flops("bfloat16") or 1
    found = []
    for sizes in _candidates(shape, place, ways):
        size = memory(benchmark, shape, sizes, "full", state)
        if size <= _FILL * place.memory:
            found.append((_seconds(benchmark, shape, place, sizes, peak), size, sizes))
    if not found:
        return None
    least = min(seconds for seconds, _, _ in found)
    _, _, sizes = min((row for row in found if row[0] <= _CLOSE * least), key=lambda row: row[1])
    return {axis: n for axis, n in sizes.items() if n > 1} or {"fsdp": 1}


def _candidates(shape: Layers, place: Place, ways: int) -> Iterator[dict[str, int]]:
    powers = [1 << power for power in range(MOST_SPLIT.bit_length())]
    for rows in (n for n in range(1, ways + 1) if ways % n == 0):
        if place.count % rows or shape.width % (_TILE * rows):
            continue
        for tensor, context in itertools.product(powers, powers):
            if tensor * context != place.count // rows or tensor * context > MOST_SPLIT:
                continue
            if shape.heads % tensor or shape.tokens % context:
                continue
            for data in {1, place.slices if rows % place.slices == 0 else 1}:
                yield {"data": data, "fsdp": rows // data, "tensor": tensor, "context": context}


def _seconds(
    benchmark: Benchmark, shape: Layers, place: Place, sizes: Mapping[str, int], peak: float
) -> float:
    """Of a layer in one micro-batch: products, forward, again and backward, and what does not hide behind them."""
    tensor, context, fsdp = sizes["tensor"], sizes["context"], sizes["fsdp"]
    tokens = _tokens(benchmark, shape, sizes)
    products = 8 * shape.parameters / tensor * tokens / (_PRODUCTS * peak)
    around = 2 * tokens * shape.width * (tensor - 1) / tensor
    weights = 2 * shape.parameters / tensor
    gathered = 3 * weights / place.rate(fsdp) if fsdp > 1 else 0
    # what is not split over an axis is summed over it and handed back
    summed = sizes["data"] * context
    gradients = (2 if summed > 1 else 1) * weights / place.rate(fsdp * summed)
    return (
        products
        + max(0, gathered - products)
        + gradients
        + (_PASSED * around / place.rate(tensor) if tensor > 1 else 0)
    )


# -- what is kept ----------------------------------------------------------------------------------


def with_remat(
    benchmark: Benchmark, place: Place | None, sizes: Mapping[str, int], optimizer: Any = None
) -> Benchmark:
    """The benchmark with `remat="auto"` decided: the policy of least work whose estimate leaves room.

    Args:
        benchmark: which need not have that field.
        place: None where nothing is known of the devices: layers keep their input only.
        sizes: of the mesh's axes.
        optimizer: as `states.assemble` takes it.
    """
    if getattr(benchmark, "remat", None) != AUTO:
        return benchmark
    if place is None or not isinstance(benchmark, Layered):
        return benchmark.replace(remat="full")
    shape, state = benchmark.layered(), state_size(benchmark, optimizer)
    for remat in REMATS[:-1]:
        if memory(benchmark, shape, sizes, remat, state) <= _FILL * place.memory:
            return benchmark.replace(remat=remat)
    return benchmark.replace(remat="full")


def memory(
    benchmark: Benchmark, shape: Layers, sizes: Mapping[str, int], remat: str | None, state: int
) -> float:
    """Bytes of one device that a train step takes, by estimate.

    The state and gradients; what layers keep; a layer's weights, twice, with their gradients; embedding and head
    gathered, with theirs; and a layer's activations in the backward pass.
    """
    tensor = sizes.get("tensor", 1)
    shards = sizes.get("fsdp", 1) * tensor
    tokens = _tokens(benchmark, shape, sizes)
    trained = min(benchmark.parameters, shape.layers * shape.parameters + shape.table)
    return (
        (state + 4 * trained) / shards
        + 2 * tokens * shape.layers * (shape.width + shape.kept(remat)) / tensor
        + 8 * shape.parameters / tensor
        + 6 * shape.table / tensor
        + 6 * tokens * shape.products / tensor
    )


def _tokens(benchmark: Benchmark, shape: Layers, sizes: Mapping[str, int]) -> float:
    """Of one micro-batch on one device, where they are not split over `tensor`."""
    rows = max(bucket.rows for bucket in benchmark.buckets())
    ways = math.prod(sizes.get(axis, 1) for axis in (*ROWS, "context"))
    return rows * shape.tokens / benchmark.gradient_accumulation_steps / ways
