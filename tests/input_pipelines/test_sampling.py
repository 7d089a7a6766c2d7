"""Samples of a graph: uniform, without replacement, each node once, and the same whoever asks."""

import concurrent.futures
import dataclasses
import doctest
import pickle

import numba
import numpy as np
import pytest
import sampling_toys

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import arrays, sampling, sampling_kernels
from mlperf_jax.input_pipelines.igbh.in_edges import InEdges
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sizes import Relation

CITES = "paper__cites__paper"
DESTINATIONS = 4000  # of `stars`


@pytest.fixture(scope="module")
def toy():
    return sampling_toys.toy()


def seeds_of(batch, count=12):
    return np.random.default_rng(batch).permutation(sampling_toys.NODES["paper"])[:count]


def as_lists(sample):
    return {
        field: {key: np.asarray(values).tolist() for key, values in getattr(sample, field).items()}
        for field in ("ids", "nodes", "source", "target", "edges")
    }


def stars(degree, fanout, relations=1, dtype=np.int32):
    """Every paper has the in-edges of authors 0 … degree - 1, in each of so many relations."""
    edges = np.tile(np.arange(degree, dtype=dtype), DESTINATIONS)
    indptr = np.arange(DESTINATIONS + 1) * degree
    return Sampler(
        {"paper": DESTINATIONS, "author": degree},
        [InEdges(Relation("author", f"r{i}", "paper"), indptr, edges) for i in range(relations)],
        fanouts=(fanout,),
    )


def chosen(sampler, number=0, **which):
    """Which authors each paper drew, bool [DESTINATIONS, degree]."""
    sample = sampler(np.arange(DESTINATIONS), **{"seed": 0, "batch": 0, **which})
    key = f"author__r{number}__paper"
    found = np.zeros((DESTINATIONS, sampler.nodes["author"]), int)
    np.add.at(found, (sample.target[key], sample.ids["author"][sample.source[key]]), 1)
    return found


@pytest.mark.parametrize(("seed", "batch"), [(0, 0), (0, 1), (7, 0), (2**64 - 1, 123_456_789_012)])
def test_plain_python_draws_the_same(toy, seed, batch):
    found = as_lists(toy(seeds_of(batch % 10), seed=seed, batch=batch))
    assert found == sampling_toys.plain(toy, seeds_of(batch % 10), seed, batch)
    assert found["edges"][CITES][0] < found["edges"][CITES][1] < found["edges"][CITES][2]


def test_dtypes_and_an_empty_type(toy):
    sample = toy(seeds_of(0).astype(np.uint32)[::-1], seed=0, batch=0)
    arrays = [*sample.ids.values(), *sample.source.values(), *sample.target.values()]
    assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
    assert sample.nodes["fos"] == (0, 0, 0, 0) and sample.edges["paper__topic__fos"] == (0, 0, 0)
    assert sample.ids["paper"][:12].tolist() == seeds_of(0)[::-1].tolist()


def test_each_node_is_numbered_once_and_expanded_at_the_hop_after_the_one_that_brought_it(toy):
    sample = toy(seeds_of(3), seed=3, batch=3)
    assert all(len(np.unique(found)) == len(found) for found in sample.ids.values())
    brought = {t: set(range(counts[0])) for t, counts in sample.nodes.items()}
    for hop, fanout in enumerate(toy.fanouts):
        new = {node_type: set() for node_type in toy.nodes}
        for edges in toy.relations:
            relation = edges.relation
            key, begin = relation.key, (0, *sample.edges[relation.key])[hop]
            targets = sample.target[key][begin : sample.edges[key][hop]]
            degrees = np.diff(edges.indptr)[sample.ids[relation.target]]
            wanted = [
                local
                for local in sorted(brought[relation.target])
                for _ in range(min(fanout, degrees[local]))
            ]
            assert targets.tolist() == wanted
            new[relation.source] |= set(sample.source[key][begin : sample.edges[key][hop]].tolist())
        before = {t: range(counts[hop]) for t, counts in sample.nodes.items()}
        brought = {t: new[t] - set(before[t]) for t in new}
        for node_type, counts in sample.nodes.items():
            assert brought[node_type] == set(range(counts[hop], counts[hop + 1]))


