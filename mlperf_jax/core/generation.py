"""Data that the model makes itself (self-play, rollouts): played in parts, sealed, then trained on.

    generated/000002/x.npy …                         all records of a generation, in the games' order
    generated/000002.parts/0003/00000064-00000128/   while it is made: of part 3 the games that a process played
    generated/000002.parts/0003.part/                a part that is not sealed yet

`Benchmark.generate` plays one device's share of the games of a part, which `shard_map` deals out. A game
has a key of its own, from (seed, generation, game), so records depend on neither devices nor parts. Each
folder is written beside its final name and renamed when it is whole: a kill loses one part. The data
position is (generation, step in it).

Shape legend: G games of one device's share, or of a process's · N records.
"""

from __future__ import annotations

import bisect
import functools
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from mlperf_jax.core import feed, mesh as meshes, processes, state as states, step as steps
from mlperf_jax.core.benchmark import Batch, Bucket, Games, Generated
from mlperf_jax.core.protocols import Batches, Split
from mlperf_jax.core.standing import Ended
from mlperf_jax.core.state import State
from mlperf_jax.errors import UserError
from mlperf_jax.ops.shard import ROWS
from mlperf_jax.results import durable

if TYPE_CHECKING:
    from mlperf_jax.core.run import Run

Records = dict[str, np.ndarray]


# -- the program -----------------------------------------------------------------------------------


def compile_generate(assembly: states.Assembly) -> jax.stages.Compiled:
    """The compiled `(view, generation, part, key, prompts) -> (records [games, most, …], lengths)`.

    Each device plays its share of the games. Weights that are split over an axis of the mesh keep that
    axis to the compiler, which gathers them where they are used; all other axes take part in nothing.
    """
    benchmark, mesh, count = assembly.benchmark, assembly.mesh, assembly.benchmark.parts().games
    rows = meshes.batch_sharding(mesh)
    specs = [leaf.sharding.spec for leaf in jax.tree.leaves(assembly.abstract_view)]
    taken = {axis for spec in specs for entry in spec for axis in meshes.axes_of(entry)}
    free = set(mesh.axis_names) - taken
    split = PartitionSpec(tuple(axis for axis in ROWS if axis in free) or None)
    whole = PartitionSpec()

    def share(
        view: State, generation: jax.Array, key: jax.Array, numbers: jax.Array, prompts: Batch
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)
        games = Games(keys, numbers, generation, prompts)
        assert benchmark.generate is not None
        return _checked(benchmark.generate(assembly.eval_model(view), games), len(numbers))

    if free:
        share = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(whole, whole, whole, split, split),
            out_specs=split,
            axis_names=free,
            check_vma=False,  # a game's loop varies over the mesh, its carry's type need not say
        )

    def generate(
        view: State, generation: jax.Array, part: jax.Array, key: jax.Array, prompts: Batch
    ):
        numbers = part * count + jnp.arange(count, dtype=jnp.int32)
        numbers = jax.lax.with_sharding_constraint(numbers, rows)
        return share(view, generation, key, numbers, prompts)

    key = states.abstract_key()
    prompts = steps.abstract_batch(Bucket(count, benchmark.prompt()), rows)
    jitted = jax.jit(generate, out_shardings=rows)
    return assembly.compile(jitted, assembly.abstract_view, np.int32(0), np.int32(0), key, prompts)


def _checked(made: Generated, games: int) -> tuple[dict[str, jax.Array], jax.Array]:
    """Records [G, most, …] and lengths [G] of what a benchmark returned."""
    if not isinstance(made, tuple):  # one record a game
        one = jnp.ones(games, jnp.int32)
        made = {name: jnp.asarray(array)[:, None] for name, array in made.items()}, one
    records, lengths = made
    wanted = (games, *(next(iter(records.values())).shape[1:2] if records else ()))
    for name, array in {**records, "lengths": lengths}.items():
        if array.shape[:2] != (wanted if name in records else (games,)):
            raise UserError(
                f"generate gives {name!r} of shape {list(array.shape)} for {games} games: records are "
                "[games, most, …], alike in most, and lengths [games]"
            )
        if np.dtype(array.dtype).kind == "V":
            raise UserError(
                f"generate gives {name!r} as {array.dtype}: records need a type of NumPy's"
            )
    if not records:
        raise UserError("generate gives no records")
    return dict(records), lengths


# -- the generations of a run ----------------------------------------------------------------------


