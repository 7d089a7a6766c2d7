"""R-GAT against PyG (scripts/make_rgat_reference.py), a plain loop, the fact sheet, itself trimmed and on a mesh."""

import functools
import json
import math
import operator

import jax
import jax.numpy as jnp
import modules
import numpy as np
import optax
import pytest
from flax import nnx

from mlperf_jax.core import mesh as meshes, state as states
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh.sizes import CITES, SIZES, STORED, Relation
from mlperf_jax.models.rgat import (
    Edges,
    HeteroLayer,
    Reach,
    Rgat,
    RgatConfig,
    Sample,
)
from mlperf_jax.ops import losses
from mlperf_jax.optimizers import ParamTree, flatten_paths, unflatten
from scripts import make_rgat_reference as reference

WHOLE = RgatConfig(
    relations=tuple(Relation(*names) for names in reference.FEW),
    **reference.SIZES,
    dropout=0.0,
)
BY, WROTE = STORED[1], STORED[1].reversed
SMALL = WHOLE.replace(relations=(CITES, BY, WROTE), layers=2)
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
    return filled(parts(config, dtype)[1], config, dtype)


def filled(shapes, config, dtype, start=""):
    """The script's weights, a relation each, as a nested dict of ours, where they are stacked."""

    def array(path, shape):
        before, stack, rest = path.partition("layers/")
        if not stack:
            return reference.weight(start + path, shape)
        names = [f"{start}{before}relations/{r.key}/{rest}" for r in config.relations]
        return np.stack([reference.weight(name, shape[1:]) for name in names])

    flat = flatten_paths(shapes).items()
    return unflatten({path: array(path, x.shape).astype(dtype) for path, x in flat}, shapes)


def apart(params, config):
    """The arrays of ours by the script's names."""
    found = {}
    for path, array in flatten_paths(params).items():
        before, stack, rest = path.partition("layers/")
        names = [f"{before}relations/{r.key}/{rest}" for r in config.relations] if stack else [path]
        found |= dict(zip(names, array if stack else [array], strict=True))
    return found


@functools.cache
def drawn(number):
    return reference.sample(number)


