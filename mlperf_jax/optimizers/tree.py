"""What each parameter is: its kind, its axes, and whether it is a stack of layers.

Everything that asks "what is this leaf" reads it here: decay masks, LARS and LAMB (norms per layer),
Muon (which axes are input and output), sharding rules, importers, parameter counts.

The conventions a model follows so that no leaf needs an annotation:

* A path is the "/"-joined keys: "stages/0/layers/conv1/kernel".
* A stack of equal layers lives under the path component `layers` and nowhere else; each of its leaves
  carries one leading layer axis. Shapes and axes below are those of ONE layer.
* `kernel` has its input axes first and its output axis last (convolutions HWIO). Under a component
  `experts` the first axis of one layer counts experts and is neither input nor output.
* `scale` is the gain of a normalisation, and a `bias` beside it its shift: both are kind "norm".
  Any other `bias` is kind "bias".
* The `kernel` of a module named `head`, `lm_head` or `classifier` makes the outputs: kind "head".
* A name that ends in `embedding` is kind "embedding". What is left is "matrix" when it has two axes
  longer than 1, and "other" if not.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

from mlperf_jax.errors import UserError

KINDS = ("embedding", "head", "norm", "bias", "matrix", "other")
STACK = "layers"
EXPERTS = "experts"
HEADS = frozenset({"head", "lm_head", "classifier"})


# --- paths -----------------------------------------------------------------------------------------


def join_path(keys: tuple[Any, ...]) -> str:
    """Returns JAX's key path as one string, "encoder/layers/dense/kernel"."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def map_with_path(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Maps `function(path, leaf, *leaves)` over the leaves of a nested dict.

    Example:
        >>> map_with_path(lambda path, x: path, {"a": {"b": 1}})
        {'a': {'b': 'a/b'}}
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, *leaves: function(join_path(keys), *leaves), tree, *rest
    )


def flatten_paths(tree: Any) -> dict[str, Any]:
    """Returns path -> leaf, in JAX's order of leaves.

    Example:
        >>> flatten_paths({"b": {"kernel": 1, "bias": 2}, "a": 3})
        {'a': 3, 'b/bias': 2, 'b/kernel': 1}
    """
    return {join_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any], like: Any = None) -> Any:
    """Returns the nested dict whose `flatten_paths` is `flat`.

    Args:
        flat: path -> leaf.
        like: a tree of the wanted structure. Needed where keys are not strings: `nnx.List` has
            integer keys, which a path does not tell from "0". Without it every key is a string.

    Raises:
        UserError: `flat` and `like` do not have the same paths.

    Example:
        >>> unflatten({"b/kernel": 1, "a": 3})
        {'b': {'kernel': 1}, 'a': 3}
    """
    if like is not None:
        wanted = flatten_paths(like)
        if odd := sorted(set(wanted) ^ set(flat)):
            what = "is missing" if odd[0] in wanted else "is not in the tree"
            raise UserError(
                f"parameter {odd[0]!r} {what} ({len(odd)} such paths); give the same set"
            )
        return map_with_path(lambda path, _: flat[path], like)
    return unflatten_dict(dict(flat), sep="/")


def stack_of(path: str) -> str | None:
    """Returns the stack that a leaf belongs to ("encoder/layers"), or None if it has no layer axis.

    Numbered `layers` are a list of modules, as `nnx.Sequential` has it, and no stack.

    Raises:
        UserError: the path has two components `layers`, but a leaf has one layer axis.

    Example:
        >>> stack_of("encoder/layers/norm/scale"), stack_of("head/bias"), stack_of("layers/0/bias")
        ('encoder/layers', None, None)
    """
    parts = path.split("/")
    following = zip(parts, [*parts[1:], ""])
    stacks = [i for i, (at, below) in enumerate(following) if at == STACK and not below.isdigit()]
    if len(stacks) > 1:
        raise UserError(
            f"parameter {path!r} lies under two components {STACK!r}, but a stack has one layer "
            "axis; rename one of them"
        )
    return "/".join(parts[: stacks[0] + 1]) if stacks else None


