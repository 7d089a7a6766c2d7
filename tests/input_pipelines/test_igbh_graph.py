"""IGBH's folders: real layouts opened, copies of features, labels, what is old, missing or of another form."""

import calendar
import os
import pathlib
import pickle

import igbh_toys
import ml_dtypes
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.igbh import features, graph, sizes
from mlperf_jax.input_pipelines.igbh.sizes import CITES, Relation


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Nothing waits for the disk: these files outlive no power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def place(tmp_path) -> pathlib.Path:
    """`processed` of a toy in the layout of the large sizes."""
    return igbh_toys.write(tmp_path)


def opened(tmp_path, raw=True, **options) -> graph.Graph:
    return graph.open_graph(tmp_path, igbh_toys.toy_size(raw=raw), **options)


# -- what there is -----------------------------------------------------------------------------------


def test_the_full_graph_is_the_benchmarks():
    full = sizes.SIZES["full"]
    assert sum(full.nodes.values()) == 547_360_534
    assert full.labelled == {2983: 157_675_969, 19: 227_130_858}
    ends = [relation.target for relation in full.relations]
    assert {kind: ends.count(kind) for kind in full.nodes} == {
        "paper": 5,
        "author": 2,
        "institute": 1,
        "fos": 1,
        "journal": 1,
        "conference": 1,
    }
    assert full.raw and sizes.SIZES["large"].raw and not sizes.SIZES["medium"].raw


def test_small_sizes_have_no_journals():
    for name in ("tiny", "small", "medium"):
        assert len(sizes.SIZES[name].relations) == 7
        assert set(sizes.SIZES[name].nodes) == {"paper", "author", "institute", "fos"}


@pytest.mark.parametrize(
    ("nodes", "labelled", "words"),
    [
        ({"paper": 2**31}, {}, "2,147,483,648 nodes of type paper"),
        ({"paper": 5, "fos": 0}, {}, "0 nodes of type fos"),
        ({"paper": 5}, {2983: 6}, "5 papers, 6 of which"),
        ({"paper": 5}, {8: 5}, "labels of 8 classes: there are files of 2983 and 19"),
    ],
)
def test_impossible_sizes_are_refused(nodes, labelled, words):
    with pytest.raises(UserError, match=words):
        sizes.Size("own", nodes, labelled)


def test_sizes_are_known_by_name():
    with pytest.raises(UserError, match="no size 'ful': did you mean 'full'"):
        graph.open_graph("anywhere", "ful")


# -- opening -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("ids", [np.int64, np.int32])
def test_both_layouts_are_read(tmp_path, raw, ids):
    size = igbh_toys.toy_size(raw=raw)
    place = igbh_toys.write(tmp_path, size, ids)
    found = opened(tmp_path, raw)
    assert len(found.edges) == (6 if raw else 4)
    for relation, edges in found.edges.items():
        np.testing.assert_array_equal(edges.array, igbh_toys.edges_of(size, relation))
        assert edges.array.dtype == ids
    for kind, values in found.features.items():
        path = place / kind / "node_feat.npy"
        shape = size.nodes[kind], size.width
        bare = raw and kind in ("paper", "author")
        known = np.fromfile(path, np.float32).reshape(shape) if bare else np.load(path)
        np.testing.assert_array_equal(values.array, known)
    assert found.labels.array.shape == (60,)


def test_edges_may_lie_in_fortran_order(tmp_path, place):
    path = place / CITES.key / "edge_index.npy"
    known = np.load(path)
    np.save(path, np.asfortranarray(known))
    np.testing.assert_array_equal(opened(tmp_path).edges[CITES].array, known)


def test_arrays_travel_by_name_and_are_not_written(tmp_path, place):
    source = opened(tmp_path).features["paper"]
    values = source.array
    sent = pickle.dumps(source)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent).array, values)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 0


