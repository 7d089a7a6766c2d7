"""Samples in one shape: room, padding, and what is dropped where there is none."""

import dataclasses
import doctest
import itertools

import numpy as np
import pytest
import sampling_toys

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import sampling_shape
from mlperf_jax.input_pipelines.igbh.sampling_shape import Sample, Shape, ends, measured, pad

CITES = "paper__cites__paper"
HOPS = 3


@pytest.fixture(scope="module")
def toy():
    return sampling_toys.toy()


@pytest.fixture(scope="module")
def samples(toy):
    rng = np.random.default_rng(0)
    return [toy(rng.permutation(300)[:10], seed=0, batch=batch) for batch in range(12)]


@pytest.fixture(scope="module")
def shape(samples):
    return measured(samples)


def shrunk(shape, nodes=1.0, edges=1.0):
    """A shape with a share of the room, but for the seeds'."""
    return Shape(
        {t: (c[0], *(max(c[0], int(nodes * n)) for n in c[1:])) for t, c in shape.nodes.items()},
        {r: tuple(int(edges * n) for n in c) for r, c in shape.edges.items()},
    )


def sums(ids, source, target, mask, nodes, edges):
    """Three layers that add up what in-edges bring, each over what the next can see: the paper rows of the last."""
    h = {t: np.float64(1) + np.sin(found) for t, found in ids.items()}
    for hop in range(HOPS, 0, -1):
        rows = {t: counts[hop - 1] for t, counts in nodes.items()}
        new = {t: h[t][:count].copy() for t, count in rows.items()}
        for key, counts in edges.items():
            known = slice(0, counts[hop - 1])
            brought = np.where(mask[key][known], h[ends(key)[0]][source[key][known]], 0)
            np.add.at(new[ends(key)[1]], target[key][known], brought)
        h = new
    return h["paper"]


def layers(padded, shape):
    return sums(
        padded.ids, padded.source, padded.target, padded.edge_mask, shape.nodes, shape.edges
    )


def layers_of(sample):
    mask = {key: np.ones(len(found), bool) for key, found in sample.source.items()}
    return sums(sample.ids, sample.source, sample.target, mask, sample.nodes, sample.edges)


def test_room_is_the_mean_and_six_deviations():
    def counts(paper, edges):
        return Sample({}, {"paper": (5, *paper), "fos": (0, 0, 0)}, {}, {}, {CITES: edges})

    found = measured([counts((9, 21), (10, 15)), counts((11, 21), (14, 21))], multiple=1)
    # papers: 10 + 6 √2, 21; edges: 12 + 6 √8, and in the second hop 5 and 7: 6 + 6 √2
    assert found == Shape({"paper": (5, 19, 21), "fos": (0, 0, 0)}, {CITES: (29, 29 + 15)})
    found = measured([counts((9, 21), (10, 15)), counts((11, 21), (14, 21))], 2, multiple=8)
    assert found.nodes["paper"] == (5, 16, 24) and found.edges[CITES] == (24, 24 + 16)
    # what falls after a hop of great spread is held at the room of that hop
    found = measured([counts((0, 21), (1, 2)), counts((20, 21), (1, 2))], multiple=1)
    assert found.nodes["paper"][1] == found.nodes["paper"][2] == 95


def test_a_shape_says_its_seeds(shape):
    assert (shape.seed_type, shape.seeds) == ("paper", 10)


@pytest.mark.parametrize("seeds", [10, 3, 0])
def test_padding_keeps_the_sample(toy, shape, seeds):
    sample = toy(np.arange(100, 100 + seeds), seed=0, batch=0)
    padded, dropped = pad(sample, shape)
    assert dropped.total == 0
    assert padded.seed_mask.tolist() == [i < seeds for i in range(10)]
    for node_type, room in shape.nodes.items():
        n, mask = sample.nodes[node_type][-1], padded.node_mask[node_type]
        assert padded.ids[node_type].shape == mask.shape == (room[-1],)
        assert mask.tolist() == [i < n for i in range(room[-1])]
        np.testing.assert_array_equal(padded.ids[node_type][:n], sample.ids[node_type])
        assert not padded.ids[node_type][n:].any()
    for key, room in shape.edges.items():
        mask = padded.edge_mask[key]
        for found, whole in (
            (padded.source[key], sample.source[key]),
            (padded.target[key], sample.target[key]),
        ):
            assert found.shape == mask.shape == (room[-1],) and found.dtype == np.int32
            np.testing.assert_array_equal(found[mask], whole)
        hops = [int(part.sum()) for part in np.split(mask, room[:-1])]
        assert hops == np.diff(sample.edges[key], prepend=0).tolist()