class Generator:
    """The generations of one run; which steps trained on them, its standing knows (`generation_ends`)."""

    def __init__(self, run: Run, program: jax.stages.Compiled) -> None:
        self._run, self._program, self._parts = run, program, run.benchmark.parts()
        self._folder = pathlib.Path(run.folder.path) / "generated"
        self._data: Split | None = None
        self._prompts: Batches | None = None
        if run.benchmark.prompt():
            data = run.benchmark.data().train(run.data_dir)
            share = functools.partial(meshes.process_rows, run.assembly.mesh)
            self._prompts = prompts = data.batched(self._parts.games, seed=run.seed, share=share)
            prompts.ready()

    @property
    def first_step(self) -> int:
        """The step at which the current generation was made."""
        return [0, 0, *self._run.standing.generation_ends][-2]

    @property
    def last_step(self) -> int:
        """The step at which the next generation is due."""
        return [0, *self._run.standing.generation_ends][-1]

    def run_generation(self, state: State, before_part: Callable[[], Ended | None]) -> Ended | None:
        """Makes the next generation's records from these weights, unless they are sealed already.

        Args:
            state: the training state.
            before_part: called before each part is played; the generation is left when it says that the run
                has ended, which is then returned.
        """
        standing, self._data = self._run.standing, None
        number = len(standing.generation_ends)
        # one view of the folder: some would generate, which takes all devices, and others not
        if not processes.from_primary(self._sealed(number).is_dir):
            view = self._run.assembly.eval_view(state)
            for part in processes.from_primary(lambda: self._missing(number)):
                if ended := before_part():
                    return ended
                self._play(view, number, part)
            processes.from_primary(lambda: self._merge(number))
        rows = self._run.benchmark.rows
        found = self._examples(number).steps_per_epoch(rows)
        if found < 1:
            raise UserError(
                f"generation {number} has fewer records than one batch of {rows}: lower the batch size or "
                "generate more"
            )
        standing.generation_ends.append(standing.step + found)
        return None

    def data(self) -> Split:
        """The examples of the current generation."""
        return self._examples(len(self._run.standing.generation_ends) - 1)

    def _examples(self, number: int) -> Split:
        if self._data is None:
            records = [read_records(self._sealed(n)) for n in range(number + 1)]
            self._data = self._run.benchmark.generated_data(records)
        assert self._data is not None
        return self._data

    # -- one part --------------------------------------------------------------------------------

    def _play(self, view: State, number: int, part: int) -> None:
        """Plays a part on all devices, and seals its records."""
        beside = self._part(number, part).with_suffix(".part")
        processes.from_primary(lambda: shutil.rmtree(beside, ignore_errors=True))
        key = jax.random.fold_in(states.stream(self._run.seed, "generation"), number)
        prompts: Batch = {}
        if self._prompts is not None:
            batch = self._prompts[number * self._parts.count + part]
            mesh = self._run.assembly.mesh
            bucket = Bucket(self._parts.games, self._run.benchmark.prompt())
            feed.fitting(batch, [feed.Form.of(bucket, mesh, padded=False)])
            prompts = feed.place(batch, bucket.rows, meshes.batch_sharding(mesh))
        made = self._program(view, np.int32(number), np.int32(part), key, prompts)
        for first, end, shares in own_records(*made):
            write_records(beside / f"{first:08d}-{end:08d}", shares)
        processes.wait_for_all("part")
        processes.from_primary(lambda: self._seal(number, part))

    def _seal(self, number: int, part: int) -> None:
        final, games = self._part(number, part), self._parts.games
        played = final.with_suffix(".part")
        pieces = [read_records(piece) for piece in _pieces(played, games)]
        if self._run.benchmark.reward is None:
            _rename(played, final)
            return
        rewarded = final.with_suffix(".rewarded")
        shutil.rmtree(rewarded, ignore_errors=True)
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        made = self._run.benchmark.reward(joined)
        records = {name: np.asarray(rows) for name, rows in made.items()}
        if len({len(r) for r in records.values()}) != 1 or any(
            r.dtype.hasobject for r in records.values()
        ):
            raise UserError(
                "reward must return arrays of numbers, a row per record, not "
                + ", ".join(f"{name!r} {r.dtype}{list(r.shape)}" for name, r in records.items())
            )
        write_records(rewarded / f"{0:08d}-{games:08d}", [records])
        _rename(rewarded, final)
        shutil.rmtree(played, ignore_errors=True)

    def _merge(self, number: int) -> None:
        """Makes the sealed parts one generation."""
        final, count, games = self._sealed(number), self._parts.count, self._parts.games
        parts, beside = self._part(number, 0).parent, final.with_suffix(".part")
        shutil.rmtree(beside, ignore_errors=True)
        folders = [f for part in range(count) for f in _pieces(self._part(number, part), games)]
        pieces = [read_records(folder) for folder in folders]
        write_records(beside, pieces)
        _rename(beside, final)
        shutil.rmtree(parts, ignore_errors=True)
        rows = sum(len(next(iter(piece.values()))) for piece in pieces)
        say = self._run.progress.say
        say(f"generation {number}: {rows:,} records of {count * games:,} games")

    # -- folders ---------------------------------------------------------------------------------

    def _sealed(self, number: int) -> pathlib.Path:
        return self._folder / f"{number:06d}"

    def _part(self, number: int, part: int) -> pathlib.Path:
        return self._folder / f"{number:06d}.parts" / f"{part:04d}"

    def _missing(self, number: int) -> list[int]:
        parts = range(self._parts.count)
        return [part for part in parts if not self._part(number, part).is_dir()]


