"""R-GAT against PyG (scripts/make_rgat_reference.py), a plain loop, the fact sheet, itself trimmed and on a mesh."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import modules
import numpy as np
import optax
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.models.rgat import (
    Attention,
    Edges,
    HeteroLayer,
    Reach,
    Relation,
    Rgat,
    RgatConfig,
    Sample,
)
from mlperf_jax.ops import losses
from mlperf_jax.optimizers import ParamTree, flatten_paths, unflatten
from scripts import make_rgat_reference as reference

WHOLE = RgatConfig(
    relations=tuple(Relation(*names) for names in reference.RELATIONS),
    **reference.SIZES,
    dropout=0.0,
)
CITES, BY, WROTE = (Relation("paper", "cites", "paper"), Relation("paper", "written_by", "author"),
                    Relation("author", "rev_written_by", "paper"))  # fmt: skip
SMALL = WHOLE.replace(relations=(CITES, BY, WROTE))
NOISY = SMALL.replace(dropout=0.5)


def build(config, dtype=jnp.float32):
    return Rgat(config, dtype, rngs=nnx.Rngs(0))


@functools.cache
def parts(config, dtype=jnp.float32):
    return modules.abstract(lambda: build(config, dtype))


@functools.cache
def stored():
    with np.load(reference.OUTPUT) as file:
        return dict(file)


def told(name):
    return json.loads(stored()[name].tobytes())


def parameters(config, dtype=np.float32):
    """The script's weights as our nested dict."""
    like = parts(config, dtype)[1]
    flat = {n: reference.weight(n, leaf.shape) for n, leaf in flatten_paths(like).items()}
    return unflatten({name: x.astype(dtype) for name, x in flat.items()}, like)


@functools.cache
def drawn(number):
    return reference.sample(number)


def given(number, config):
    """The script's sample as ours, of the config's relations only."""
    one = drawn(number)
    keys = [relation.key for relation in config.relations]
    return Sample(
        {name: one["features"][name] for name in config.types},
        {key: edges_of(one["edges"][key]) for key in keys},
        Reach(
            {name: one["node_counts"][name] for name in config.types},
            {key: one["edge_counts"][key] for key in keys},
        ),
    )


def edges_of(rows):
    return Edges(rows[:, 0], rows[:, 1], rows[:, 2] > 0)


def with_edges(sample, key, **changes):
    edges = {**sample.edges, key: sample.edges[key]._replace(**changes)}
    return Sample(sample.features, edges, sample.reach)


def together(*samples):
    return jax.tree.map(lambda *arrays: np.stack(arrays), *samples)


