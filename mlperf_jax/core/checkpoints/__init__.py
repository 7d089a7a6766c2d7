"""Checkpoints: written beside the steps, never half, verified when read, readable on any mesh.

The loop waits for the copy to host memory only; a background thread does the rest. Process 0
completes a checkpoint when every process has written its shards, and deletes older ones only then
(folder.py says when a folder is a checkpoint, arrays.py and packed.py how arrays get there).

Orbax restores flipped bytes without a word. So each process checksums the shards it owns, in the
background, from the host copies that are being written; `meta.json` keeps the sum per leaf. Sums do
not depend on the mesh (checksums.py), so a restore onto other devices verifies too.
"""

import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import future

from mlperf_jax.core import processes
from mlperf_jax.core.checkpoints import arrays, checksums, packed
from mlperf_jax.core.checkpoints.folder import (
    Folder,
    Meta,
    Place,
    absolute,
    is_storage_error,
    reason,
    says_system_error,
    write_whole,
)
from mlperf_jax.core.state import State
from mlperf_jax.errors import UserError

FORMAT = 2  # before it Orbax wrote all leaves; such checkpoints are read as ever

_instances = itertools.count()  # barrier names must be new for each object, alike in all processes


class Checkpoints:
    """The checkpoints of one run.

    Every process calls every method at the same step, except those that only read meta data:
    `steps`, `sealed_steps`, `meta` and `latest_meta`.

        checkpoints = Checkpoints(folder, keep=2, identity={"benchmark": "toy"})
        checkpoints.save(step, state, {"log_offset": 4711})
        found = checkpoints.restore(abstract)       # None, or (state, meta)

    Args:
        folder: a local path, one that all processes share, or gs://.
        keep: how many of the newest checkpoints stay; sealed ones stay besides.
        identity: what a checkpoint must agree in to be read, as values that JSON can hold: the
            benchmark's name, its config's hash, the optimizer state's structure. None reads any, and
            saves nothing.
    """

    def __init__(self, folder: os.PathLike | str, *, keep: int = 2, identity: Meta | None):
        if keep < 1:
            raise UserError(f"keep={keep} checkpoints is not possible: keep at least 1")
        self.folder = absolute(folder)
        self.keep = keep
        self.identity: Meta | None = json.loads(json.dumps(identity))
        self.warnings: list[str] = []
        self._files = Folder(self.folder)
        self._damaged: set[Place] = set()
        self._handler = arrays.array_handler()
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._name = f"checkpoints/{next(_instances)}"
        self._numbers = itertools.count()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- writing ---------------------------------------------------------------------------------

    def save(self, step: int, state: State, meta: Meta, *, sealed: bool = False) -> None:
        """Takes a checkpoint; returns once host copies exist, and writes them in the background.

        The caller may donate the state's buffers right afterwards. The save before is waited for.
        `time_ms` (Unix milliseconds) is the time of this call, when the last weight was updated.

        Args:
            step: this run's count of batches.
            state: any tree of global `jax.Array`s; `frozen` is not part of it.
            meta: what the loop must know to go on, as values that JSON can hold.
            sealed: keep it for offline evaluation: retention never deletes it.

        Raises:
            UserError: the save before, or this one's folder, could not be written.
        """
        time_ms = time.time_ns() // 1_000_000
        leaves = arrays.array_leaves(state)
        record = self._record(int(step), leaves, meta, time_ms)
        self.wait()
        place = self._prepare(int(step))
        leaves = {key: arrays.words(leaf) for key, leaf in leaves.items()}
        for leaf in leaves.values():
            leaf.copy_to_host_async()
        blocks = {"/".join(key): checksums.owned_blocks(leaf) for key, leaf in leaves.items()}
        path = self._files.path(place) / "arrays"
        large = {key: leaf for key, leaf in leaves.items() if not packed.is_small(leaf)}
        begun = self._worker.submit(arrays.start_writing, self._handler, path, large)
        # an error is told at the next call, so that no process waits for us
        futures = [begun] if begun.exception() else begun.result()
        finish = (self._finish, place, record, blocks, futures, sealed, next(self._numbers))
        self._pending = (int(step), self._worker.submit(*finish))

    def wait(self) -> None:
        """Waits until the save under way, if any, is complete.

        Raises:
            UserError: it could not be written. Older checkpoints are as they were.
        """
        if self._pending is None:
            return
        (step, writing), self._pending = self._pending, None
        error = writing.exception()
        if error is None:
            return
        if not is_storage_error(error):
            raise error
        raise UserError(
            f"the checkpoint of step {step} could not be written to {self.folder}: "
            f"{reason(error)}; older checkpoints are unharmed; free space or mend the folder's "
            "permissions, then resume"
        ) from error

    def tidy(self) -> None:
        """Deletes what a save would have, had the disk let it: of a run that has ended, for no save follows."""
        places = [place for place in self._files.places() if place not in self._damaged]
        if places and jax.process_index() == 0:
            with contextlib.suppress(OSError):
                self._retain(max(places))

    def close(self) -> None:
        """Waits for the save under way and ends the background thread; no save after that."""
        try:
            self.wait()
        finally:
            self._worker.shutdown()

    # -- reading ---------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, in order."""
        return sorted({place.step for place in self._files.places()})

    def sealed_steps(self) -> list[int]:
        """Returns the steps of all sealed checkpoints, in order."""
        return sorted({place.step for place in self._files.places() if self._files.sealed(place)})

    def meta(self, step: int) -> Meta:
        """Returns the meta data of one checkpoint without reading its arrays.

        Raises:
            UserError: there is none of this step, or its meta data are damaged.
        """
        place = self._files.place(step)
        if place is None:
            raise self._missing(step)
        try:
            return self._files.meta(place)
        except (OSError, ValueError) as error:
            path = self._files.path(place)
            raise UserError(
                f"the checkpoint {path} is damaged ({reason(error)}): use another of its run"
            ) from error

    def latest_meta(self) -> Meta | None:
        """Returns the meta data of the newest checkpoint that has readable ones, or None."""
        for place in reversed(self._files.places()):
            try:
                return self._files.meta(place)
            except (OSError, ValueError):
                continue
        return None

    def restore(
        self, abstract: State, step: int | None = None, *, partial: bool = False
    ) -> tuple[State, Meta] | None:
        """Reads the newest checkpoint that verifies, onto the shardings of `abstract`.

        A damaged one is named on stderr and in `warnings`, and the one before it is read.

        Args:
            abstract: a tree like the saved one of `jax.ShapeDtypeStruct`s with shardings (or of
                arrays). The mesh and the number of processes may differ from the saving run's.
            step: read the checkpoint of this step, and no other.
            partial: `abstract` may lack leaves of the checkpoint (weights without optimizer).

        Returns:
            The state and its meta data; None when there is no checkpoint at all.

        Raises:
            UserError: the checkpoint is another benchmark's, config's or optimizer's; its leaves
                differ; none verifies; or there is none of this step.
        """
        self.wait()
        # what process 0 sees: a shared folder may show a new file to some a little later
        places = [Place(*each) for each in processes.from_primary(self._files.places)]
        if step is not None:
            places = [place for place in places if place.step == step][-1:]
            if not places:
                raise self._missing(step)
        problems = []
        for place in reversed(places):
            found = self._load(place, abstract, partial)
            if not isinstance(found, str):
                self._sweep()
                return found
            self._damaged.add(place)
            problems.append(f"{place}: {found}")
            self.warnings.append(f"The checkpoint {self._files.path(place)} is damaged: {found}.")
            if jax.process_index() == 0:
                print(f"Warning: {self.warnings[-1]}", file=sys.stderr)
        if not problems:
            self._check_lost()
            self._sweep()
            return None
        if step is not None:
            raise UserError(
                f"the checkpoint of step {step} in {self.folder} is damaged ({'; '.join(problems)}): use "
                "another of its run"
            )
        raise UserError(
            f"no checkpoint in {self.folder} that could be resumed from verifies "
            f"({'; '.join(problems)}): move the folder away to start anew"
        )

    def _sweep(self) -> None:
        """Sweeps what a kill left, once it is sure that this run goes on; whoever only reads changes nothing."""
        if self.identity is not None and jax.process_index() == 0:
            self._files.sweep()

    def _load(self, place: Place, abstract: State, partial: bool) -> tuple[State, Meta] | str:
        """Returns (state, meta), or what is damaged; which of the two, all processes agree on."""
        path = self._files.path(place)
        meta, damage = {}, ""
        try:
            meta = self._files.meta(place)
        except (OSError, ValueError) as error:
            damage = reason(error)
        if processes.any_of(bool(damage)):
            return damage or "another process cannot read its meta.json"
        self._check_identity(path, meta)
        wanted = arrays.abstract_leaves(abstract)
        arrays.check_leaves(path, meta["leaves"], wanted, partial)
        leaves, sums = {}, [0] * len(wanted)
        try:
            held = {key: arrays.abstract_words(leaf) for key, leaf in wanted.items()}
            leaves = self._read(path, meta, held, partial)
            sums = [
                checksums.leaf_sum(checksums.owned_blocks(leaves[key]), leaves[key].shape)
                for key in wanted
            ]
        except Exception as error:  # whatever the readers make of damaged files
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                raise  # too little memory is no damage
            damage = reason(error)
        if processes.any_of(bool(damage)):
            return damage or "another process cannot read its shards"
        for key, total in zip(wanted, arrays.summed_over_processes(sums)):
            name = "/".join(key)
            if f"{total:016x}" != meta["leaves"][name]["sum"]:
                return f"the values of {name} are not those that were saved"
        found = [arrays.from_words(leaves[key], leaf) for key, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), found), meta

    def _read(
        self, path: epath.Path, meta: Meta, wanted: dict[checksums.Key, Any], partial: bool
    ) -> dict[checksums.Key, jax.Array]:
        """The wanted leaves; raises whatever the readers make of damaged files."""
        names = {"/".join(key): key for key in wanted}
        small = {n: wanted[key] for n, key in names.items() if meta["leaves"][n].get("small")}
        large = {key: wanted[key] for n, key in names.items() if n not in small}
        leaves = arrays.read(self._handler, path / "arrays", large, partial)
        if small:
            found = packed.read(path, meta["processes"], small)
            leaves |= {names[n]: leaf for n, leaf in found.items()}
        return leaves

    # -- the background half of a save -----------------------------------------------------------

    def _record(
        self, step: int, leaves: dict[checksums.Key, jax.Array], meta: Meta, time_ms: int
    ) -> Meta:
        given = json.loads(json.dumps(meta, default=lambda value: value.item()))  # NumPy scalars
        return {
            **given,
            "format": FORMAT,
            "step": step,
            "identity": self.identity,
            "time_ms": time_ms,
            "processes": jax.process_count(),
            "versions": {"jax": jax.__version__, "orbax-checkpoint": ocp.__version__},
            "leaves": {
                "/".join(key): {**arrays.described(leaf), "small": packed.is_small(leaf)}
                for key, leaf in leaves.items()
            },
        }

    def _prepare(self, step: int) -> Place:
        """Has process 0 make the new folder; all processes agree on its name, or on its failure."""

        def make() -> Place:
            newest = self.latest_meta()
            if newest is not None:  # retention must never meet another run's checkpoints
                self._check_identity(self.folder, newest)
            try:
                return self._files.make(step)
            except OSError as error:
                raise UserError(
                    f"no checkpoint can be written to {self.folder}: {reason(error)}; free space or mend "
                    "the folder's permissions, then resume"
                ) from error

        return Place(*processes.from_primary(make))

    def _finish(
        self,
        place: Place,
        meta: Meta,
        blocks: dict[str, list[checksums.Block]],
        futures: Sequence[future.Future | concurrent.futures.Future],
        sealed: bool,
        number: int,
    ) -> None:
        """Writes this process's part to the end; process 0 makes the whole a checkpoint.

        Args:
            place, meta, sealed: of the checkpoint.
            blocks: host copies of this process's shards, by leaf.
            futures: Orbax's, of these shards.
            number: of the save within this process's life.
        """
        path, primary = self._files.path(place), jax.process_index() == 0
        errors = []
        for each in futures:  # all of them: none may still write when we clean up
            try:
                each.result()
            except Exception as problem:
                errors.append(problem)
        try:
            if not errors:
                sums = {
                    name: checksums.leaf_sum(own, meta["leaves"][name]["shape"])
                    for name, own in blocks.items()
                }
                small = {n: own for n, own in blocks.items() if meta["leaves"][n]["small"]}
                packed.write(path, jax.process_index(), small)
                write_whole(_part(path, jax.process_index()), json.dumps(sums))
        except Exception as problem:
            errors.append(problem)
        self._barrier(number, "written")
        try:
            if primary and not errors:
                self._complete(place, meta, sealed)
                with contextlib.suppress(OSError):  # what is left over, the next save deletes
                    self._retain(place)
        except Exception as problem:
            errors.append(problem)
        if primary and errors:
            self._files.delete_for_good(place)
        self._barrier(number, "completed")
        if errors:  # the system's own words before those of what stumbled over the same later
            raise min(errors, key=lambda error: not says_system_error(error))
        if not self._files.complete(place):
            raise OSError("process 0 could not complete it, and says why")

    def _complete(self, place: Place, meta: Meta, sealed: bool) -> None:
        path, totals = self._files.path(place), dict.fromkeys(meta["leaves"], 0)
        parts = [_part(path, process) for process in range(jax.process_count())]
        for process, part in enumerate(parts):
            if not part.exists():
                raise OSError(
                    f"process {process} has not written its part (all must share this folder)"
                )
            for name, value in json.loads(part.read_text()).items():
                totals[name] += value
        for name, total in totals.items():
            meta["leaves"][name]["sum"] = f"{total & checksums.MASK:016x}"
        if any(math.prod(leaf["shape"]) and not leaf["small"] for leaf in meta["leaves"].values()):
            arrays.finish(self._handler, path / "arrays")
        for part in parts:
            part.unlink()
        older = self._files.place(place.step)
        if sealed or (older is not None and self._files.sealed(older)):
            write_whole(path / "sealed", "")
        self._files.commit(place, meta)

    def _retain(self, newest: Place) -> None:
        """Deletes what is neither new nor sealed, now that `newest` is complete.

        Checkpoints of later steps belong to a future that a restore of an earlier step gave up.
        """
        places = self._files.places()
        good = [place for place in places if place not in self._damaged and place <= newest]
        latest = {place.step: place for place in good}  # of several attempts the last
        kept = set(sorted(latest.values())[-self.keep :])
        for place in places:
            superseded = latest.get(place.step, place) != place
            if place not in kept and (superseded or not self._files.sealed(place)):
                self._files.delete(place)

    def _barrier(self, number: int, phase: str) -> None:
        """Waits for all processes, through the coordination service: it takes no device."""
        processes.barrier(f"{self._name}/{number}/{phase}")

    # -- small things ----------------------------------------------------------------------------

    def _check_lost(self) -> None:
        lost = processes.from_primary(lambda: str(self._files.lost() or ""))
        if lost:
            raise UserError(
                f"{lost} is gone, without which there is no checkpoint, and no other is whole: put it back, or "
                f"move {self.folder} away to train from the start again"
            )

    def _check_identity(self, path: epath.Path, meta: Meta) -> None:
        if self.identity is None:
            return
        theirs = meta["identity"]
        for name in sorted({*theirs, *self.identity}):
            if theirs.get(name) != self.identity.get(name):
                raise UserError(
                    f"the checkpoint in {path} was saved with {name} {_short(theirs.get(name))}, "
                    f"but this run has {name} {_short(self.identity.get(name))}: resume with the "
                    "same benchmark, config and optimizer, or choose another output folder"
                )

    def _missing(self, step: int) -> UserError:
        there = ", ".join(str(s) for s in self.steps()) or "none"
        return UserError(f"{self.folder} has no checkpoint of step {step}; it has: {there}")


def _part(path: epath.Path, process: int) -> epath.Path:
    return path / f"sums_{process:05d}.json"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + " …"