@pytest.mark.parametrize(("nodes", "edges"), [(1, 1), (0.3, 1), (1, 0.4), (0.4, 0.5)])
def test_no_index_is_outside_of_what_a_layer_sees_and_targets_ascend(samples, shape, nodes, edges):
    small = shrunk(shape, nodes, edges)
    for sample in samples:
        padded, _ = pad(sample, small)
        for key, room in small.edges.items():
            source, target = ends(key)
            assert (np.diff(padded.target[key]) >= 0).all()
            for hop, stop in enumerate(room):
                assert (padded.source[key][:stop] < small.nodes[source][hop + 1]).all()
                assert (padded.target[key][:stop] < small.nodes[target][hop]).all()


def test_layers_over_what_the_seeds_see_are_those_over_all(toy, samples, shape):
    for sample in samples:
        everything = sums(
            sample.ids,
            sample.source,
            sample.target,
            {key: np.ones(len(found), bool) for key, found in sample.source.items()},
            {t: (c[-1],) * len(c) for t, c in sample.nodes.items()},
            {r: (c[-1],) * len(c) for r, c in sample.edges.items()},
        )[:10]
        np.testing.assert_allclose(layers_of(sample), everything, rtol=1e-12)
        np.testing.assert_allclose(layers(pad(sample, shape)[0], shape), everything, rtol=1e-12)
    few = toy(np.arange(4), seed=0, batch=0)
    found = layers(pad(few, shape)[0], shape)
    np.testing.assert_allclose(found[:4], layers_of(few), rtol=1e-12)


def cut(sample, shape):
    """The rule, node by node and edge by edge: (type, id) and (relation, source id, target id) that stay."""
    nodes, edges = {}, {}
    for node_type, counts in sample.nodes.items():
        nodes[node_type] = []
        for first, stop, room in zip((0, *counts), counts, shape.nodes[node_type]):
            for local in range(first, stop):
                if len(nodes[node_type]) < room:
                    nodes[node_type].append(int(sample.ids[node_type][local]))
    for key, counts in sample.edges.items():
        source, target = ends(key)
        edges[key] = []
        rooms = np.diff(shape.edges[key], prepend=0)
        for first, stop, room in zip((0, *counts), counts, rooms):
            held = 0
            for edge in range(first, stop):
                a = int(sample.ids[source][sample.source[key][edge]])
                b = int(sample.ids[target][sample.target[key][edge]])
                if a in nodes[source] and b in nodes[target] and held < room:
                    edges[key].append((a, b))
                    held += 1
    return nodes, edges


@pytest.mark.parametrize(("nodes", "edges"), [(0.3, 1), (1, 0.4), (0.4, 0.5)])
def test_what_has_no_room_is_dropped_by_the_rule_and_counted(samples, shape, nodes, edges):
    small = shrunk(shape, nodes, edges)
    for sample in samples[:4]:
        padded, dropped = pad(sample, small)
        kept_nodes, kept_edges = cut(sample, small)
        ids = {t: found[padded.node_mask[t]] for t, found in padded.ids.items()}
        assert {t: found.tolist() for t, found in ids.items()} == kept_nodes
        for key, wanted in kept_edges.items():
            source, target = ends(key)
            mask = padded.edge_mask[key]
            found = zip(
                ids[source][padded.source[key][mask]].tolist(),
                ids[target][padded.target[key][mask]].tolist(),
            )
            assert list(found) == wanted
            assert dropped.edges[key] == sample.edges[key][-1] - len(wanted)
        for node_type, wanted in kept_nodes.items():
            assert dropped.nodes[node_type] == sample.nodes[node_type][-1] - len(wanted)
        assert dropped.total > 0
        again = pad(sample, small)[0]
        for one, other in zip(padded[1:], again[1:]):
            assert all((one[key] == other[key]).all() for key in one)