def compiled(function):
    """A jitted function that compiles quickly and runs slowly."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def loss_of(logits, labels, weights):
    total, weight = losses.weighted_xent(logits, labels, weights)
    return total / weight


@functools.cache
def computed(config, dtype, trim=True):
    """A jitted function of (params, sample, key): logits, and gradients of their sum times fixed numbers."""

    def run(params, sample, key=None):
        def f(params):
            model = states.merge(parts(config, dtype)[0], params, {}, {})
            model = nnx.view(model, deterministic=key is None)
            logits = model(sample, key=key, trim=trim)
            probe = reference.drawn("probe", logits.shape[-2:])
            return jnp.sum(logits * probe), logits

        return jax.grad(f, has_aux=True)(params)[::-1]

    return compiled(run)


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    config = RgatConfig()
    tree = ParamTree.from_params(parts(config, jnp.bfloat16)[1])
    assert tree.count() == 13_115_303 == stored()["full size"]
    assert {leaf.dtype for leaf in tree.leaves} == {np.dtype("float32")}
    for i, count in enumerate([5_784_064, 2_900_480, 2_900_480]):
        start = f"hetero/{i}/"
        assert sum(leaf.size for leaf in tree.leaves if leaf.path.startswith(start)) == count
    assert sum(leaf.size for leaf in tree.leaves if leaf.path.startswith("head/")) == 1_530_279
    assert set(tree.heads) == {"head/kernel"}
    assert set(config.relations) == set(WHOLE.relations)
    into = [relation.target for relation in config.relations]
    others = [into.count(name) for name in ("author", "institute", "fos", "journal", "conference")]
    assert (into.count("paper"), others) == (5, [2, 1, 1, 1, 1])


def test_initial_weights_lie_within_their_bounds():
    config = RgatConfig(relations=(CITES,), features=256, layers=2, classes=300)
    flat = flatten_paths(states.split(build(config))[1]["params"])
    start = "hetero/{}/relations/paper__cites__paper/"
    wanted = {
        start.format(0) + "project/kernel": math.sqrt(6 / (256 + 512)),
        start.format(1) + "project/kernel": math.sqrt(6 / (512 + 512)),
        "head/kernel": 1 / math.sqrt(512),
        "head/bias": 1 / math.sqrt(512),
    }
    for i in range(2):
        wanted |= {start.format(i) + end: math.sqrt(6 / (4 + 128)) for end in ("source", "target")}
        wanted[start.format(i) + "bias"] = 0
    assert flat.keys() == wanted.keys()
    for name, bound in wanted.items():
        assert 0.97 * bound <= np.abs(flat[name]).max() <= bound, name
        assert abs(flat[name].std() - bound / math.sqrt(3)) <= 0.05 * bound, name


def test_flops_are_those_of_the_fact_sheet():
    config = RgatConfig(relations=(CITES, BY, WROTE), layers=2)
    nodes = {"paper": (10, 50, 90), "author": (0, 30, 70.5)}
    edges = {CITES.key: (100, 400), BY.key: (0, 60), WROTE.key: (40, 200)}
    last = [(50, 100), (10 + 30, 40)]  # rows and edges: cites, rev_written_by
    first = [(90, 400), (90 + 30, 60), (50 + 70.5, 200)]
    projections = [sum(2 * n * width * 512 for n, _ in layer)
                   for layer, width in ((first, 1024), (last, 512))]  # fmt: skip
    rest = sum((n + e) * 512 * 2 for n, e in first + last) + 2 * 10 * 512 * 2983
    found = config.flops(nodes, edges, training=False)
    assert found == sum(projections) + rest
    assert config.flops(nodes, edges) == 3 * found - projections[0]


# -- one layer -------------------------------------------------------------------------------------


def plain_gat(sources, targets, pairs, weights, slope=0.2):
    """GATConv, bias included, edge by edge."""
    kernel, of_source, of_target, bias = weights
    shape = (-1, *of_source.shape)
    z, own = (sources @ kernel).reshape(shape), (targets @ kernel).reshape(shape)
    out = np.tile(bias, (len(targets), 1)).reshape(shape)
    for i in range(len(targets)):
        ends = [j for j, t in pairs if t == i]
        if not ends:
            continue
        scores = (z[ends] * of_source).sum(-1) + (own[i] * of_target).sum(-1)
        powers = np.exp(np.where(scores > 0, scores, slope * scores))  # [edges, H]
        out[i] += ((powers / powers.sum(0))[..., None] * z[ends]).sum(0)
    return out.reshape(len(targets), -1)


def numbers_of(attention):
    variables = (attention.project.kernel, attention.source, attention.target, attention.bias)
    return [np.asarray(variable[...]) for variable in variables]


def test_a_hand_graph_is_that_of_a_plain_loop(x64):
    """Four papers and two authors: in-edges none, single, doubled; `written_by` has padding only."""
    draw = np.random.RandomState(0)
    config = SMALL.replace(features=4)
    layer = HeteroLayer(4, config, jnp.float64, rngs=nnx.Rngs(1))
    for relation in config.relations:
        layer.relations[relation.key].bias = nnx.Param(jnp.asarray(draw.standard_normal(6)))
    h = {"paper": draw.standard_normal((4, 4)), "author": draw.standard_normal((2, 4))}
    lists = {
        CITES: [(0, 0, 1), (3, 0, 1), (3, 0, 1), (1, 2, 1), (2, 2, 0)],
        BY: [(0, 0, 0), (3, 1, 0)],
        WROTE: [(1, 1, 1), (0, 2, 1), (1, 2, 1), (0, 2, 0)],
    }
    edges = {relation.key: edges_of(np.array(rows)) for relation, rows in lists.items()}
    present = {relation.key: np.array(relation != BY) for relation in lists}

    found = jax.jit(lambda h: layer(h, {"paper": 4, "author": 2}, edges, present))(h)
    paper = 0
    for relation in (CITES, WROTE):
        pairs = [(s, t) for s, t, real in lists[relation] if real]
        weights = numbers_of(layer.relations[relation.key])
        paper += plain_gat(h[relation.source], h["paper"], pairs, weights)
    np.testing.assert_allclose(found["paper"], paper, atol=1e-14)
    biases = [numbers_of(layer.relations[r.key])[3] for r in (CITES, WROTE)]
    np.testing.assert_allclose(found["paper"][3], sum(biases), atol=1e-15)  # no in-edges at all
    assert found["author"].shape == (2, 6) and (found["author"] == 0).all()


@pytest.mark.parametrize("bipartite", [False, True])
def test_a_layer_is_that_of_pyg(bipartite, x64):
    one, name = reference.alone(bipartite), f"alone {bipartite}"
    attention = Attention(6, WHOLE, jnp.float64, rngs=nnx.Rngs(0))
    graph, state = states.split(attention)[:2]
    flat = flatten_paths(state["params"])
    flat = {n: reference.weight(f"{name} {n}", x.shape).astype(float) for n, x in flat.items()}
    params = unflatten(flat, state["params"])
    source, target = one["edges"].astype(np.int32)
    order = np.argsort(target, kind="stable")
    edges = Edges(source[order], target[order], np.ones(16, bool))
    probe = reference.drawn(f"slope {name}", stored()[name].shape)

    @jax.jit
    def run(params, sources, targets):
        def f(params):
            attention = states.merge(graph, params, {}, {})
            out = attention(sources, targets, edges) + attention.bias[...]
            return jnp.sum(out * probe), out

        return jax.grad(f, has_aux=True)(params)

    slopes, out = run(params, *(one[end].astype(float) for end in ("sources", "targets")))
    np.testing.assert_allclose(out, stored()[name], atol=1e-12)
    agree(flatten_paths(slopes), {n.removeprefix(f"{name} "): v for n, v in
                                  told(f"{name} gradients").items()}, f"{name} ")  # fmt: skip


def agree(arrays, wanted, start=""):
    """Norms and projections of arrays by name are the wanted ones; `start` makes the script's names of ours."""
    found = reference.summary({start + name: np.asarray(x) for name, x in arrays.items()})
    assert arrays.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(
            found[start + name], values, rtol=1e-10, atol=1e-11, err_msg=name
        )


