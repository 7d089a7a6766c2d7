"""The state of a run: a plain nested dict of arrays, made already sharded.

    params   trained weights            frozen  weights outside gradient, optimizer and checkpoint
    tables   tables looked up by row    stats   running statistics of batch norm and the like
    opt      the optimizer's state      ema     averaged params, where the benchmark asks for them
    step     batches done, int32        bad_since  the first step of those whose loss is not finite, 0 if the
                                                   last one's is; it stays once the run is given up
    updates  what the optimizer's count is, for learning rates of tables; where there are any
    evaluations  of the loss beside the gradients', by optimizers that ask for them

Keys are strings; "/"-joined they are the paths that sharding rules, masks and importers match. This
file and `ops/stack.py` are the only places that split or merge a module.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

from mlperf_jax.core import (
    averages,
    compiling,
    mesh as meshes,
    optimizer_trace,
    python_file,
    starts,
)
from mlperf_jax.core.benchmark import Benchmark, Start
from mlperf_jax.core.optimizer_argument import is_transformation
from mlperf_jax.core.optimizer_trace import Traced
from mlperf_jax.core.phases import steady
from mlperf_jax.errors import UserError
from mlperf_jax.ops import embedding, embedding_plan, row_store
from mlperf_jax.ops.embedding_plan import Store
from mlperf_jax.ops.row_store import RowStore
from mlperf_jax.optimizers import clipping, tree as trees

State = dict[str, Any]

# Randomness besides training's own, which folds the step into key(seed): numbers no step reaches.
_STREAMS = {"init": 2**31 - 1, "evaluation": 2**31 - 2, "generation": 2**31 - 3}


def stream(seed: int, name: str) -> jax.Array:
    """The key of one use of randomness in a run: "init", "evaluation" or "generation"."""
    return jax.random.fold_in(jax.random.key(seed), _STREAMS[name])


def abstract_key() -> Any:
    """What a program that takes a key is traced with: nothing runs, also on devices that are only described."""
    return jax.eval_shape(lambda: jax.random.key(0))


@dataclass(frozen=True)
class Assembly:
    """All that is static about a run's program: how to rebuild the model, update it, and place it.

    Attributes:
        benchmark: what is trained.
        graphdef: the module without its arrays.
        tree: the description of the trained parameters.
        tx: the optimizer, clipping included.
        abstract: the state's shapes, dtypes and shardings.
        initial: key -> the state before the first step; traced once.
        traced: what the user's own optimizer is; None of the library's recipes.
        replaced: whether it stands in place of the benchmark's.
        eval_params: `(opt, params) -> params`, the weights that evaluation reads, where the optimizer
            evaluates others than it trains.
    """

    benchmark: Benchmark
    graphdef: nnx.GraphDef
    tree: trees.ParamTree
    tx: optax.GradientTransformationExtraArgs
    mesh: Mesh
    abstract: State
    initial: Callable[[jax.Array], State]
    traced: Traced | None = None
    replaced: bool = False
    eval_params: averages.EvalParams | None = None

    @property
    def parameters(self) -> int:
        """Trained weights, tables included."""
        tables = self.benchmark.tables().values()
        return self.tree.count() + sum(table.parameters for table in tables)

    @property
    def shardings(self) -> State:
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def check_room(self) -> None:
        """Nothing, if the tables that are spread over the mesh fit its devices."""
        tables, room = self.benchmark.tables().values(), _memory(self.mesh)
        if room is None:
            return
        devices = embedding.devices_of(self.mesh)
        rows = [
            (table.store, table.width * jnp.dtype(table.dtype or jnp.float32).itemsize)
            for table in tables
            if isinstance(table.store, RowStore)
        ]
        row_store.check_fit(rows, devices, room)
        bags = [
            (table.store, table.optimizer, table.width)
            for table in tables
            if table.optimizer and isinstance(table.store, Store)
        ]
        if bags:
            _, optimizer, width = bags[0]
            itemsize = 8 if self.benchmark.dtype == "float64" else 4
            row = round(width * itemsize * (1 + optimizer.accumulators))
            embedding_plan.check_fit([store for store, *_ in bags], row, devices, room)

    def create(self, seed: int) -> State:
        """The initial state, each leaf created on the devices that hold it."""
        self.check_room()
        # the untrained by the program that a resumed run makes them with: same bits
        return self.completed(self._made(self.kept, seed), seed)

    def begun(self, seed: int, data_dir: str) -> State:
        """The state before the first step: created, with its start weights and the rows that are data."""
        state, start = self.create(seed), self.benchmark.start(data_dir)
        state = state if start is None else self.begin_from(state, start)
        return self.with_data(state, data_dir)

    @property
    def has_untrained(self) -> bool:
        """Whether there are frozen weights or untrained tables."""
        return bool(jax.tree.leaves(self._untrained(self.abstract)))

    def kept(self, state: Mapping[str, Any]) -> State:
        """What a run goes on from: all of a state but frozen weights and untrained tables."""
        kept = {part: value for part, value in state.items() if part != "frozen"}
        return {**kept, "tables": self._tables(state, trained=True)}

    def saved(self, state: State) -> State:
        """What checkpoints hold: what is kept, and what evaluation reads where only the optimizer knows it."""
        if self.evaluates != "evaluated":
            return self.kept(state)
        return {**self.kept(state), "evaluated": self._averaged(state["opt"], state["params"])}

    @property
    def evaluates(self) -> str:
        """The part of a checkpoint that holds the weights that evaluation reads."""
        if "ema" in self.abstract:
            return "ema"
        return "params" if self.eval_params is None else "evaluated"

    def with_data(self, state: State, data_dir: str) -> State:
        """The state with the rows of tables that are data in place of those that they began as."""
        readers = starts.table_readers(self.benchmark, data_dir)
        weights = {f"tables/{name}/rows": reader for name, reader in readers.items()}
        return starts.begin_from(state, Start(weights)) if weights else state

    def _untrained(self, state: Mapping[str, Any]) -> State:
        return {"frozen": state["frozen"], "tables": self._tables(state, trained=False)}

    def _tables(self, state: Mapping[str, Any], trained: bool) -> State:
        specs, tables = self.benchmark.tables(), state["tables"]
        chosen = [name for name in tables if (specs[name].optimizer is not None) is trained]
        return {name: tables[name] for name in chosen}

    def completed(self, kept: State, seed: int) -> State:
        """What `kept` left, with the frozen weights and untrained tables that this seed begins with."""
        if not self.has_untrained:
            return {**kept, "frozen": {}}
        made = self._made(self._untrained, seed)
        return {**kept, **made, "tables": {**kept["tables"], **made["tables"]}}

    def _made(self, part: Callable[[State], State], seed: int) -> State:
        """A part of the initial state, each leaf created on the devices that hold it."""
        # Runs once, so on CPU compiling it well costs more than it gains; LLVM's level 0 is quick
        # (`scripts/measure_notes.py initialise`).
        on_cpu = self.mesh.devices.flat[0].platform == "cpu"
        level = {"xla_backend_optimization_level": "0"} if on_cpu else {}
        key, options = stream(seed, "init"), {**compiling.options(self.mesh), **level}
        with jax.set_mesh(self.mesh):
            placed = part(self.shardings)
            jitted = jax.jit(lambda key: part(self.initial(key)), out_shardings=placed)
            return compiling.compiled(jitted.lower(key), options)(key)

    def compile(self, jitted: jax.stages.Wrapped, *arguments: Any) -> jax.stages.Compiled:
        """The program for these abstract arguments; `ops/` find the mesh while it is traced."""
        with jax.set_mesh(self.mesh), compiling.safe_cache(self.mesh):
            lowered = jitted.lower(*arguments)
            return compiling.compiled(lowered, compiling.options(self.mesh))

    def model(self, state: State) -> nnx.Module:
        """The module in training behaviour, holding the state's arrays."""
        return merge(self.graphdef, state["params"], state["frozen"], state["stats"])

    def eval_model(self, view: State) -> nnx.Module:
        """The module in evaluation behaviour."""
        return in_evaluation(self.model(view))

    @property
    def abstract_view(self) -> State:
        """Shapes and shardings of what `eval_view` gives."""
        return {part: self.abstract[part] for part in ("params", "frozen", "tables", "stats")}

    def eval_view(self, state: State) -> State:
        """What evaluation reads: averaged weights if there are any, else the optimizer's or plain ones."""
        view = {part: state[part] for part in ("params", "frozen", "tables", "stats")}
        if "ema" in state:
            view["params"] = state["ema"]
        elif self.eval_params is not None:
            view["params"] = self._averaged(state["opt"], state["params"])
        return view

    @functools.cached_property
    def _averaged(self) -> jax.stages.Wrapped:
        assert self.eval_params is not None
        return jax.jit(self.eval_params, out_shardings=self.shardings["params"])

    def begin_from(self, state: State, start: Start) -> State:
        """The state with these weights; a user's optimizer may have kept those that it was given at first."""
        anew = None
        if self.traced is not None:
            anew = jax.jit(self.tx.init, out_shardings=self.shardings["opt"])
        return starts.begin_from(state, start, anew, replaced=self.replaced)