def test_missing_files_are_counted(tmp_path, place):
    (place / "paper__topic__fos" / "edge_index.npy").unlink()
    (place / "fos" / "node_feat.npy").unlink()
    with pytest.raises(
        UserError, match=r"lacks 2 of 13 files, the first is paper__topic__fos/edge"
    ):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("fos/node_feat", np.zeros((11, 9), "f4"), r"shape \[11, 9\], expected \[11, 8\]"),
        ("fos/node_feat", np.zeros((12, 8), "f4"), r"shape \[12, 8\], expected \[11, 8\]"),
        ("fos/node_feat", np.zeros((11, 8)), "holds float64, expected float32"),
        ("fos/node_feat", np.zeros((8, 11), "f4").T, "Fortran order, expected float32 in C order"),
        ("paper__cites__paper/edge_index", np.zeros((2, 9), int), r"\[2, 9\], expected \[any, 2\]"),
        ("paper__cites__paper/edge_index", np.zeros(9, int), r"\[9\], expected \[any, 2\]"),
        (
            "paper__cites__paper/edge_index",
            np.zeros((9, 2), "u8"),
            "uint64, expected int64 or int32",
        ),
        ("paper__cites__paper/edge_index", np.zeros((9, 2)), "float64, expected int64 or int32"),
        ("paper/node_feat", np.zeros((60, 8), "f4"), "begins with the header of a .npy file"),
        ("paper/node_label_2K", np.zeros(60, "f4"), "begins with the header of a .npy file"),
    ],
)
def test_other_shapes_and_types_are_refused_by_name(tmp_path, place, name, values, words):
    np.save(place / name, values)
    with pytest.raises(UserError, match=words) as error:
        opened(tmp_path)
    assert f"{name}.npy" in str(error.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("author/node_feat.npy", "1,439 bytes, expected 1,440 for .45, 8. of float32"),
        ("paper/node_label_2K.npy", "239 bytes, expected 240"),
        ("fos/node_feat.npy", "cut short: .11, 8. of float32 need 352 bytes .* there are 351"),
        ("paper__cites__paper/edge_index.npy", "cut short: .318, 2. of int64"),
    ],
)
def test_what_is_cut_short_is_refused(tmp_path, place, name, words):
    os.truncate(place / name, (place / name).stat().st_size - 1)
    with pytest.raises(UserError, match=words):
        opened(tmp_path)


def test_what_is_no_array_is_refused(tmp_path, place):
    (place / "fos" / "node_feat.npy").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"fos/node_feat.npy is no .npy file"):
        opened(tmp_path)


def test_other_options_are_refused(tmp_path, place):
    with pytest.raises(UserError, match="no labels of 20 classes: choose 2983 or 19"):
        opened(tmp_path, classes=20)
    with pytest.raises(UserError, match="did you mean 'float16'"):
        opened(tmp_path, dtype="bfloat16")
    with pytest.raises(UserError, match="mount"):
        graph.open_graph("s3://bucket/igbh", igbh_toys.toy_size())


# -- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "labelled"), [(2983, 40), (19, 50)])
def test_labels_are_those_of_the_first_papers(tmp_path, place, classes, labelled, monkeypatch):
    monkeypatch.setattr(graph, "_CHUNK", 7)
    found = graph.read_labels(opened(tmp_path, classes=classes))
    known = np.fromfile(place / "paper" / igbh_toys.LABELS[classes], np.float32)
    assert found.dtype == np.int16
    assert found.tolist() == known[:labelled].tolist()


@pytest.mark.parametrize(
    ("bad", "shown"), [(2983, "2983.0"), (-1, "-1.0"), (0.5, "0.5"), (np.nan, "nan")]
)
def test_what_is_no_class_is_refused(tmp_path, place, monkeypatch, bad, shown):
    monkeypatch.setattr(graph, "_CHUNK", 16)
    labels = np.memmap(place / "paper" / "node_label_2K.npy", np.float32, "r+")
    labels[[37, 45]] = bad  # paper 45 has none
    labels.flush()
    with pytest.raises(UserError, match=f"node_label_2K.npy, paper 37: label {shown} is no class"):
        graph.read_labels(opened(tmp_path))


