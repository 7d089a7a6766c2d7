"""The arrays of a checkpoint: Orbax writes and reads them, as a nest of dicts, on any mesh.

Only this file knows Orbax's array handlers. What is added to them: leaves without values, paths of
any container, PRNG keys (files hold their words, `meta.json` says of which generator they are), and the
comparison of a checkpoint's leaves with those that a run wants.
"""

import asyncio
import errno
import functools
import logging
import math
import os
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import future, type_handlers

from mlperf_jax.core.checkpoints.checksums import MASK, Key, flatten
from mlperf_jax.core.checkpoints.folder import Meta, is_storage_error
from mlperf_jax.core.state import State
from mlperf_jax.errors import UserError


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns Orbax's writer and reader of trees of arrays, as we use it.

    Whole shards are written, from their first replica, out of plain host memory: the host copies that
    the checksums run over. Compression would save 8 % of f32 weights and take 1.52 times as long.
    """
    _hide_aftermath()
    whole_shards = type_handlers.ArrayHandler(
        use_replica_parallel=False, enable_write_sharding_file=False
    )
    return ocp.PyTreeCheckpointHandler(
        use_ocdbt=True,
        use_compression=False,
        enable_pinned_host_transfer=False,
        type_handler_registry=type_handlers.create_type_handler_registry((jax.Array, whole_shards)),
    )


def start_writing(
    handler: ocp.PyTreeCheckpointHandler, path: epath.Path, leaves: dict[Key, jax.Array]
) -> list[future.Future]:
    """Starts to write this process's shards; returns Orbax's futures once host copies are taken.

    Not to be called on a thread that runs an event loop, as a notebook's main thread does.
    """
    path.mkdir(parents=True, exist_ok=True)
    tree = _nested({key: leaf for key, leaf in leaves.items() if leaf.size})
    if not tree:
        return []
    return list(asyncio.run(handler.async_save(path, args=ocp.args.PyTreeSave(tree))) or [])


def finish(handler: ocp.PyTreeCheckpointHandler, path: epath.Path) -> None:
    """Joins the processes' parts, all of them written, into one index.

    Raises:
        OSError: files that were written are there no more.
    """
    if not any(path.glob("ocdbt.process_*")):  # Orbax would only warn
        raise _gone(path.parent)
    try:
        handler.finalize(path)
    except ValueError as error:
        if is_storage_error(error):
            raise
        raise _gone(path) from None  # it looks for what somebody has removed


def _gone(path: epath.Path) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))


def read(
    handler: ocp.PyTreeCheckpointHandler,
    path: epath.Path,
    placed: dict[Key, Any],
    partial: bool,
) -> dict[Key, jax.Array]:
    """Returns the leaves, each on the sharding that its abstract value has.

    Raises:
        Exception: whatever Orbax and TensorStore make of files that are damaged or gone.
    """
    # Orbax refuses arrays without values; nothing was saved of them.
    empty = {
        key: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding)
        for key, leaf in placed.items()
        if not math.prod(leaf.shape)
    }
    full = {key: leaf for key, leaf in placed.items() if key not in empty}
    if not full:
        return empty
    arguments = {
        key: ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)
        for key, leaf in full.items()
    }
    request = ocp.args.PyTreeRestore(
        item=_nested(full), restore_args=_nested(arguments), partial_restore=partial
    )
    return empty | flatten(handler.restore(path, args=request))


def array_leaves(state: State) -> dict[Key, jax.Array]:
    """Returns the leaves of a state by path."""
    leaves = flatten(state)
    if len({"/".join(key) for key in leaves}) < len(leaves):
        raise ValueError("two leaves of the state have one path: a key holds a '/'")
    for key, leaf in leaves.items():
        if not isinstance(leaf, jax.Array):
            raise TypeError(f"{'/'.join(key)} is {type(leaf).__name__}: a state holds arrays")
    return leaves


def abstract_leaves(tree: State) -> dict[Key, jax.ShapeDtypeStruct]:
    """Returns shape, dtype and sharding of each leaf; the first device where it names none."""
    leaves = {}
    for key, leaf in flatten(tree).items():
        sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        sharding.shard_shape(leaf.shape)
        leaves[key] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    return leaves


def described(leaf: jax.Array | jax.ShapeDtypeStruct) -> Meta:
    """Returns dtype and shape of a leaf's words as `meta.json` holds them, and a PRNG key's generator."""
    held = abstract_words(leaf)
    found = {"dtype": str(held.dtype), "shape": [int(n) for n in held.shape]}
    return {**found, "key": _generator(leaf)} if _is_key(leaf) else found


def words(leaf: jax.Array) -> jax.Array:
    """Returns what files hold of a leaf: the words of a PRNG key, any other as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def abstract_words(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of what files hold of a leaf."""
    held = jax.eval_shape(words, leaf) if _is_key(leaf) else leaf
    return jax.ShapeDtypeStruct(held.shape, held.dtype, sharding=leaf.sharding)


def from_words(held: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """Returns the leaf that these words, as they were read, are wanted as."""
    if not _is_key(leaf):
        return held
    wrap = functools.partial(jax.random.wrap_key_data, impl=_generator(leaf))
    return jax.jit(wrap, out_shardings=leaf.sharding)(held)


def _is_key(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _generator(key: jax.Array | jax.ShapeDtypeStruct) -> str:
    found = []
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)  # takes no abstract one
    return str(found[0])


def check_leaves(path: epath.Path, saved: Meta, wanted: dict[Key, Any], partial: bool) -> None:
    """Raises UserError, with the paths at fault, unless the saved leaves are the wanted ones."""
    ours = {"/".join(key): described(leaf) for key, leaf in wanted.items()}
    missing = sorted(ours.keys() - saved.keys())
    unexpected = [] if partial else sorted(saved.keys() - ours.keys())
    faults = []
    for fault, names in (("lacks", missing), ("has besides", unexpected)):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            faults.append(f"{fault} {', '.join(names[:5])}{more}")
    for name in sorted(ours.keys() & saved.keys()):
        one, other = (_text(v[name]) for v in (saved, ours))
        if one != other:
            faults.append(f"has {name} as {one}, not {other}")
    if faults:
        raise UserError(
            f"the checkpoint {path} does not fit this run's state: it {'; it '.join(faults[:5])}; "
            "resume with the model, optimizer and precision that it was saved with"
        )


def _text(leaf: Meta) -> str:
    text = f"{leaf['dtype']}{leaf['shape']}"
    return f"a {leaf['key']} key of {text}" if "key" in leaf else text


def summed_over_processes(sums: list[int]) -> list[int]:
    """Returns each checksum added up over the processes."""
    if jax.process_count() == 1:
        return sums
    # As halves: without jax_enable_x64 a 64-bit integer would lose its upper half on the way.
    halves = np.array([(value >> 32, value & 0xFFFFFFFF) for value in sums], np.uint32)
    gathered = np.asarray(multihost_utils.process_allgather(halves)).reshape(-1, len(sums), 2)
    totals = gathered.astype(object).sum(axis=0)
    return [((int(high) << 32) + int(low)) & MASK for high, low in totals]


def _nested(leaves: dict[Key, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, leaf in leaves.items():
        parent = tree
        for component in key[:-1]:
            parent = parent.setdefault(component, {})
        parent[key[-1]] = leaf
    return tree


class _Told(logging.Filter):
    """Drops errors of the storage, TensorStore's and the system's, from the logs of Orbax and asyncio."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        tensorstore = isinstance(error, ValueError) and re.match("[A-Z_]+: ", str(error))
        return not (tensorstore or isinstance(error, OSError))


@functools.cache
def _hide_aftermath() -> None:
    """Keeps the tracebacks that follow a failed write or read, one per shard, off the terminal.

    We raise one sentence about the failure. Orbax logs it too, and abandons the other reads and
    writes: they find their event loop closed and say so where no caller can catch it.
    """
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).addFilter(_Told())
    previous = sys.unraisablehook

    def hook(event):
        code = getattr(event.object, "cr_code", None)
        abandoned = code is not None and "orbax" in code.co_filename
        if not abandoned and str(event.exc_value) != "Event loop is closed":
            previous(event)

    sys.unraisablehook = hook