def _memory(mesh: Mesh) -> float | None:
    """Bytes of memory of one device of the mesh, None where nobody says; CPUs share their host's."""
    local = list(mesh.local_devices)
    if not local:
        return None
    if local[0].platform == "cpu":
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(local)
        except (AttributeError, OSError, ValueError):
            return None
    return (local[0].memory_stats() or {}).get("bytes_limit")


def assemble(benchmark: Benchmark, mesh: Mesh, optimizer: Any = None) -> Assembly:
    """Works out the program of a run from shapes alone; nothing is allocated.

    An optimizer, an optax transformation or a function of the `ParamTree`, replaces the benchmark's own.
    """
    found: dict[str, Any] = {}

    @jax.jit  # here and below, so that each is traced once, whoever calls it
    def parts_of(key: jax.Array) -> State:
        found["graphdef"], parts = split(benchmark.model(nnx.Rngs(key)), benchmark.frozen)
        return parts

    key = abstract_key()  # outside the mesh
    with jax.set_mesh(mesh):
        parts = jax.eval_shape(parts_of, key)
    tree = trees.ParamTree.from_params(parts["params"])
    chosen = chosen_optimizer(benchmark, tree, optimizer)
    recipe = optimizer is None and python_file.is_ours(type(benchmark))
    traced = None
    if not recipe:
        told = not is_transformation(optimizer)
        _check_averages(chosen)
        traced = optimizer_trace.trace(chosen, parts["params"], tree, told=told)
    with jax.set_mesh(mesh):
        tx = make_optimizer(benchmark, chosen)
        asks = traced is not None and traced.calls > 0
        initial = jax.jit(functools.partial(initial_state, benchmark, parts_of, tx, asks))
        abstract = jax.eval_shape(initial, key)
    rules = (*_store_rules(benchmark, mesh), *benchmark.rules)
    shardings = meshes.state_shardings(abstract, rules, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )
    own = _own_eval_params(benchmark, chosen)
    eval_params = averages.eval_params(benchmark, own, abstract["opt"], abstract["params"])
    program = (benchmark, found["graphdef"], tree, tx, mesh, abstract, initial, traced)
    return Assembly(*program, optimizer is not None, eval_params)