def done(ends: Sequence[int], step: int) -> float:
    """How many generations, each with its last step, are trained on after a step; the current one in part."""
    whole = bisect.bisect_right(ends, step)
    first = ends[whole - 1] if whole else 0
    part = (step - first) / (ends[whole] - first) if whole < len(ends) else 0
    return whole + part if part else whole


def own_records(
    records: Mapping[str, jax.Array], lengths: jax.Array
) -> list[tuple[int, int, list[Records]]]:
    """The real records of the games that this process's devices played.

    Args:
        records: arrays [games, most, …].
        lengths: [games], how many records of each game are real.

    Returns:
        For each run of games the first, the one after the last, and their records [N, …] in the games'
        order, by device. Of devices that played the same games one counts.
    """
    arrays = {name: _shards(array) for name, array in records.items()}
    found: list[tuple[int, int, list[Records]]] = []
    for place, counts in enumerate(_shards(lengths)):  # fetched one by one: padding takes memory
        shares = {name: np.asarray(shards[place].data) for name, shards in arrays.items()}
        real, most = np.asarray(counts.data), next(iter(shares.values())).shape[1]
        if not np.all((real >= 0) & (real <= most)):
            raise UserError(
                f"generate gives {most} records of a game and says {real.max()} are real"
            )
        mask = np.arange(most) < real[:, None]
        own = {name: share[mask] for name, share in shares.items()}
        first = counts.index[0].start or 0
        before = found.pop() if found and found[-1][1] == first else (first, first, [])
        found.append((before[0], first + len(real), [*before[2], own]))
    return found


def _shards(array: jax.Array) -> list[jax.Shard]:
    own = [shard for shard in array.addressable_shards if shard.replica_id == 0]
    return sorted(own, key=lambda shard: shard.index[0].start or 0)


# -- files -----------------------------------------------------------------------------------------


def write_records(folder: pathlib.Path, pieces: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Makes a folder of a `.npy` file per array, the pieces' rows one after another, durable on return.

    Raises:
        UserError: the disk is full, the folder may not be written, or the pieces are not of one kind.
    """
    kinds = [{name: (a.dtype, a.shape[1:]) for name, a in piece.items()} for piece in pieces]
    for kind in kinds:
        if kind != kinds[0]:
            raise UserError(
                f"one part of a generation has records of {kinds[0]} and another of {kind}"
            )
    try:
        folder.mkdir(parents=True)
        for name, first in pieces[0].items():
            shape = (sum(len(piece[name]) for piece in pieces), *first.shape[1:])
            descr = np.lib.format.dtype_to_descr(first.dtype)
            header = {"descr": descr, "fortran_order": False, "shape": shape}
            with open(folder / f"{name}.npy", "wb") as file:
                np.lib.format.write_array_header_1_0(file, header)
                for piece in pieces:
                    file.write(np.ascontiguousarray(piece[name]).data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise durable.cannot_write(folder, error) from error
    durable.sync_folder(folder)


def read_records(folder: pathlib.Path) -> Records:
    """The arrays of a sealed generation, or of a piece of one, memory-mapped.

    Raises:
        UserError: when the folder is missing or one of its files is damaged.
    """
    try:
        found = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob("*.npy"))
        }
    except (OSError, ValueError) as error:
        raise UserError(
            f"generated records in {folder} cannot be read ({error}): move the run away and start anew"
        ) from error
    if not found:
        raise UserError(
            f"{folder} holds no generated records: every process must see the output folder, and its "
            "generated/ must be kept until the run has ended"
        )
    return found


def _pieces(folder: pathlib.Path, games: int) -> list[pathlib.Path]:
    """The pieces of a part, in the games' order."""
    found, end = sorted(folder.iterdir()), 0
    for piece in found:
        first, after = map(int, piece.name.split("-"))
        if first != end:
            break
        end = after
    if end != games:
        raise UserError(
            f"{folder} lacks records of game {end}: every process must see the output folder, and its "
            "generated/ must be kept until the run has ended"
        )
    return found


def _rename(beside: pathlib.Path, final: pathlib.Path) -> None:
    durable.sync_folder(beside)
    try:
        beside.rename(final)
    except OSError as error:
        raise durable.cannot_write(final, error) from error
    durable.sync_folder(final.parent)