# -- the model -------------------------------------------------------------------------------------


def test_logits_gradients_and_thirty_steps_are_those_of_pyg(x64):
    """Samples take turns; in two of three a relation is absent, and all have padding among their rows."""
    adam, graph = optax.adam(reference.RATE), parts(WHOLE, jnp.float64)[0]

    @compiled
    def step(params, opt, sample, labels, weights):
        def f(params):
            logits = states.merge(graph, params, {}, {})(sample)
            return loss_of(logits, labels, weights), logits

        (loss, logits), slopes = jax.value_and_grad(f, has_aux=True)(params)
        updates, opt = adam.update(slopes, opt)
        return optax.apply_updates(params, updates), opt, loss, logits, slopes

    params = parameters(WHOLE, np.float64)
    opt, found = adam.init(params), []
    for i in range(reference.STEPS):
        one = drawn(i % 3)
        ends = (given(i % 3, WHOLE), one["labels"], one["weights"])
        if i < 3:
            logits = step(parameters(WHOLE, np.float64), opt, *ends)[3]
            np.testing.assert_allclose(logits, stored()[f"logits {i}"], atol=1e-10)
        params, opt, loss, _, slopes = step(params, opt, *ends)
        if i < 3:
            flat = flatten_paths(slopes)
            agree(flat, told(f"gradients {i}"))
            unseen = {name for name, slope in flat.items() if not np.asarray(slope).any()}
            assert {name for name in unseen if "/2/" in name} >= {
                name for name in flat if "/2/" in name and not "/project" in name
                and not name.split("/")[3].endswith("__paper")}  # fmt: skip
            assert all("institute" in n for n in unseen if "/1/" in n and reference.ABSENT[i] not in n)
        found.append(float(loss))
    np.testing.assert_allclose(found, stored()["losses"], rtol=1e-10)
    agree(flatten_paths(params), told("trained"))


# -- trimming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [None, 3])
def test_trimming_changes_nothing(seed, x64):
    key = None if seed is None else jax.random.key(seed)
    params, sample = parameters(NOISY, np.float64), given(0, NOISY)
    trimmed, whole = (computed(NOISY, jnp.float64, t)(params, sample, key) for t in (True, False))
    np.testing.assert_array_equal(trimmed[0], whole[0])
    for a, b in zip(jax.tree.leaves(trimmed[1]), jax.tree.leaves(whole[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_trimming_spares_what_the_seeds_cannot_see():
    sample = given(0, WHOLE)

    def flops(trim):
        def run(params):
            model = states.merge(parts(WHOLE)[0], params, {}, {})
            return model.hetero and model(sample, trim=trim)

        return jax.jit(run).lower(parameters(WHOLE)).cost_analysis()["flops"]

    assert flops(True) < 0.6 * flops(False)