def _store_rules(benchmark: Benchmark, mesh: Mesh) -> meshes.Rules:
    """Sharding rules for the tables whose stores say where they live."""
    found = []
    for name, table in benchmark.tables().items():
        store, pattern = table.store, rf"{re.escape(name)}/.*"
        if isinstance(store, RowStore):
            row_store.check_mesh(store, mesh)
            found.append((pattern, row_store.spec(store)))
        elif store is not None:
            embedding.check_mesh(store, mesh)

            def spec(shape: tuple[int, ...], mesh: Mesh, store: Store = store) -> PartitionSpec:
                return embedding.spec(store, len(shape))

            found.append((pattern, spec))
    return found


def initial_state(
    benchmark: Benchmark,
    parts_of: Callable[[jax.Array], State],
    tx: optax.GradientTransformationExtraArgs,
    asks: bool,
    key: jax.Array,
) -> State:
    """The state before the first step, a pure function of the key.

    Args:
        benchmark: what is trained.
        parts_of: key -> a new model's `params`, `frozen` and `stats`.
        tx, asks: the optimizer, and whether it evaluates the loss itself, which is counted.
        key: of all that is random.
    """
    key, table_key = jax.random.split(key)
    parts, tables = parts_of(key), {}
    for index, (name, table) in enumerate(sorted(benchmark.tables().items())):
        dtype = table.dtype or (jnp.float64 if benchmark.dtype == "float64" else jnp.float32)
        rows = table.init(jax.random.fold_in(table_key, index), (table.rows, table.width), dtype)
        tables[name] = {"rows": rows, **(table.optimizer.init(rows) if table.optimizer else {})}
    state = {**parts, "tables": tables, "opt": tx.init(parts["params"])}
    if benchmark.ema is not None:
        # a copy: two donated arguments may not be the same buffer
        state["ema"] = jax.tree.map(jnp.copy, parts["params"])
    if any(table.optimizer for table in benchmark.tables().values()):
        state["updates"] = jnp.zeros((), jnp.int32)
    if asks:
        state["evaluations"] = jnp.zeros((), jnp.int32)
    return {**state, "step": jnp.zeros((), jnp.int32), "bad_since": jnp.zeros((), jnp.int32)}


