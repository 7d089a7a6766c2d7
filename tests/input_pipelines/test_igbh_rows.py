"""Rows of batches: whose seeds they take, what their arrays hold; building, checking, and the planted graph."""

import dataclasses
import os
import pathlib
import pickle

import igbh_toys
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import Igbh, arrays, csc, features, planted, rooms, split
from mlperf_jax.input_pipelines.igbh.sampling import Sampler
from mlperf_jax.input_pipelines.igbh.sampling_shape import mean_of, measured
from mlperf_jax.input_pipelines.igbh.sizes import CLASSES, SIZES, Size

PAPERS, LABELLED = 500, 450
TRAIN, VALIDATION = split.sizes(LABELLED)
SIZE = Size(
    "toy", {**igbh_toys.NODES, "paper": PAPERS}, dict.fromkeys(CLASSES, LABELLED), raw=True, width=8
)
SEEDS, BATCH, FANOUTS = 8, 36, (3, 2)  # rows of 8, 8, 8, 8 and 4; the last batch has 18 seeds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    place = tmp_path_factory.mktemp("igbh")
    igbh_toys.write(place, SIZE)
    Igbh(SIZE, None, BATCH, 19, feature_dtype="float16").build(place)  # pyright: ignore[reportArgumentType]
    return str(place)


@pytest.fixture(scope="module")
def sampler(folder) -> Sampler:
    opened = Igbh(SIZE, None, BATCH, 19, feature_dtype="float16").graph(folder)  # pyright: ignore[reportArgumentType]
    return Sampler(SIZE.nodes, tuple(csc.open_edges(opened).values()), fanouts=FANOUTS)


@pytest.fixture(scope="module")
def samples(sampler):
    return [sampler(np.arange(i, i + SEEDS), seed=0, batch=i) for i in range(60)]


@pytest.fixture(scope="module")
def igbh(samples) -> Igbh:
    return Igbh(SIZE, measured(samples).times(2), BATCH, 19, FANOUTS, "float16")


def batches(igbh, folder, seed=3, **settings):
    return igbh.train(folder).batched(BATCH, seed=seed, **settings)


def filled(batch) -> np.ndarray:
    """Where there is a seed."""
    return (batch["labels"] >= 0) & batch["mask"][:, None]


def seeds_of(batch) -> list[int]:
    """The seeds' numbers, which are the first ids of papers."""
    real = filled(batch)
    return batch["ids/paper"][:, :SEEDS][real].tolist()


# -- order -----------------------------------------------------------------------------------------