def test_papers_without_labels_may_hold_anything(tmp_path, place):
    labels = np.memmap(place / "paper" / "node_label_2K.npy", np.float32, "r+")
    labels[40:] = np.nan
    labels.flush()
    assert len(graph.read_labels(opened(tmp_path))) == 40


# -- what was replaced -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("day", "refused"),
    [((2023, 11, 6), True), ((2023, 2, 20), True), ((2023, 11, 7), False), ((1980, 1, 1), False)],
)
def test_features_from_before_the_replacement_are_refused(tmp_path, place, day, refused):
    at = calendar.timegm((*day, 12, 0, 0))
    os.utime(place / "paper" / "node_feat.npy", (at, at))
    if not refused:
        assert opened(tmp_path).features
        return
    with pytest.raises(UserError, match=r"last written on 2023-.* last 20 papers were bad"):
        opened(tmp_path)


def test_smaller_sizes_may_be_older(tmp_path):
    path = igbh_toys.write(tmp_path, igbh_toys.toy_size(raw=False)) / "paper" / "node_feat.npy"
    os.utime(path, (1_680_000_000, 1_680_000_000))
    assert opened(tmp_path, raw=False).features


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.fill(0), "paper 40: its features are zero"),
        (lambda rows: rows[5].fill(np.nan), "paper 45: its features are not finite"),
        (lambda rows: np.copyto(rows[19], rows[2]), "paper 59: its features are those of paper 42"),
    ],
)
def test_samples_tell_empty_and_repeated_features(tmp_path, place, change, words):
    graph.check_replaced(opened(tmp_path))
    values = np.memmap(place / "paper" / "node_feat.npy", np.float32, "r+", shape=(60, 8))
    values[0] = 0  # of no concern: never replaced
    change(values[40:])
    values.flush()
    with pytest.raises(UserError, match=words):
        graph.check_replaced(opened(tmp_path))


def test_samples_are_spread_and_few(tmp_path, place):
    values = np.memmap(place / "paper" / "node_feat.npy", np.float32, "r+", shape=(60, 8))
    values[55:] = 0  # the last quarter of 20
    values.flush()
    with pytest.raises(UserError, match="zero"):
        graph.check_replaced(opened(tmp_path), rows=4)
    values[40:] = 1
    values[40:45] = 2
    values[50:55, 0] = 3
    values[55:, 0] = 4
    values.flush()
    graph.check_replaced(opened(tmp_path), rows=4)  # one of each quarter


# -- copies of features ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float16", np.float16), ("float8_e4m3fn", ml_dtypes.float8_e4m3fn)]
)
def test_copies_are_rounded_and_read_as_what_they_are(tmp_path, place, monkeypatch, dtype, kind):
    monkeypatch.setattr(features, "_CHUNK", 7 * igbh_toys.WIDTH)
    source = opened(tmp_path)
    said: list[str] = []
    features.write_copies(source.folder, source.features, dtype, said.append)
    found = opened(tmp_path, dtype=dtype)
    assert len(said) == len(found.features) == 6
    for name, values in found.features.items():
        assert values.array.dtype == kind
        known = source.features[name].array.astype(kind).astype(np.float32)
        np.testing.assert_array_equal(values.array.astype(np.float32), known)
    bytes_each = np.dtype(kind).itemsize
    assert (source.folder / dtype / "paper.npy").stat().st_size == 128 + 60 * 8 * bytes_each
    features.write_copies(source.folder, source.features, dtype, said.append)
    assert len(said) == 6, "nothing is written twice"
    assert sorted(p.name for p in (source.folder / dtype).iterdir()) == sorted(
        f"{kind}.npy" for kind in igbh_toys.NODES
    )