def given(number, config):
    """The script's sample as ours, of the config's relations and within its hops only."""
    one, hops = drawn(number), config.layers
    nodes = {name: one["node_counts"][name][: hops + 1] for name in config.types}
    edges = {r.key: one["edge_counts"][r.key][:hops] for r in config.relations}
    return Sample(
        {name: one["features"][name][: counts[-1]] for name, counts in nodes.items()},
        {key: edges_of(one["edges"][key][: counts[-1]]) for key, counts in edges.items()},
        Reach(nodes, edges),
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


@functools.cache
def computed(config, dtype, trim=True):
    """A jitted function of (params, sample, key): the logits."""

    def run(params, sample, key=None):
        model = states.merge(parts(config, dtype)[0], params, {}, {})
        return nnx.view(model, deterministic=key is None)(sample, key=key, trim=trim)

    return compiled(run)


# -- sizes -----------------------------------------------------------------------------------------


def test_parameters_are_as_many_as_in_the_reference():
    config = RgatConfig(relations=SIZES["full"].relations)
    tree = ParamTree.from_params(parts(config, jnp.bfloat16)[1])
    assert tree.count() == 13_115_303 == stored()["full size"]
    assert {leaf.dtype for leaf in tree.leaves} == {np.dtype("float32")}
    for i, count in enumerate([5_784_064, 2_900_480, 2_900_480]):
        start = f"hetero/{i}/"
        assert sum(leaf.size for leaf in tree.leaves if leaf.path.startswith(start)) == count
    assert sum(leaf.size for leaf in tree.leaves if leaf.path.startswith("head/")) == 1_530_279
    assert set(tree.heads) == {"head/kernel"}
    assert set(config.relations) == set(reference.RELATIONS)
    into = [relation.target for relation in config.relations]
    others = [into.count(name) for name in ("author", "institute", "fos", "journal", "conference")]
    assert (into.count("paper"), others) == (5, [2, 1, 1, 1, 1])


def test_initial_weights_lie_within_their_bounds():
    config = RgatConfig(relations=(CITES,), features=256, layers=1, classes=300)
    flat = flatten_paths(jax.jit(lambda: states.split(build(config))[1]["params"])())
    start = "hetero/0/layers/"
    wanted = {
        start + "project/kernel": math.sqrt(6 / (256 + 512)),
        start + "source": math.sqrt(6 / (4 + 128)),
        start + "target": math.sqrt(6 / (4 + 128)),
        start + "bias": 0,
        "head/kernel": 1 / math.sqrt(512),
        "head/bias": 1 / math.sqrt(512),
    }
    assert flat.keys() == wanted.keys() and flat[start + "project/kernel"].shape == (1, 256, 512)
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
    shape = (-1, *weights["source"].shape)
    z, own = ((x @ weights["project"]["kernel"]).reshape(shape) for x in (sources, targets))
    out = np.tile(weights["bias"], (len(targets), 1)).reshape(shape)
    for i in range(len(targets)):
        ends = [j for j, t in pairs if t == i]
        if not ends:
            continue
        scores = (z[ends] * weights["source"]).sum(-1) + (own[i] * weights["target"]).sum(-1)
        powers = np.exp(np.where(scores > 0, scores, slope * scores))  # [edges, H]
        out[i] += ((powers / powers.sum(0))[..., None] * z[ends]).sum(0)
    return out.reshape(len(targets), -1)


def test_a_hand_graph_is_that_of_a_plain_loop(x64):
    """Four papers and two authors: in-edges none, single, doubled; `written_by` has padding only."""
    draw = np.random.RandomState(0)
    graph, shapes = modules.abstract(lambda: HeteroLayer(6, SMALL, jnp.float64, rngs=nnx.Rngs(0)))
    params = filled(shapes, SMALL, np.float64)
    h = {"paper": draw.standard_normal((4, 6)), "author": draw.standard_normal((2, 6))}
    lists = {
        CITES: [(0, 0, 1), (3, 0, 1), (3, 0, 1), (1, 2, 1), (2, 2, 0)],
        BY: [(0, 0, 0), (3, 1, 0)],
        WROTE: [(1, 1, 1), (0, 2, 1), (1, 2, 1), (0, 2, 0)],
    }
    edges = {relation.key: edges_of(np.array(rows)) for relation, rows in lists.items()}
    present = {relation.key: np.array(relation != BY) for relation in lists}

    def run(params):
        layer = states.merge(graph, params, {}, {})
        return layer(h, {"paper": 4, "author": 2}, edges, present)

    found, paper, biases = compiled(run)(params), 0, 0
    for relation in (CITES, WROTE):
        pairs = [(s, t) for s, t, real in lists[relation] if real]
        own = operator.itemgetter(SMALL.relations.index(relation))
        weights = jax.tree.map(own, params["layers"])
        paper += plain_gat(h[relation.source], h["paper"], pairs, weights)
        biases += weights["bias"]
    np.testing.assert_allclose(found["paper"], paper, atol=1e-14)
    np.testing.assert_allclose(found["paper"][3], biases, atol=1e-15)  # no in-edges at all
    assert found["author"].shape == (2, 6) and (found["author"] == 0).all()


@pytest.mark.parametrize("spare", [0, 20])  # with so many more rows than edges, edges are projected
@pytest.mark.parametrize("bipartite", [False, True])
def test_a_layer_is_that_of_pyg(bipartite, spare, x64):
    one, name = reference.alone(bipartite), f"alone {bipartite}"
    config = SMALL.replace(relations=(BY, WROTE))
    graph, shapes = modules.abstract(lambda: HeteroLayer(6, config, jnp.float64, rngs=nnx.Rngs(0)))
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes["layers"])
    weights = filled(own, config, np.float64, f"{name} ")
    nothing = Edges(*(np.zeros(0, kind) for kind in (np.int32, np.int32, bool)))
    present = {WROTE.key: jnp.array(True), BY.key: jnp.array(False)}
    source, target = one["edges"].astype(np.int32)
    order = np.argsort(target, kind="stable")
    edges = Edges(source[order], target[order], np.ones(16, bool))
    probe = reference.drawn(f"slope {name}", stored()[name].shape)

    @compiled
    def run(params, sources, targets):
        def f(params):
            both = jax.tree.map(lambda x: jnp.stack([jnp.zeros_like(x), x]), params)
            layer = states.merge(graph, {"layers": both}, {}, {})
            rows = {"paper": len(targets), "author": 0}
            h = {"paper": targets, "author": sources}
            out = layer(h, rows, {WROTE.key: edges, BY.key: nothing}, present)["paper"]
            return jnp.sum(out * probe), out

        return jax.grad(f, has_aux=True)(params)

    sources, targets = (one[end].astype(float) for end in ("sources", "targets"))
    sources = np.concatenate([sources, np.ones((spare, sources.shape[1]))])
    slopes, out = run(weights, sources, targets)
    np.testing.assert_allclose(out, stored()[name], atol=1e-12)
    agree(flatten_paths(slopes), {n.removeprefix(f"{name} "): v for n, v in
                                  told(f"{name} gradients").items()}, f"{name} ")  # fmt: skip


def agree(arrays, wanted, start="", off=1e-10):
    """Norms and projections of arrays by name are the wanted ones; `start` makes the script's names of ours."""
    found = reference.summary({start + name: np.asarray(x) for name, x in arrays.items()})
    assert arrays.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(
            found[start + name], values, rtol=off, atol=off / 10, err_msg=name
        )