@pytest.mark.parametrize(("degree", "fanout"), [(16, 15), (40, 15), (1000, 5)])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_edge_is_as_likely_as_any_other(degree, fanout, dtype):
    found = chosen(stars(degree, fanout, dtype=dtype))
    assert found.max() == 1 and (found.sum(1) == fanout).all()
    share = fanout / degree
    # of draws without replacement: counts are correlated by -1 / (degree - 1)
    square = ((found.sum(0) - DESTINATIONS * share) ** 2).sum() / (share * (1 - share))
    square *= (degree - 1) / degree / DESTINATIONS
    freedom = degree - 1
    assert abs(square - freedom) < 3.5 * np.sqrt(2 * freedom)


def test_every_subset_is_as_likely_as_any_other():
    found = chosen(stars(6, 3)) @ (1 << np.arange(6))
    counts = np.unique(found, return_counts=True)[1]
    assert len(counts) == 20
    expected = DESTINATIONS / 20
    assert 5.4 < ((counts - expected) ** 2 / expected).sum() < 43.8  # 0.1 and 99.9 % of 19


def test_seeds_batches_relations_and_nodes_draw_apart():
    sampler = stars(40, 15, relations=2)
    first = chosen(sampler)
    np.testing.assert_array_equal(first, chosen(sampler))
    others = {
        "seed": chosen(sampler, seed=1),
        "batch": chosen(sampler, batch=1),
        "relation": chosen(sampler, number=1),
        "node": np.roll(first, 1, 0),
        "hash": chosen(sampler, seed=1, batch=2**64 - 1),
    }
    for what, other in others.items():
        common = (first * other).sum(1)  # hypergeometric: 15 of 40 twice
        deviation = np.sqrt(15 * 15 / 40 * (25 / 40) * (25 / 39) * DESTINATIONS)
        assert abs(common.sum() - DESTINATIONS * 15 * 15 / 40) < 4 * deviation, what


def test_an_edge_that_is_there_twice_is_two_edges():
    # node 0: itself twice, as `cites` has it of an isolated paper; node 1: one source nine times, another once
    lists = [[0, 0], [2] * 9 + [3], [], []]
    sampler = Sampler({"paper": 4}, [sampling_toys.relation(lists)], fanouts=(2,))
    sample = sampler(np.array([0]), seed=0, batch=0)
    assert sample.ids["paper"].tolist() == [0]
    assert sample.source[CITES].tolist() == sample.target[CITES].tolist() == [0, 0]
    twos = [
        (sampler(np.array([1]), seed=0, batch=batch).nodes["paper"][1] == 2) for batch in range(500)
    ]
    assert abs(np.mean(twos) - 0.8) < 4 * np.sqrt(0.16 / 500)  # both of source 2: 9 / 10 x 8 / 9


def test_the_order_and_the_threads_of_the_batches_do_not_matter(toy):
    def batch(number):
        return as_lists(toy(seeds_of(number), seed=1, batch=number))

    alone = [batch(number) for number in range(24)]
    order = np.random.default_rng(0).permutation(24).tolist()
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        found = dict(zip(order, pool.map(batch, order)))
    assert [found[number] for number in range(24)] == alone
    again = pickle.loads(pickle.dumps(toy))
    assert as_lists(again(seeds_of(5), seed=1, batch=5)) == alone[5]


def test_what_lies_in_files_is_read_as_arrays_are(toy, tmp_path):
    """And travels to other processes by its name."""
    relations = []
    for edges in toy.relations:
        mapped = {}
        for name in ("indptr", "indices"):
            path, array = tmp_path / f"{edges.relation.key}_{name}.npy", getattr(edges, name)
            np.save(path, array)
            mapped[name] = arrays.open_npy(path, array.shape, (array.dtype,))
        relations.append(dataclasses.replace(edges, **mapped))
    sampler = dataclasses.replace(toy, relations=relations)
    pickled = pickle.dumps(sampler)
    assert len(pickled) < 4000
    wanted = as_lists(toy(seeds_of(0), seed=0, batch=0))
    for found in (sampler, pickle.loads(pickled)):
        assert as_lists(found(seeds_of(0), seed=0, batch=0)) == wanted