def test_what_stays_is_what_the_layers_sum(samples, shape):
    """Where only edges of the last hop are dropped, the sums miss exactly their sources."""
    sample = samples[0]
    first = sample.edges[CITES][1]
    room = {**shape.edges, CITES: (*shape.edges[CITES][:2], shape.edges[CITES][1] + 2)}
    padded, dropped = pad(sample, Shape(shape.nodes, room))
    held = {**sample.source, CITES: sample.source[CITES][: first + 2]}
    less = dataclasses.replace(
        sample,
        source=held,
        target={**sample.target, CITES: sample.target[CITES][: first + 2]},
        edges={**sample.edges, CITES: (*sample.edges[CITES][:2], first + 2)},
    )
    found = layers(padded, Shape(shape.nodes, room))
    np.testing.assert_allclose(found, layers_of(less), rtol=1e-12)
    assert not np.allclose(found, layers_of(sample))
    assert dropped.edges[CITES] == dropped.total == sample.edges[CITES][2] - first - 2


def test_a_padded_sample_is_a_pytree_of_few_shapes(samples, shape):
    import jax

    one, other = (jax.tree.map(lambda a: (a.shape, a.dtype), pad(s, shape)[0]) for s in samples[:2])
    assert one == other and len(jax.tree.leaves(pad(samples[0], shape)[0])) == 1 + 2 * 4 + 3 * 6


GOOD = {"paper": (4, 8)}


@pytest.mark.parametrize(
    ("nodes", "edges", "sentence"),
    [
        ({"paper": (4, 3)}, {}, r"paper has \(4, 3\); give 2 numbers, none below"),
        ({"paper": (4, 8), "fos": (0, 1, 2)}, {}, r"fos has \(0, 1, 2\); give 2 numbers"),
        (GOOD, {CITES: (3, 4)}, r"cites__paper has \(3, 4\); give 1 numbers"),
        (GOOD, {CITES: (-1,)}, "none below the one before"),
        ({"paper": (0, 8)}, {}, "one type has room before the first hop"),
        ({"paper": (4, 8), "fos": (1, 1)}, {}, "one type has room before the first hop"),
        ({}, {}, "one type has room before the first hop"),
        (GOOD, {"fos__r__paper": (3,)}, "has room for edges of hop 1, but fos and paper have none"),
        ({**GOOD, "fos": (0, 3)}, {"paper__r__fos": (3,)}, "paper and fos have none"),
    ],
)
def test_shapes_that_are_refused(nodes, edges, sentence):
    with pytest.raises(UserError, match=sentence):
        Shape(nodes, edges)


def test_samples_that_are_refused(toy, samples, shape):
    many = toy(np.arange(11), seed=0, batch=0)
    with pytest.raises(
        UserError, match="11 paper seeds in a shape for 10: measure one for as many"
    ):
        pad(many, shape)
    with pytest.raises(UserError, match="samples of 10 to 11 seeds"):
        measured([*samples, many])
    with pytest.raises(UserError, match="1 samples tell no deviation"):
        measured(itertools.islice(samples, 1))
    two = sampling_toys.toy(fanouts=(2, 2))(np.arange(3), seed=0, batch=0)
    with pytest.raises(UserError, match="the sample has 2 hops, the shape 3"):
        pad(two, shape)
    with pytest.raises(UserError, match=r"the sample has types .*, the shape paper"):
        pad(two, Shape({"paper": (4, 8, 9)}, {}))
    with pytest.raises(
        UserError, match=r"the sample has relations .*, the shape paper__cites__pap"
    ):
        pad(two, Shape({t: (4 * (t == "paper"), 8, 9) for t in two.ids}, {CITES: (1, 2)}))


def test_examples():
    assert doctest.testmod(sampling_shape).failed == 0