# -- the model -------------------------------------------------------------------------------------


@functools.cache
def trained():
    """Thirty steps of Adam in float64: per step loss, logits and gradients; and the parameters they lead to.

    Samples take turns. In two of three a relation is absent, and all have padding among their rows.
    """
    adam, graph = optax.adam(reference.RATE), parts(WHOLE, jnp.float64)[0]

    @compiled
    def step(params, opt, sample, labels, weights):
        def f(params):
            logits = states.merge(graph, params, {}, {})(sample)
            total, weight = losses.weighted_xent(logits, labels, weights)
            return total / weight, logits

        (loss, logits), slopes = jax.value_and_grad(f, has_aux=True)(params)
        updates, opt = adam.update(slopes, opt)
        return optax.apply_updates(params, updates), opt, loss, logits, slopes

    params = parameters(WHOLE, np.float64)
    opt, found = adam.init(params), []
    for i in range(reference.STEPS):
        one = drawn(i % 3)
        params, opt, *new = step(params, opt, given(i % 3, WHOLE), one["labels"], one["weights"])
        found.append(jax.tree.map(np.asarray, new))
    return found, params


def test_logits_are_those_of_pyg(x64):
    for i in range(3):
        np.testing.assert_allclose(trained()[0][i][1], stored()[f"logits {i}"], atol=1e-10)


def test_gradients_are_those_of_pyg(x64):
    for i in range(3):
        agree(apart(trained()[0][i][2], WHOLE), told(f"gradients {i}"))


def test_thirty_steps_are_those_of_pyg(x64):
    found, params = trained()
    np.testing.assert_allclose([loss for loss, *_ in found], stored()["losses"], rtol=1e-10)
    agree(apart(params, WHOLE), told("trained"), off=1e-8)  # thirty steps of rounding


def test_what_no_seed_can_see_gets_no_gradient(x64):
    # the last layer reaches papers alone, the one before it no institutes
    blind = {"0": (), "1": ("institute",), "2": ("author", "institute", "fos")}
    absent = reference.ABSENT
    assert absent[1] == "" and absent[0].endswith("paper")
    for i in (0, 1):
        for name, slope in apart(trained()[0][i][2], WHOLE).items():
            if name.startswith("hetero") and name.endswith(("kernel", "bias")):
                layer, key = name.split("/")[1:4:2]
                if key == absent[i] or key.endswith(blind[layer]):
                    assert not slope.any(), name
                elif i == 1:
                    assert slope.any(), name


# -- trimming --------------------------------------------------------------------------------------


def test_trimming_changes_nothing(x64):
    """Sums of products may round their last bit."""
    params, sample = parameters(WHOLE, np.float64), given(0, WHOLE)
    trimmed, whole = (computed(WHOLE, jnp.float64, t)(params, sample) for t in (True, False))
    np.testing.assert_allclose(trimmed, whole, rtol=1e-14, atol=1e-14)


def test_trimming_spares_what_the_seeds_cannot_see(x64):
    sample = given(0, NOISY), jax.random.key(0)
    runs = [computed(NOISY, jnp.float64, trim) for trim in (True, False)]
    flops = [
        run.lower(parts(NOISY, jnp.float64)[1], *sample).cost_analysis()["flops"] for run in runs
    ]
    assert flops[0] < 0.75 * flops[1]


# -- several samples -------------------------------------------------------------------------------


def test_samples_beside_each_other_are_as_if_alone_but_for_what_is_absent():
    """A relation absent in one sample adds its bias there too, if another sample has an edge of it."""
    params, run = parameters(SMALL), computed(SMALL, jnp.float32)
    first, second = given(0, SMALL), given(2, SMALL)  # `rev_written_by` is absent in the second
    both = run(params, together(first, second))
    np.testing.assert_allclose(both[0], run(params, first), atol=1e-6)
    assert not np.allclose(both[1], run(params, second), atol=1e-2)
    # an edge into a paper that no seed can see
    real, target = (
        x.copy() for x in (second.edges[WROTE.key].real, second.edges[WROTE.key].target)
    )
    real[-1], target[-1] = True, sum(reference.ROWS["paper"]) - 1
    present = with_edges(second, WROTE.key, real=real, target=target)
    np.testing.assert_allclose(both[1], run(params, present), atol=1e-6)


