"""Host batches to global sharded arrays, ahead of the loop, in one thread."""

from __future__ import annotations

import functools
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from mlperf_jax.core import mesh as meshes
from mlperf_jax.core.benchmark import Benchmark, Bucket
from mlperf_jax.core.protocols import Batches, Split
from mlperf_jax.core.terms import Example, differences
from mlperf_jax.core.transform_argument import Transform
from mlperf_jax.errors import UserError

DEPTH = 2  # batches on the device ahead of the step that reads them


def training_batches(
    data: Split, benchmark: Benchmark, mesh: Mesh, seed: int, transforms: Sequence[Transform]
) -> Batches:
    """The batches of some training data, behind these transforms; this process reads its own rows."""
    data = data.transformed(transforms) if transforms else data
    share = functools.partial(meshes.process_rows, mesh)
    return data.batched(benchmark.rows, seed=seed, share=share)


class Feed:
    """Iterates over global batches that a thread has read and placed beforehand.

    Args:
        batches: this process's rows of each global batch, as dicts of NumPy arrays, which must not be
            written to again: a CPU device reads the same memory.
        buckets: allowed shapes; a batch that fits none is an error.
        mesh: over which rows are split.
        padded: evaluation batches, which carry a "mask" besides.

    Attributes:
        waited: seconds that `next` has waited for input so far.
    """

    def __init__(
        self,
        batches: Iterator[Mapping[str, np.ndarray]],
        buckets: Sequence[Bucket],
        mesh: Mesh,
        *,
        padded: bool = False,
    ) -> None:
        self.waited = 0.0
        self._batches = batches
        forms = [Form.of(bucket, mesh, padded) for bucket in buckets]
        sharding = meshes.batch_sharding(mesh)
        self._place = lambda batch: place(batch, fitting(batch, forms).rows, sharding)
        self._queue: queue.Queue[dict[str, jax.Array] | BaseException] = queue.Queue(maxsize=DEPTH)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def _fill(self) -> None:
        try:
            for batch in self._batches:
                if not self._put(self._place(batch)):
                    return
            self._put(StopIteration())
        except BaseException as error:  # handed to the consumer, which raises it
            self._put(error)
        finally:
            close = getattr(self._batches, "close", None)
            if close is not None:
                close()

    def _put(self, item: dict[str, jax.Array] | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Feed:
        return self

    def __next__(self) -> dict[str, jax.Array]:
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            begin = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - begin
        if isinstance(item, BaseException):
            self._queue.put(item)  # asked again, it says the same
            raise item
        return item

    def close(self) -> None:
        """Ends the thread; batches read ahead are dropped."""
        self._stop.set()
        self._thread.join(timeout=10)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class Form:
    """What a batch of one bucket looks like to this process.

    Attributes:
        rows: B of the global batch.
        read: how many of them this process reads.
        arrays: shape and dtype of one row by array.
    """

    rows: int
    read: int
    arrays: Example

    @classmethod
    def of(cls, bucket: Bucket, mesh: Mesh, padded: bool) -> Form:
        """Evaluation batches, which are `padded`, carry a "mask" whether or not the example states it.

        A benchmark whose loss must tell padding from rows (last batches that are kept, packing) states
        it as a bool scalar.
        """
        low, high = meshes.process_rows(mesh, bucket.rows)
        mask = {"mask": jax.ShapeDtypeStruct((), bool)} if padded else {}
        return cls(bucket.rows, high - low, {**mask, **bucket.example})

    def fits(self, batch: Mapping[str, np.ndarray]) -> bool:
        rows = {n: ((self.read, *row.shape), row.dtype) for n, row in self.arrays.items()}
        return rows == {name: (value.shape, value.dtype) for name, value in batch.items()}

    def differences(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """A clause for each array that is missing, one too many, or of another shape or dtype."""
        rows = {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in batch.items()}
        return [
            f"{found} for {name!r} where the benchmark says {wanted}"
            for name, found, wanted in differences(rows, self.arrays)
        ]


def fitting(batch: Mapping[str, np.ndarray], forms: Sequence[Form]) -> Form:
    """The form of this batch."""
    for form in forms:
        if form.fits(batch):
            return form
    nearest = min((form.differences(batch) for form in forms), key=len)
    if not nearest:
        rows = sorted({np.shape(value)[:1] for value in batch.values()})
        wanted = " or ".join(str(form.read) for form in forms if not form.differences(batch))
        nearest = [f"batches of {', '.join(str(n) for (n,) in rows)} rows where {wanted} are read"]
    raise UserError(f"the data gives {'; '.join(nearest)}")


def place(
    batch: Mapping[str, np.ndarray], rows: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    """Global arrays of so many rows from those of this process."""
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, np.asarray(part), (rows, *part.shape[1:])
        )
        for name, part in batch.items()
    }