# --- sets of paths ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, repr=False)
class Paths:
    """A set of parameters of one tree, usable wherever optax takes a mask.

    `|`, `&`, `-` and `~` (all the others) make new sets; `in`, `len` and iteration (sorted) work.
    Called with parameters, or gradients, it returns the same tree of booleans.

    Example:
        >>> tree = ParamTree.from_params({"fc": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}})
        >>> (~tree.biases)({"fc": {"kernel": 0, "bias": 0}})
        {'fc': {'bias': False, 'kernel': True}}
    """

    members: frozenset[str]
    universe: frozenset[str]

    @property
    def mask(self) -> "Paths":
        """The same set as a plain mask; only that of `ParamTree.matrices` is not one already."""
        return Paths(self.members, self.universe)

    def __call__(self, params: Any) -> Any:
        return map_with_path(lambda path, _: self._holds(path), params)

    def __contains__(self, path: object) -> bool:
        return path in self.members

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self.members))

    def __or__(self, other: "Paths") -> "Paths":
        return Paths(self.members | self._same_tree(other).members, self.universe)

    def __and__(self, other: "Paths") -> "Paths":
        members = self.members & self._same_tree(other).members
        return dataclasses.replace(self, members=members)

    def __sub__(self, other: "Paths") -> "Paths":
        members = self.members - self._same_tree(other).members
        return dataclasses.replace(self, members=members)

    def __invert__(self) -> "Paths":
        return Paths(self.universe - self.members, self.universe)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"

    def _holds(self, path: str) -> bool:
        if path not in self.universe:
            raise UserError(
                f"parameter {path!r} is not in the tree this mask was made from; "
                "make the ParamTree from the parameters that are optimized"
            )
        return path in self.members

    def _same_tree(self, other: "Paths") -> "Paths":
        if not isinstance(other, Paths) or other.universe != self.universe:
            raise UserError("these two sets of parameters come from different trees; use one tree")
        return other


@dataclasses.dataclass(frozen=True, repr=False)
class Matrices(Paths):
    """A set of matrices that knows their axes: called, it answers `optax.contrib.muon`.

    `axes` holds path -> (input axes, output axes) in the stored array, layer axis included. Called
    with parameters it returns `MuonDimensionNumbers` for each member and None for the rest, which is
    what `muon_weight_dimension_numbers` wants. optax tells a mask by False and Muon's specification
    by None, so one call cannot be both: `matrices.mask` is the mask. `&` and `-` keep the axes.
    """

    axes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = dataclasses.field(
        compare=False, default_factory=dict
    )

    def __call__(self, params: Any) -> Any:
        return map_with_path(
            lambda path, _: (
                optax.contrib.MuonDimensionNumbers(*self.axes[path]) if self._holds(path) else None
            ),
            params,
        )


