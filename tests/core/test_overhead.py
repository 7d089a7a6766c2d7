"""The hot path adds no host synchronisation: device-to-host reads are counted, and waits are watched.

`jax.transfer_guard` does not see reads on CPU, where they are no transfers; so the array type itself is
patched. On eight devices even NumPy must go through it: the buffer protocol, which cannot be patched,
works for arrays on one device only.
"""

import contextlib
import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from mlperf_jax.core import loop as loops, preflight
from mlperf_jax.core.options import RunOptions
from mlperf_jax.core.preemption import Preemption
from mlperf_jax.core.run import Run

LOG_EVERY = 10
ARRAY = type(jnp.zeros(()))

# every way Python has to an array's values, in jax 0.10 and 0.12; the last three are what the others use
READS = (
    "__array__", "__bool__", "__complex__", "__dlpack__", "__float__", "__format__", "__hex__",
    "__index__", "__int__", "__iter__", "__oct__", "__reduce__", "__repr__", "__str__",
    "addressable_data", "addressable_shards", "copy_to_host_async", "item", "tobytes", "tolist",
    "_value", "_arrays", "_single_device_array_to_np_array_did_copy",
)  # fmt: skip
ESSENTIAL = {"__array__", "__float__", "__bool__", "item", "_value", "copy_to_host_async"}


@dataclasses.dataclass
class Synchronisations:
    """What happened in this thread: reads as `(step, how)`, and waited-for arrays as `(step, id)`."""

    step: int = 0
    reads: list = dataclasses.field(default_factory=list)
    waits: list = dataclasses.field(default_factory=list)
    inside: bool = False

    def watched(self, note, call):
        """`call`, noting it unless it is part of one that was noted already."""
        thread = threading.get_ident()

        def wrapper(*args, **kwargs):
            if self.inside or threading.get_ident() != thread:
                return call(*args, **kwargs)
            note(*args)
            self.inside = True
            try:
                return call(*args, **kwargs)
            finally:
                self.inside = False

        return wrapper

    def read(self, how):
        return lambda *_: self.reads.append((self.step, how))

    def wait(self, tree, *_):
        self.waits.extend((self.step, id(leaf)) for leaf in jax.tree.leaves(tree))


@contextlib.contextmanager
def counting():
    """Patches the array type, `jax.device_get` and `jax.block_until_ready` for the block."""
    found = Synchronisations()
    missing = ESSENTIAL - set(dir(ARRAY))
    assert not missing, f"this jax reads arrays by other ways than {missing}: extend READS"
    with pytest.MonkeyPatch.context() as patch:
        for name in READS:
            if name not in vars(ARRAY):
                continue
            old = vars(ARRAY)[name]
            if isinstance(old, property):
                new = property(found.watched(found.read(name), old.fget))
            else:
                new = found.watched(found.read(name), getattr(ARRAY, name))
            patch.setattr(ARRAY, name, new)
        patch.setattr(jax, "device_get", found.watched(found.read("device_get"), jax.device_get))
        wait = found.watched(found.wait, ARRAY.block_until_ready)
        patch.setattr(ARRAY, "block_until_ready", wait)
        patch.setattr(jax, "block_until_ready", found.watched(found.wait, jax.block_until_ready))
        yield found


@dataclasses.dataclass
class Harness:
    """A loop that has begun, counted, and the losses its steps gave, by id."""

    loop: loops.Loop
    found: Synchronisations
    losses: dict = dataclasses.field(default_factory=dict)
    kept: list = dataclasses.field(default_factory=list)  # so that no id is used twice

    def run(self, until, spoil=None):
        """Steps up to `until`; `spoil(metrics)` runs after each, as if the loop did it."""
        self.found.step = self.loop.standing.step

        def counted(program, *args):
            state, metrics = program(*args)
            self.found.step += 1
            self.losses[id(metrics["loss"])] = self.found.step
            self.kept.append(metrics)
            if spoil:
                with jax.transfer_guard("allow"):  # the guard is not what should catch it
                    spoil(metrics)
            return state, metrics

        programs = self.loop.programs
        watched = {k: functools.partial(counted, p) for k, p in programs.train.items()}
        self.loop.programs = dataclasses.replace(programs, train=watched)
        try:
            self.loop._steps(until)
        finally:
            self.loop.programs = programs


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A loop after `run_start`, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("overhead") / "set"
    benchmark = toys.Toy(eval_every=200, sample_limit=None).tiny()
    options = RunOptions(output=str(folder), seed=3, show="none", log_every=LOG_EVERY)
    plan = preflight.preflight(benchmark, options, "")
    with Run(plan) as run, Preemption() as preemption:
        loop = loops.Loop(run, preemption, *loops.initialise(run))
        run.begin_run()
        run.log_block_start(loop.next_eval)
        loop._batches = loop._train_batches()
        try:
            yield loop
        finally:
            loop.close()