def test_a_killed_copy_is_taken_up_behind_its_note(tmp_path, place, monkeypatch):
    monkeypatch.setattr(features, "_CHUNK", 7 * igbh_toys.WIDTH)
    monkeypatch.setattr(features, "_SYNCED", 2)
    source, full = opened(tmp_path), OSError(28, "No space left on device")
    isfinite, calls = np.isfinite, []

    def until_the_fifth(values):
        calls.append(len(values))
        if len(calls) == 5:
            raise full
        return isfinite(values)

    monkeypatch.setattr(np, "isfinite", until_the_fifth)
    with pytest.raises(UserError, match="what is finished is kept"):
        features.write_copies(source.folder, source.features, "float16", lambda text: None)
    work = source.folder / "float16" / "paper.npy.incomplete"
    assert (work / "rows").read_text() == "28"
    calls.clear()
    monkeypatch.setattr(
        np, "isfinite", lambda values: calls.append(len(values)) or isfinite(values)
    )
    features.write_copies(source.folder, source.features, "float16", lambda text: None)
    assert sum(calls[:5]) == 60 - 28
    known = source.features["paper"].array.astype(np.float16)
    np.testing.assert_array_equal(opened(tmp_path, dtype="float16").features["paper"].array, known)


@pytest.mark.parametrize(
    ("value", "dtype"), [(70_000, "float16"), (500, "float8_e4m3fn"), (np.nan, "float16")]
)
def test_what_a_copy_cannot_hold_is_refused(tmp_path, place, value, dtype):
    values = np.memmap(place / "author" / "node_feat.npy", np.float32, "r+", shape=(45, 8))
    values[17, 3] = value
    values.flush()
    source = opened(tmp_path)
    with pytest.raises(
        UserError, match=r"author/node_feat.npy, node 17, column 3: .* is not finite in"
    ):
        features.write_copies(source.folder, source.features, dtype, lambda text: None)


def test_copies_of_features_that_were_replaced_are_told_and_made_anew(tmp_path, place):
    source = opened(tmp_path)
    features.write_copies(source.folder, source.features, "float16", lambda text: None)
    path = place / "author" / "node_feat.npy"
    values = np.memmap(path, np.float32, "r+", shape=(45, 8))
    values[17, 3] += 1
    values.flush()
    os.utime(path, ns=(0, 0))  # no clock is so coarse
    with pytest.raises(UserError, match=r"author.npy was made of other features than .*author/n"):
        opened(tmp_path, dtype="float16")
    said: list[str] = []
    features.write_copies(source.folder, source.features, "float16", said.append)
    assert len(said) == 1 and "author" in said[0]
    assert opened(tmp_path, dtype="float16").features["author"].array[17, 3] == values[
        17, 3
    ].astype("f2")
    path.unlink()  # a copy does without them
    opened(tmp_path, dtype="float16")


@pytest.mark.parametrize("dtype", ["float32", "float16", "float8_e4m3fn"])
def test_features_that_are_not_finite_are_named_when_they_are_read(tmp_path, place, dtype):
    source = opened(tmp_path)
    if dtype != "float32":
        features.write_copies(source.folder, source.features, dtype, lambda text: None)
    known = opened(tmp_path, dtype=dtype).features["fos"]
    rows = np.memmap(known.path, known.dtype, "r+", known.offset, known.shape)
    features.read(known, 0, len(known))
    rows[5, 2] = np.nan
    rows.flush()
    features.read(known, 0, 5)
    with pytest.raises(UserError, match=r"fos.*npy, node 5: its features are not finite"):
        features.read(known, 3, len(known))


def test_copies_that_are_not_there_or_of_copies_are_refused(tmp_path, place):
    with pytest.raises(
        UserError, match=r"float16/paper.npy is missing: remove it if it is there, and build"
    ):
        opened(tmp_path, dtype="float16")
    source = opened(tmp_path)
    features.write_copies(source.folder, source.features, "float16", lambda text: None)
    copies = opened(tmp_path, dtype="float16")
    with pytest.raises(UserError, match="copies are made of the features as they were handed out"):
        features.write_copies(copies.folder, copies.features, "float8_e4m3fn")


def test_relations_are_named_as_the_folders():
    forward = Relation("paper", "written_by", "author")
    assert forward.key == "paper__written_by__author"
    assert forward.reversed == ("author", "rev_written_by", "paper")