# --- the tree --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One parameter array.

    Attributes:
        path: "/"-joined keys.
        shape: of one layer, the layer axis of a stack removed.
        dtype: as stored.
        kind: one of `KINDS`.
        stacked: whether the array has a leading layer axis.
        layers: length of that axis, 1 if not stacked.
        input_axes: axes of `shape` that a product sums over; () for norms, biases and others.
        output_axes: axes of `shape` that the product leaves; () likewise.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    kind: str
    stacked: bool
    layers: int
    input_axes: tuple[int, ...]
    output_axes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of parameters, all layers together."""
        return math.prod(self.shape) * self.layers


@dataclasses.dataclass(frozen=True)
class ParamTree:
    """The parameters of a model, described leaf by leaf; see the module's conventions.

    Example:
        >>> tree = ParamTree.from_params({"head": {"kernel": np.ones((4, 2)), "bias": np.ones(2)}})
        >>> tree["head/kernel"].kind, tree.count(), tree.count("bias")
        ('head', 10, 2)
    """

    leaves: tuple[Leaf, ...]

    @classmethod
    def from_params(cls, params: Any) -> "ParamTree":
        """Reads a nested dict of arrays or `ShapeDtypeStruct`s.

        Raises:
            UserError: a leaf under `layers` has no layer axis, or another length than its stack.
        """
        flat = flatten_paths(params)
        lengths: dict[str, int] = {}
        leaves = []
        for path, array in flat.items():
            shape = tuple(array.shape)
            if stack := stack_of(path):
                if not shape or shape[0] != lengths.setdefault(stack, shape[0]):
                    expected = f"{lengths[stack]} layers" if shape else "a leading layer axis"
                    raise UserError(
                        f"parameter {path!r} has shape {shape}; {stack!r} needs {expected}"
                    )
                layers, shape = shape[0], shape[1:]
            else:
                layers = 1
            kind = _kind(path, shape, flat)
            dtype = np.dtype(array.dtype)
            axes = _axes(path, shape, kind)
            leaves.append(Leaf(path, shape, dtype, kind, stack is not None, layers, *axes))
        return cls(tuple(leaves))

    def select(self, predicate: Callable[[Leaf], bool]) -> Paths:
        """Returns the parameters for which `predicate(leaf)` holds."""
        members = frozenset(leaf.path for leaf in self.leaves if predicate(leaf))
        return Paths(members, frozenset(leaf.path for leaf in self.leaves))

    def as_matrices(self, paths: Paths) -> Matrices:
        """Returns `paths` as Muon's specification, e.g. of `tree.matrices | tree.heads`.

        Raises:
            UserError: one of them has no input or output axis.
        """
        axes = {}
        for path in paths:
            leaf = self[path]
            if not leaf.input_axes or not leaf.output_axes:
                raise UserError(
                    f"parameter {path!r} is a {leaf.kind} with no axes; it is no matrix"
                )
            # The layer axis is neither input nor output: Muon then treats it as a batch axis.
            shift = int(leaf.stacked)
            axes[path] = (
                tuple(axis + shift for axis in leaf.input_axes),
                tuple(axis + shift for axis in leaf.output_axes),
            )
        return Matrices(paths.members, paths.universe, axes)

    @property
    def norms(self) -> Paths:
        """Gains and shifts of the normalisations."""
        return self.select(lambda leaf: leaf.kind == "norm")

    @property
    def biases(self) -> Paths:
        """Biases, without the shifts of normalisations (those are norms)."""
        return self.select(lambda leaf: leaf.kind == "bias")

    @property
    def embeddings(self) -> Paths:
        """Embedding tables."""
        return self.select(lambda leaf: leaf.kind == "embedding")

    @property
    def heads(self) -> Paths:
        """Kernels that make the outputs."""
        return self.select(lambda leaf: leaf.kind == "head")

    @property
    def matrices(self) -> Matrices:
        """Hidden matrices, without embeddings and heads, which Muon's authors leave to Adam."""
        return self.as_matrices(self.select(lambda leaf: leaf.kind == "matrix"))

    def count(self, kind: str | None = None) -> int:
        """Returns the number of parameters, of one kind or of all.

        Raises:
            UserError: there is no such kind.
        """
        if kind is not None and kind not in KINDS:
            raise UserError(
                f"there is no parameter kind {kind!r}; the kinds are {', '.join(KINDS)}"
            )
        return sum(leaf.size for leaf in self.leaves if kind in (None, leaf.kind))

    def __getitem__(self, path: str) -> Leaf:
        for leaf in self.leaves:
            if leaf.path == path:
                return leaf
        raise UserError(f"there is no parameter {path!r}; print the tree to see them all")

    def __len__(self) -> int:
        return len(self.leaves)

    def __str__(self) -> str:
        """Path, shape of one layer, kind and layers per row; no dtype, so it is the same in f64."""
        rows = [("path", "shape", "kind", "layers")]
        for leaf in self.leaves:
            shape = "x".join(map(str, leaf.shape)) or "scalar"
            rows.append((leaf.path, shape, leaf.kind, str(leaf.layers) if leaf.stacked else "-"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.append(f"{self.count():,} parameters in {len(self.leaves)} arrays")
        return "\n".join(lines)


def _kind(path: str, shape: tuple[int, ...], flat: Mapping[str, Any]) -> str:
    """Returns the kind of a leaf by its name, the names beside it and its one-layer shape."""
    module, _, name = path.rpartition("/")
    parent = module.rpartition("/")[2]
    beside = f"{module}/" if module else ""
    # A quantised or weight-normalised kernel may have a scale of its own: that is no normalisation.
    is_norm = (f"{beside}scale" in flat and f"{beside}kernel" not in flat) or "norm" in parent
    if name.endswith("embedding"):
        return "embedding"
    if name == "scale" or (is_norm and len(shape) <= 1):
        return "norm"
    if name == "bias":
        return "bias"
    if name == "kernel" and len(shape) >= 2:
        return "head" if parent in HEADS else "matrix"
    return "matrix" if sum(length > 1 for length in shape) >= 2 else "other"


def _axes(path: str, shape: tuple[int, ...], kind: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns (input axes, output axes) of one layer's shape: the last axis is the output."""
    if kind not in ("embedding", "head", "matrix") or len(shape) < 2:
        return (), ()
    first = int(EXPERTS in path.split("/") and len(shape) > 2)
    return tuple(range(first, len(shape) - 1)), (len(shape) - 1,)


# --- masks -----------------------------------------------------------------------------------------


def norms_and_biases(params: Any) -> Any:
    """The mask of what LARS and LAMB skip; their references list it by name ('LayerNorm', 'bias', 'bn')."""
    tree = ParamTree.from_params(params)
    return (tree.norms | tree.biases)(params)


def resolve_mask(mask: Any, params: Any) -> Any:
    """Returns a tree of booleans of the structure of `params`.

    Args:
        mask: a `Paths`, a callable of the parameters, or a tree of booleans that is a prefix of
            `params` (so a single bool covers everything).
        params: nested dict of arrays.
    """
    if isinstance(mask, Paths):
        mask = mask.mask
    tree = mask(params) if callable(mask) else mask
    return jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), tree, params)