def chosen_optimizer(benchmark: Benchmark, tree: trees.ParamTree, optimizer: Any = None) -> Any:
    """The benchmark's optimizer or its replacement: an object with `init` and `update`.

    Raises:
        UserError: when what was given is no optax transformation.
    """
    chosen = steady(benchmark).optimizer if optimizer is None else optimizer
    if is_transformation(chosen) or not callable(chosen):
        tx = chosen
    else:
        name = getattr(chosen, "__qualname__", chosen)
        _check_maker(chosen)
        try:
            tx = chosen(tree)
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # most often it takes no ParamTree
            raise UserError(
                f"the optimizer {name} failed when given the ParamTree: {python_file.in_one_line(error)}"
            ) from error
    if not is_transformation(tx):
        raise UserError(
            f"optimizer {tx!r} has no init and update: give an optax transformation, "
            "or a function of the ParamTree that returns one"
        )
    return tx


def _check_averages(tx: Any) -> None:
    """Nothing, if no object inside has evaluation weights that the whole does not give."""
    if hasattr(tx, "eval_params"):
        return
    for each in python_file.objects_inside(tx):
        if callable(getattr(type(each), "eval_params", None)):
            raise UserError(
                f"{type(each).__qualname__} is evaluated at its eval_params, and what is around it has none: give "
                "the outermost object an eval_params(opt_state, params) that finds its state"
            )


def _check_maker(maker: Callable[..., Any]) -> None:
    """Nothing, if what is given the ParamTree has a place for it."""
    function = maker.func if isinstance(maker, functools.partial) else maker
    name = getattr(function, "__qualname__", function)
    if str(getattr(function, "__module__", "")).startswith("optax."):
        raise UserError(f"{name} of optax was not called: give what it returns, {name}(…)")
    try:
        first = next(iter(inspect.signature(maker).parameters.values()), None)
    except (TypeError, ValueError):
        return
    if first is not None and first.default is not first.empty and first.default is not None:
        raise UserError(
            f"the optimizer {name} would be given the ParamTree as {first.name}, which is {first.default!r} by "
            f"default: give what it returns, or lambda tree: {name}(…)"
        )