def test_numbers_are_those_of_a_dictionary():
    rng = np.random.default_rng(0)
    # more than the first table holds; neighbours, large ids and repetitions
    pieces = [
        rng.integers(0, 60_000, 40_000),
        np.arange(20_000),
        np.concatenate([2**31 - 2 - rng.integers(0, 9000, 9000), [2**31 - 2, 0]]),
    ]
    slots, ids = sampling_kernels.table()
    rooms, count, known = {len(ids)}, 0, {}
    for piece in pieces:
        piece = piece.astype(np.int32)
        found, slots, ids, count = sampling_kernels.number(piece, slots, ids, count)
        assert found.tolist() == [known.setdefault(node, len(known)) for node in piece.tolist()]
        rooms.add(len(ids))
    assert ids[:count].tolist() == list(known)
    assert len(rooms) > 1 and count <= len(ids) == len(slots) // 2


def test_kernels_compile_where_no_folder_can_keep_them(monkeypatch):
    compiler = numba.njit

    def refusing(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compiler(**options)

    monkeypatch.setattr(numba, "njit", refusing)
    assert sampling_kernels._compiled(lambda x: x + 1)(1) == 2


@pytest.mark.parametrize(
    ("seeds", "sentence"),
    [
        ([3, 5, 3], r"batch 4: seed 3 is there twice: give each paper once"),
        ([3, 300], r"seed 300 is no paper: there are 300, from 0"),
        ([3, -1], r"seed -1 is no paper"),
        ([0.5], r"seeds are float64 of shape \(1,\); give a vector of integers"),
        ([[1, 2]], r"seeds are int64 of shape \(1, 2\)"),
    ],
)
def test_seeds_that_are_refused(toy, seeds, sentence):
    with pytest.raises(UserError, match=sentence):
        toy(np.array(seeds), seed=0, batch=4)


def changed(**fields):
    return [dataclasses.replace(sampling_toys.relation([[1], [0, 0]]), **fields)]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"relations": changed(relation=Relation("book", "cites", "paper"))},
            "book__cites__paper: the graph has no book nodes",
        ),
        ({"relations": changed(relation=Relation("paper", "a__b", "paper"))}, "'a__b' is no name"),
        ({"relations": changed(indptr=np.zeros(3, np.int32))}, "indptr is int32 .* of int64"),
        ({"relations": changed(indices=np.zeros((3, 1), np.int32))}, r"indices is .* \(3, 1\)"),
        ({"relations": changed(indices=np.zeros(6, np.int32)[::2])}, "give a contiguous vector"),
        ({"relations": changed(indptr=np.array([0, 3]))}, "2 values; 2 paper nodes take 3"),
        ({"relations": changed(indices=np.zeros(2, np.int32))}, "from 0 to 3; .* the 2 edges"),
        ({"relations": changed() * 2}, f"{CITES} is there twice"),
        ({"seed_type": "fos"}, "seeds are fos nodes; the graph has only paper"),
        ({"fanouts": (15, 0)}, r"fanouts are \(15, 0\)"),
        ({"fanouts": ()}, "give one for each hop"),
        ({"nodes": {"paper": 2**31}}, "2,147,483,648 paper nodes: a type has between 0 and"),
    ],
)
def test_graphs_that_are_refused(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        Sampler(**{"nodes": {"paper": 2}, "relations": changed(), **fields})


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"indices": np.array([1, 2, 0])}, "paper 1 come from a node that is none of 2 paper"),
        ({"indices": np.array([1, -1, 0])}, "paper 1 come from a node that is none of 2 paper"),
        ({"indptr": np.array([0, -1, 3])}, "paper 0 are said to be 0 to -1 of 3"),
        ({"indptr": np.array([0, 4, 3])}, "paper 0 are said to be 0 to 4 of 3"),
        ({"indptr": np.array([0, 2**40, 3])}, "paper 0 are said to be 0 to 1,099,511,627,776"),
    ],
)
def test_damage_that_a_sample_comes_upon(fields, sentence):
    sampler = Sampler({"paper": 2}, changed(**fields))
    with pytest.raises(
        UserError, match=f"{CITES}: the in-edges of {sentence}.*remove the graph.s folder csc"
    ):
        sampler(np.array([0, 1]), seed=0, batch=0)


def test_examples():
    assert doctest.testmod(sampling).failed == 0
