"""In-edges by destination: every relation against a slow twin, killed and taken up, bad edges."""

import collections
import json
import os

import igbh_toys
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.igbh import csc, graph
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sizes import CITES, STORED

SIZE = igbh_toys.toy_size()
RELATIONS = SIZE.relations


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Nothing waits for the disk, and edges come in many pieces."""
    monkeypatch.setattr(os, "fsync", lambda file: None)
    monkeypatch.setattr(csc, "_CHUNK", 7)


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> graph.Graph:
    """A graph whose edges nobody may change."""
    folder = tmp_path_factory.mktemp("igbh")
    igbh_toys.write(folder)
    return graph.open_graph(folder, SIZE)


@pytest.fixture(scope="module")
def built(toy):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csc, "_CHUNK", 7)
        return csc.build(toy, silent)


@pytest.fixture
def own(tmp_path) -> graph.Graph:
    """A graph that a test may spoil."""
    igbh_toys.write(tmp_path)
    return graph.open_graph(tmp_path, SIZE)


def stored(relation) -> np.ndarray:
    """The edges of its file."""
    forward = next(r for r in STORED if relation in (r, r.reversed))
    return igbh_toys.edges_of(SIZE, forward)


def lists(found: csc.InEdges) -> list[list[int]]:
    return [found.of(node).tolist() for node in range(len(found.indptr) - 1)]


# -- against the slow twin ---------------------------------------------------------------------------


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.key)
def test_in_edges_are_the_slow_twins(built, relation):
    found = built[relation]
    assert lists(found) == igbh_toys.slow_in_edges(SIZE, relation, stored(relation))
    assert found.indptr.array.dtype == np.int64
    assert found.indices.array.dtype == np.int32
    assert found.indices.array.max() < SIZE.nodes[relation.source]


def test_there_are_eleven_relations_and_nothing_else(toy, built):
    assert len(built) == 11
    folder = toy.folder / csc.FOLDER
    assert {path.name for path in folder.iterdir()} == {r.key for r in RELATIONS}
    assert {path.name for path in toy.folder.iterdir()} == {"processed", csc.FOLDER}
    np.testing.assert_array_equal(
        np.load(folder / CITES.key / "indices.npy"), built[CITES].indices.array
    )


def test_reverse_relations_are_the_same_edges(built):
    for relation in STORED[1:]:
        forward, back = lists(built[relation]), lists(built[relation.reversed])
        ahead = collections.Counter((a, b) for b, begin in enumerate(forward) for a in begin)
        assert ahead == collections.Counter((a, b) for a, begin in enumerate(back) for b in begin)


def test_small_layouts_have_seven_and_int32_or_fortran_edges_change_nothing(tmp_path):
    size = igbh_toys.toy_size(raw=False)
    place = igbh_toys.write(tmp_path, size, np.int32)
    path = place / CITES.key / "edge_index.npy"
    np.save(path, np.asfortranarray(np.load(path)))
    found = csc.build(graph.open_graph(tmp_path, size), silent)
    assert len(found) == 7
    for relation, edges in found.items():
        assert lists(edges) == igbh_toys.slow_in_edges(size, relation, stored(relation))


# -- cites -------------------------------------------------------------------------------------------


def cites_of(data_dir, edges) -> csc.InEdges:
    place = igbh_toys.write(data_dir)
    np.save(place / CITES.key / "edge_index.npy", np.array(edges, np.int64).reshape(-1, 2))
    return csc.build(graph.open_graph(data_dir, SIZE), silent)[CITES]


def test_cites_goes_both_ways_and_keeps_what_stands_twice(tmp_path):
    found = cites_of(tmp_path, [(2, 0), (0, 2), (2, 0), (5, 5), (1, 1), (9, 9)])
    assert lists(found)[:4] == [[2, 2, 2, 0, 0], [1, 1], [0, 0, 0, 2, 2], []]


def test_an_isolated_paper_below_the_largest_has_degree_two_and_above_it_none(built):
    edges = stored(CITES)
    different = edges[edges[:, 0] != edges[:, 1]]
    degrees = np.diff(built[CITES].indptr.array)
    isolated = set(range(different.max())) - set(different.ravel().tolist())
    assert 11 in isolated
    assert {degrees[paper] for paper in isolated} == {2}
    assert (degrees[different.max() + 1 :] == 0).all()
    assert different.max() < SIZE.nodes["paper"] - 1 == edges.max(), "the last cites itself alone"
    assert len(built[CITES].indices) == 2 * len(different) + 2 * (different.max() + 1)


@pytest.mark.parametrize("edges", [[], [(3, 3), (59, 59)]])
def test_without_edges_between_two_papers_nobody_has_itself(tmp_path, edges):
    assert not any(lists(cites_of(tmp_path, edges)))


# -- taken up, and refused ---------------------------------------------------------------------------


def test_a_killed_build_goes_on_with_the_next_relation(own, monkeypatch):
    said, publish = [], building.publish

    def killed(part, path):
        if path.name == RELATIONS[3].key:
            raise KeyboardInterrupt
        publish(part, path)

    monkeypatch.setattr(building, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        csc.build(own, said.append)
    with pytest.raises(
        UserError, match=f"lacks 8 of 11 relations, the first is {RELATIONS[3].key}"
    ):
        csc.open_edges(own)
    # what a SIGKILL leaves
    left = own.folder / csc.FOLDER / f"incomplete.{RELATIONS[3].key}"
    left.mkdir()
    (left / "indptr.npy").write_bytes(b"half")
    monkeypatch.setattr(building, "publish", publish)
    said.clear()
    found = csc.build(own, said.append)
    assert [text.split()[1] for text in said] == [f"{r.key}:" for r in RELATIONS[3:]]
    assert not left.exists()
    assert lists(found[CITES]) == igbh_toys.slow_in_edges(SIZE, CITES, stored(CITES))
    said.clear()
    csc.build(own, said.append)
    assert said == []


@pytest.mark.parametrize(
    ("relation", "row", "edge", "words"),
    [
        (STORED[0], 311, (3, 60), "edge 311: it names paper 60, and there are 60"),
        (STORED[0], 20, (-1, 3), "edge 20: it names paper -1"),
        (STORED[1], 129, (60, 3), "edge 129: it names paper 60"),
        (STORED[1], 5, (3, 45), "edge 5: it names author 45, and there are 45"),
        (STORED[5], 0, (3, -7), "edge 0: it names conference -7"),
    ],
)
def test_edges_beyond_the_nodes_are_refused(own, relation, row, edge, words):
    path = own.edges[relation].path
    edges = np.load(path)
    edges[row] = edge
    np.save(path, edges)
    with pytest.raises(UserError, match=words) as error:
        csc.build(own, silent)
    assert path in str(error.value)
    assert not (own.folder / csc.FOLDER / relation.key).exists()


@pytest.mark.parametrize("relation", [STORED[1], STORED[1].reversed], ids=lambda r: r.name)
def test_reverse_relations_name_the_same_bad_edge(own, tmp_path, relation):
    edges = np.load(own.edges[STORED[1]].path)
    edges[8] = (12, 99)
    np.save(own.edges[STORED[1]].path, edges)
    part = tmp_path / "part"
    part.mkdir()
    with pytest.raises(UserError, match="edge 8: it names author 99"):
        csc.build_relation(own, relation, part)


def test_other_edges_need_another_build(own, tmp_path):
    csc.build(own, silent)
    path = own.edges[STORED[3]].path
    np.save(path, np.load(path)[:-1])
    other = graph.open_graph(tmp_path, SIZE)
    for call in (lambda: csc.build(other, silent), lambda: csc.open_edges(other)):
        with pytest.raises(
            UserError, match=r"topic__fos was built from .*150.* the graph has .*149"
        ):
            call()


def test_edges_that_were_changed_since_are_others(own, tmp_path):
    csc.build(own, silent)
    path = own.edges[STORED[3]].path
    edges = np.load(path)
    np.save(path, edges[::-1])
    other = graph.open_graph(tmp_path, SIZE)
    for call in (lambda: csc.build(other, silent), lambda: csc.open_edges(other)):
        with pytest.raises(UserError, match=r"topic__fos was built from .* and the graph has "):
            call()
    np.save(path, edges)
    csc.open_edges(graph.open_graph(tmp_path, SIZE))
    note = own.folder / csc.FOLDER / STORED[3].key / "settings.json"
    settings = json.loads(note.read_text())
    del settings["file"]  # built before there were fingerprints
    note.write_text(json.dumps(settings))
    csc.open_edges(own)


@pytest.mark.parametrize("name", ["indices.npy", "indptr.npy", "settings.json"])
def test_what_is_damaged_is_built_again(own, name):
    csc.build(own, silent)
    path = own.folder / csc.FOLDER / CITES.key / name
    whole, said = path.read_bytes(), []
    (path.parent / "mine.txt").write_text("kept")
    path.write_bytes(whole[:20])
    csc.build(own, said.append)
    assert path.read_bytes() == whole and len(said) == 1
    assert (path.parent / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("indices.npy", lambda path: os.truncate(path, path.stat().st_size - 4), "is cut short"),
        ("indptr.npy", lambda path: np.save(path, np.load(path)[:-1]), r"\[61\]"),
        ("indptr.npy", lambda path: np.save(path, np.load(path) + 1), "counts from 1"),
        ("indptr.npy", lambda path: np.save(path, np.load(path).astype("i4")), "holds int32"),
        ("settings.json", lambda path: path.write_text("{"), "is damaged"),
        ("settings.json", lambda path: path.unlink(), "is damaged"),
        ("indices.npy", lambda path: path.unlink(), "indices.npy is missing"),
    ],
)
def test_damaged_builds_are_refused(own, name, spoil, words):
    csc.build(own, silent)
    place = own.folder / csc.FOLDER / CITES.key
    spoil(place / name)
    with pytest.raises(UserError, match=words) as error:
        csc.open_edges(own)
    assert str(place) in str(error.value)


def test_room_is_asked_for_before_anything_is_built(own, monkeypatch):
    asked = []
    monkeypatch.setattr(building, "check_room", lambda folder, need: asked.append(need))
    csc.build(own, silent)
    used = [path.stat().st_size for path in own.folder.glob(f"{csc.FOLDER}/*/*.npy")]
    assert sum(used) - 128 * len(used) <= asked[0] <= 1.5 * sum(used)


def test_a_sampler_takes_what_was_built(toy, built):
    """Every edge of a sample is one of the relation's, and all relations are met."""
    sample = Sampler(toy.size.nodes, [*built.values()])(np.arange(6), seed=0, batch=0)
    for relation, edges in built.items():
        ids, key = sample.ids, relation.key
        ends = ids[relation.source][sample.source[key]], ids[relation.target][sample.target[key]]
        assert len(ends[0])
        for source, target in zip(*ends):
            assert source in edges.of(target)