@functools.cache
def on_mesh(text):
    """Logits and gradients in float64 of eight samples with dropout, split over a mesh."""
    mesh, config = meshes.make_mesh(text), NOISY.replace(relations=(CITES,))
    samples = together(*(given(i % 3, config) for i in range(8)))

    def loss(params, sample):
        model = states.merge(parts(config, jnp.float64)[0], params, {}, {})
        logits = model(sample, key=jax.random.key(5))
        return jnp.sum(logits * reference.drawn("probe", logits.shape)), logits

    with jax.set_mesh(mesh):
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
        placed = jax.device_put(samples, rows)
        found = compiled(jax.grad(loss, has_aux=True))(parameters(config, np.float64), placed)
    return jax.tree.map(np.asarray, found)


def test_a_mesh_computes_what_one_device_does(x64):
    one, many = on_mesh("data=1"), on_mesh("data=2,fsdp=4")
    np.testing.assert_allclose(many[1], one[1], rtol=1e-12, atol=1e-12)
    off = sum(((a - b) ** 2).sum() for a, b in zip(*map(jax.tree.leaves, (many[0], one[0]))))
    norm = sum((leaf**2).sum() for leaf in jax.tree.leaves(one[0]))
    assert norm > 0 and math.sqrt(off / norm) < 1e-12


# -- kinds of numbers ------------------------------------------------------------------------------


def test_bfloat16_follows_float32_and_features_may_be_narrow():
    params, sample = parameters(SMALL), given(0, SMALL)
    kinds = {"paper": jnp.float8_e4m3fn, "author": jnp.float16}
    stored = {name: x.astype(kinds[name]) for name, x in sample.features.items()}
    read = {name: x.astype(np.float32) for name, x in stored.items()}
    exact, wide, narrow = (
        computed(SMALL, dtype)(params, Sample(features, sample.edges, sample.reach))
        for dtype, features in (
            (jnp.float32, sample.features),
            (jnp.float32, read),
            (jnp.bfloat16, stored),
        )
    )
    assert narrow.dtype == jnp.float32
    off, rounded = (np.abs(x - wide).max() for x in (narrow, exact))
    assert 0 < off < 0.02 * np.abs(wide).max() < rounded


def test_dropout_is_drawn_in_training_alone(x64):
    params, sample = parameters(NOISY, np.float64), given(0, NOISY)
    run = computed(NOISY, jnp.float64)
    one, same, other = (run(params, sample, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)
    assert run.eval_shape(params, sample).shape == one.shape  # in evaluation no key is asked for
    with pytest.raises(UserError, match="dropout needs a key"):
        jax.eval_shape(lambda: build(NOISY)(sample))


def test_a_source_that_is_not_there_is_no_number():
    params, sample, run = parameters(SMALL), given(0, SMALL), computed(SMALL, jnp.float32)
    edges = sample.edges[CITES.key]
    assert edges.real[0] and not edges.real[-1]
    for at, lost in ((0, True), (-1, False)):
        source = edges.source.copy()
        source[at] = 1000
        logits = run(params, with_edges(sample, CITES.key, source=source))
        assert np.isnan(logits).any() == lost


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 0}, "heads is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"relations": (CITES, CITES)}, "'paper__cites__paper' is given twice"),
        ({"relations": (CITES, WROTE)}, "no relation leads to 'author'"),
        ({"labelled": "author", "relations": (CITES,)}, "no relation leads to 'author'"),
    ],
)
def test_what_makes_no_model_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        WHOLE.replace(**changes)


def refused(sample, message):
    with pytest.raises(UserError, match=message):
        computed(SMALL, jnp.float32).eval_shape(parts(SMALL)[1], sample)


def test_samples_that_do_not_fit_are_refused():
    sample = given(0, SMALL)
    features, edges, reach = sample.features, sample.edges, sample.reach
    for wrong, message in (
        (
            {**features, "paper": features["paper"][:, :5]},
            "features of 'paper' have the shape .21, 5",
        ),
        ({"paper": features["paper"]}, "features of 'author' have the shape of nothing"),
        (
            {**features, "author": features["author"][None]},
            "features of 'author' have the shape .1, 11",
        ),
    ):
        refused(Sample(wrong, edges, reach), message)
    less = with_edges(sample, BY.key, real=edges[BY.key].real[1:])
    refused(less, "real of 'paper__written_by__author'")
    for nodes, message in (
        ({"paper": reach.nodes["paper"]}, "nothing of nodes of 'author'"),
        ({**reach.nodes, "author": (0, 11)}, "given for 2 hops; 2 layers need 3"),
        ({**reach.nodes, "paper": (0, 13, 21)}, "no seeds; give 'paper' rows"),
    ):
        refused(Sample(features, edges, Reach(nodes, reach.edges)), message)
    with pytest.raises(UserError, match="never falls"):
        Reach({"paper": (3, 2)}, {})


def test_reach_is_a_key():
    one, same = (Reach({"a": [1, 2]}, {"b": counts}) for counts in ([3], (3,)))
    assert one == same and hash(one) == hash(same)
    assert one != Reach({"a": (1, 2)}, {"b": (4,)})