def make_optimizer(benchmark: Benchmark, tx: Any) -> optax.GradientTransformationExtraArgs:
    """An optimizer with the benchmark's clipping in front."""
    extended = optax.GradientTransformationExtraArgs(tx.init, tx.update)
    if benchmark.clip_norm is None:
        return extended
    return optax.chain(clipping.clip_by_global_norm(benchmark.clip_norm), extended)


def _own_eval_params(benchmark: Benchmark, tx: Any) -> averages.EvalParams | None:
    """The optimizer's own `eval_params`, of the state that `make_optimizer` gives it."""
    own = getattr(tx, "eval_params", None)
    if own is None or benchmark.clip_norm is None:
        return own
    return lambda state, params: own(state[1], params)


def given_up(benchmark: Benchmark, step: Any, bad_since: Any) -> Any:
    """Whether so many losses in a row were not finite, up to this step's, that the run is given up."""
    return (bad_since > 0) & (step - bad_since + 1 >= benchmark.bad_steps)


def all_finite(benchmark: Benchmark, state: State) -> jax.Array:
    """Whether every weight is finite, and no loss gave the run up: only such a state is worth keeping.

    The loss of the step that destroys the weights may itself be finite.
    """
    read = ("params", "ema", "evaluated", "tables", "stats")
    parts = [state[part] for part in read if part in state]
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(parts)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack([~given_up(benchmark, state["step"], state["bad_since"]), *finite]).all()


# -- modules as dicts ------------------------------------------------------------------------------


def split(module: nnx.Module, frozen: tuple[str, ...] = ()) -> tuple[nnx.GraphDef, State]:
    """The module's graph definition and its arrays as `params`, `frozen` and `stats`.

    Args:
        module: a Flax NNX module.
        frozen: regular expressions; a parameter whose whole path matches one is frozen.

    Raises:
        UserError: when the module keeps random state (dropout must take keys), or a pattern matches
            no parameter.
    """
    graphdef, weights, random, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
    hidden = trees.flatten_paths(_string_keys(nnx.to_pure_dict(random)))
    if hidden:
        raise UserError(
            f"module holds random state at {', '.join(sorted(hidden))}: a run must be a function of its "
            "seed and step, so let the layer take a key"
        )
    params = trees.flatten_paths(_string_keys(nnx.to_pure_dict(weights)))
    matches = {p: {path for path in params if re.fullmatch(p, path)} for p in frozen}
    for pattern, found in matches.items():
        if not found:
            raise UserError(f"frozen pattern {pattern!r} matches no parameter")
    kept = set().union(*matches.values())
    parts = {
        "params": trees.unflatten({p: a for p, a in params.items() if p not in kept}),
        "frozen": trees.unflatten({p: a for p, a in params.items() if p in kept}),
        "stats": _string_keys(nnx.to_pure_dict(rest)),
    }
    return graphdef, parts


def merge(graphdef: nnx.GraphDef, params: State, frozen: State, stats: State) -> nnx.Module:
    """The module that `split` took apart, holding these arrays."""
    weights = {**trees.flatten_paths(params), **trees.flatten_paths(frozen)}
    return nnx.merge(graphdef, _integer_keys(trees.unflatten(weights)), _integer_keys(stats))


def in_evaluation(module: nnx.Module) -> nnx.Module:
    """The module in evaluation behaviour."""
    return nnx.view(module, use_running_average=True, deterministic=True, raise_if_not_found=False)


def stats_of(module: nnx.Module) -> State:
    """The running statistics as they are now."""
    return _string_keys(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))))


def evaluations(state: State) -> int:
    """How often the loss was evaluated beside the gradients'."""
    return int(jax.device_get(state.get("evaluations", 0)))


def _string_keys(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _string_keys(value) for key, value in tree.items()}
    return tree


def _integer_keys(tree: Any) -> Any:
    # lists of modules have integer keys in NNX; ours are strings throughout
    if isinstance(tree, Mapping):
        return {
            int(key) if key.isdigit() else key: _integer_keys(value) for key, value in tree.items()
        }
    return tree