def test_an_epoch_holds_each_seed_once_and_its_last_batch_is_short(igbh, folder):
    steps, training = -(-TRAIN // BATCH), batches(igbh, folder)
    wanted = set(split.papers(LABELLED)[0].tolist())
    orders = []
    for epoch in range(2):
        parts = [seeds_of(training[epoch * steps + step]) for step in range(steps)]
        assert [len(part) for part in parts] == [BATCH] * (steps - 1) + [
            TRAIN - (steps - 1) * BATCH
        ]
        orders.append([seed for part in parts for seed in part])
        assert set(orders[-1]) == wanted and len(orders[-1]) == TRAIN
    assert orders[0] != orders[1], "reshuffled"
    assert seeds_of(training[0]) != seeds_of(batches(igbh, folder, seed=4)[0])


def test_rows_are_filled_one_after_the_other_and_masked(igbh, folder):
    training, last = batches(igbh, folder), -(-TRAIN // BATCH) - 1
    for number, counts in ((0, [8, 8, 8, 8, 4]), (last, [8, 8, 2, 0, 0])):
        batch = training[number]
        assert filled(batch).sum(1).tolist() == counts
        np.testing.assert_array_equal(batch["mask"], np.array(counts) > 0)


def test_a_row_is_the_same_whoever_reads_it(igbh, folder):
    whole, part = batches(igbh, folder), batches(igbh, folder, share=lambda rows: (2, 5))
    for number in (0, 7, 40):
        one, other = whole[number], part[number]
        for name in one:
            np.testing.assert_array_equal(one[name][2:], other[name], err_msg=name)
    streamed = whole.stream(40, threads=2)
    copied = pickle.loads(pickle.dumps(igbh.train(folder))).batched(BATCH, seed=3)
    for found in (next(streamed), copied[40]):
        for name, values in whole[40].items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
    streamed.close()


def test_evaluation_holds_the_validation_in_order_and_never_varies(igbh, folder):
    found = [
        list(igbh.validation(folder).batched(5, seed=seed).stream(threads=0)) for seed in (0, 9)
    ]
    assert [seed for batch in found[0] for seed in seeds_of(batch)] == split.papers(LABELLED)[
        1
    ].tolist()
    for one, other in zip(*found, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    training = Igbh(SIZE, igbh.shape, VALIDATION, 19, FANOUTS, "float16").train(folder)
    assert training.batched(VALIDATION)[0].keys() == found[0][0].keys()


# -- what a row holds ------------------------------------------------------------------------------


def test_every_edge_of_a_row_is_one_of_the_graph(igbh, folder):
    opened, batch = igbh.graph(folder), batches(igbh, folder)[1]
    labels = np.fromfile(opened.labels.path, "<f4")
    papers = np.array(seeds_of(batch))
    np.testing.assert_array_equal(batch["labels"][filled(batch)], labels[papers])
    assert not batch["dropped"].any()
    for relation, edges in csc.open_edges(opened).items():
        key, seen = relation.key, 0
        for row in range(4):
            ids = [batch[f"ids/{kind}"][row] for kind in (relation.source, relation.target)]
            real = batch[f"real/{key}"][row]
            for source, target in zip(
                batch[f"source/{key}"][row][real], batch[f"target/{key}"][row][real]
            ):
                assert ids[0][source] in edges.of(ids[1][target])
                assert min(ids[0][source], ids[1][target]) >= 0
                seen += 1
        assert seen or relation.target in ("institute", "journal", "conference")


def test_nodes_are_listed_bin_by_bin_where_that_is_asked_for(igbh, folder):
    bins = {"paper": (4, 8), "fos": (1, 2)}
    listed = batches(dataclasses.replace(igbh, bins=bins), folder)[1]
    plain = batches(igbh, folder)[1]
    assert set(listed) - set(plain) == {"place/paper", "place/fos"}
    for name, values in plain.items():
        kind = name.partition("/")[2]
        found = listed[name]
        if name.startswith("ids/") and kind in bins:
            block, count = bins[kind]
            bin_ = np.where(found < 0, count, found // block % count)
            assert (np.diff(bin_, axis=1) >= 0).all()
            found = np.take_along_axis(found, listed[f"place/{kind}"], 1)
            found = np.where(listed["mask"][:, None], found, values)
        np.testing.assert_array_equal(found, values, err_msg=name)


def test_what_finds_no_room_is_counted(igbh, folder):
    small = dataclasses.replace(igbh, shape=igbh.shape.times(0.25))
    batch = batches(small, folder)[0]
    assert (batch["dropped"][:4] > 0).all()
    report = small.check(folder)
    assert any(line.startswith("warning: samples of 8 seeds need 2.") for line in report), report
    assert "give room=2." in "\n".join(report)


def test_room_by_size_and_seeds(samples):
    table = {(8, FANOUTS): measured(samples)}
    few = Size(
        "few", {k: SIZE.nodes[k] for k in ("paper", "author", "institute", "fos")}, {19: 450}
    )
    shape = rooms.of(table, few, 8, FANOUTS)
    assert set(shape.nodes) == set(few.nodes) and set(shape.edges) == {r.key for r in few.relations}
    assert shape.nodes == {kind: table[8, FANOUTS].nodes[kind] for kind in few.nodes}
    twice = rooms.of(table, few, 16, FANOUTS)
    assert all(twice.nodes[k] == tuple(2 * n for n in shape.nodes[k]) for k in few.nodes)
    wide = rooms.of(table, few, 8, (6, 2))
    assert wide.nodes["author"] == tuple(2 * n for n in shape.nodes["author"])
    assert wide.nodes["paper"][0] == 8
    a, b = shape.edges["paper__cites__paper"]
    assert rooms.of(table, few, 8, (3, 1)).edges["paper__cites__paper"] == (a, a + (b - a) / 2)
    with pytest.raises(UserError, match=r"fanouts \[3\] are 1 hops: room was measured for 2"):
        rooms.of(table, few, 8, (3,))
    means = mean_of(samples)
    assert 0.5 < means.share_of(table[8, FANOUTS]) < 1
    ((key, full),) = rooms.ROOMS.items()
    assert key == (512, (15, 10, 5)) and set(full.nodes) == set(SIZES["full"].nodes)
    assert rooms.MEANS[key].share_of(full) < 1
    padding = sum(c[-1] for c in full.edges.values()) / sum(
        c[-1] for c in rooms.MEANS[key].edges.values()
    )
    assert padding < 1.12


# -- building and checking -------------------------------------------------------------------------


def test_a_graph_that_lies_elsewhere_is_linked(igbh, folder, tmp_path):
    igbh.build(tmp_path, folder)
    assert (tmp_path / "toy" / "processed").resolve() == pathlib.Path(
        folder, "toy/processed"
    ).resolve()
    assert igbh.counts(tmp_path) == {"train": TRAIN, "validation": VALIDATION}
    igbh.build(tmp_path)
    with pytest.raises(UserError, match=r"toy/processed lacks \d+ of \d+ files"):
        igbh.build(tmp_path / "empty", tmp_path / "nowhere")


def test_what_was_not_built_is_said_with_the_command(tmp_path):
    igbh_toys.write(tmp_path, SIZE)
    wide = Igbh(SIZE, None, BATCH, 19, feature_dtype="float32")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"lacks 11 of 11 relations.*mlperf-jax data build rgat"):
        wide.counts(tmp_path)
    wide.build(tmp_path)
    assert wide.counts(tmp_path)["train"] == TRAIN
    narrow = dataclasses.replace(wide, feature_dtype="float8_e4m3fn")
    with pytest.raises(
        UserError, match=r"float8_e4m3fn/paper.npy is missing: remove it if it is there, and build"
    ):
        narrow.counts(tmp_path)


def test_a_check_reads_labels_and_says_the_room(igbh, folder, tmp_path):
    report = igbh.check(folder)
    assert report[0].endswith(f"{sum(SIZE.nodes.values()):,} nodes")
    assert len([line for line in report if line.endswith(" edges")]) == 11
    assert "of the room that the recipe has" in report[-1] and not report[-1].startswith("warn")
    igbh_toys.write(tmp_path, SIZE)
    labels = tmp_path / "toy/processed/paper/node_label_19.npy"
    values = np.fromfile(labels, "<f4")
    values[7] = np.nan
    values.tofile(labels)
    igbh.build(tmp_path)
    assert any("problem" in line and "paper 7: label nan" in line for line in igbh.check(tmp_path))
    with pytest.raises(UserError, match="paper 7: label nan is no class"):
        batches(igbh, tmp_path)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn"])
def test_features_are_read_in_pieces(igbh, folder, dtype):
    opened = dataclasses.replace(igbh, feature_dtype=dtype)
    opened.build(folder)
    for kind in ("paper", "fos"):  # with a header and without
        mapped = opened.features(folder, kind)
        wanted = np.asarray(mapped.array)
        np.testing.assert_array_equal(mapped.read(3, 9).view(np.uint8), wanted[3:9].view(np.uint8))
        assert mapped.read(0, 1).dtype == mapped.dtype
        assert dtype == "float32" or mapped.dtype in (*features.DTYPES.values(),)


def test_a_file_that_was_cut_since_is_told(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((9, 4), np.float32))
    opened = arrays.open_npy(tmp_path / "a.npy", (9, 4), (np.dtype("<f4"),))
    os.truncate(tmp_path / "a.npy", 200)
    with pytest.raises(UserError, match=r"a.npy cannot be read .*; fetch it again"):
        opened.read(5, 9)


# -- the planted graph -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted_folder(tmp_path_factory) -> str:
    place = str(tmp_path_factory.mktemp("planted"))
    planted.write(place)
    return place


def test_features_alone_do_not_tell_the_community(planted_folder):
    """Of equally likely classes with one noise the nearest centre is the best guess that there is."""
    homes = planted.communities()["paper"]
    path = f"{planted_folder}/planted/processed/paper/node_feat.npy"
    found = np.fromfile(path, "<f4").reshape(len(homes), planted.SIZE.width)
    guess = ((found[:, None] - planted.centres()) ** 2).sum(-1).argmin(1)
    assert 0.2 < (guess == homes).mean() < 0.35


def test_edges_stay_in_their_community_as_often_as_is_said(planted_folder):
    homes = planted.communities()
    assert {len(set(home.tolist())) for home in homes.values()} == {planted.COMMUNITIES}
    for relation in planted.SIZE.stored:
        path = f"{planted_folder}/planted/processed/{relation.key}/edge_index.npy"
        begin, end = np.load(path).T
        stays = (homes[relation.source][begin] == homes[relation.target][end]).mean()
        _, faithful = planted._EDGES[relation.name]
        assert abs(stays - (faithful + (1 - faithful) / planted.COMMUNITIES)) < 0.06, relation


def test_it_has_all_types_and_relations_of_the_full_graph():
    assert planted.SIZE.relations == SIZES["full"].relations and planted.SIZE.raw
    assert set(planted.SIZE.nodes) == set(SIZES["full"].nodes)