@pytest.fixture
def harness(begun):
    begun.standing.step, begun._unread = 0, None
    with counting() as found:
        yield Harness(begun, found)


def test_the_loop_reads_the_device_only_at_log_points(harness):
    harness.run(until=45)
    # the values noted at step 10 are read at step 20, and so on: one read each
    assert harness.found.reads == [(20, "device_get"), (30, "device_get"), (40, "device_get")]
    assert harness.loop._unread[0] == 40


def test_the_loop_waits_only_for_steps_long_finished(harness):
    harness.run(until=45)
    waited = [(now, harness.losses.get(which)) for now, which in harness.found.waits]
    *inside, (end, last) = waited
    assert (end, last) == (45, None), "the block ends by waiting for the state, not for a loss"
    assert [now - step for now, step in inside] == [loops.IN_FLIGHT] * (45 - loops.IN_FLIGHT)


def test_a_boundary_reads_the_last_scalars_and_the_finite_flag(harness, monkeypatch):
    saved = []
    monkeypatch.setattr(harness.loop.run, "save", saved.append)
    harness.run(until=20)
    harness.found.reads.clear()
    harness.loop._boundary()  # neither an evaluation nor the last step: a checkpoint
    assert harness.found.reads == [(20, "device_get"), (20, "device_get")]
    assert saved == [harness.loop.state]


def test_a_block_without_a_log_point_reads_nothing(harness):
    harness.run(until=LOG_EVERY - 1)
    assert harness.found.reads == []


SPOILERS = {
    "float(loss)": lambda metrics: float(metrics["loss"]),
    "loss.item()": lambda metrics: metrics["loss"].item(),
    "loss.tolist()": lambda metrics: metrics["loss"].tolist(),
    "if bad": lambda metrics: 1 if metrics["bad_since"] else 0,
    "if loss > 1e9": lambda metrics: 1 if metrics["loss"] > 1e9 else 0,
    "int(loss)": lambda metrics: int(metrics["loss"]),
    "f'{loss}'": lambda metrics: f"{metrics['loss']}",
    "f'{loss:.3f}'": lambda metrics: f"{metrics['loss']:.3f}",
    "np.asarray(loss)": lambda metrics: np.asarray(metrics["loss"]),
    "np.isfinite(loss)": lambda metrics: np.isfinite(metrics["loss"]),
    "np.float32(loss)": lambda metrics: np.float32(metrics["loss"]),
    "device_get(metrics)": lambda metrics: jax.device_get(metrics),
    "a shard of it": lambda metrics: np.asarray(metrics["loss"].addressable_shards[0].data),
    "copy_to_host_async": lambda metrics: metrics["loss"].copy_to_host_async(),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
def test_the_counter_catches_a_read_in_every_step(harness, spoil):
    harness.run(until=5, spoil=spoil)
    steps = {step for step, _ in harness.found.reads}
    assert steps == {1, 2, 3, 4, 5}


WAITS = {
    "loss.block_until_ready()": lambda metrics: metrics["loss"].block_until_ready(),
    "block_until_ready(loss)": lambda metrics: jax.block_until_ready(metrics["loss"]),
    "block_until_ready(metrics)": lambda metrics: jax.block_until_ready(metrics),
}


@pytest.mark.parametrize("spoil", WAITS.values(), ids=WAITS)
def test_the_watch_catches_a_wait_in_every_step(harness, spoil):
    harness.run(until=5, spoil=spoil)
    young = {now for now, which in harness.found.waits if harness.losses.get(which) == now}
    assert young == {1, 2, 3, 4, 5}
