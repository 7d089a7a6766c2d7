"""Click logs: both forms give the same batches, each a function of its number; bad files are named."""

import doctest
import itertools
import pathlib
import shutil
import zipfile
from typing import Any

import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.criteo import (
    Criteo,
    builder,
    click_log,
    data_set as criteo,
    files,
    multi_hot,
    numbering,
    raw_logs,
    tiny as criteo_tiny,
)

TINY = Criteo(criteo.TINY_ROWS, criteo.TINY_BAGS, tiny=True)
ROWS, BAGS = (50, 9, 200, 4), (3, 1, 8, 1)
DAYS = {0: 40, 1: 23, 2: 31, 23: 21}
STATES = np.load(pathlib.Path(__file__).parent / "data" / "criteo_states.npz")


def content(day: int) -> dict[str, np.ndarray]:
    """Labels, dense features and bags of a day, all by their place."""
    rng = np.random.default_rng(day)
    samples = DAYS[day]
    return {
        "label": rng.integers(0, 2, (samples, 1), np.int32),
        "dense": rng.normal(0, 1, (samples, 13)).astype(np.float32),
        "ids": np.concatenate(
            [rng.integers(0, n, (samples, k), np.int32) for n, k in zip(ROWS, BAGS)], 1
        ),
    }


def write_day(folder: pathlib.Path, day: int, found: dict[str, np.ndarray]) -> None:
    labels, dense, sparse = (folder / name for name in files.day_files(day))
    np.save(labels, found["label"])
    np.save(dense, found["dense"])
    split = np.split(found["ids"], np.cumsum(BAGS)[:-1], axis=1)
    np.savez(sparse, **{str(table): bag for table, bag in enumerate(split)})  # pyright: ignore


@pytest.fixture
def days(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder of day files; chunks of seven rows, so that parts and chunks meet everywhere."""
    monkeypatch.setattr(criteo_tiny, "DAYS", DAYS)
    monkeypatch.setattr(click_log, "_CHUNK_ROWS", 7)
    folder = tmp_path / "days"
    folder.mkdir()
    for day in DAYS:
        write_day(folder, day, content(day))
    return folder


@pytest.fixture
def binary(tmp_path, monkeypatch) -> pathlib.Path:
    """The same samples as HugeCTR's records."""
    monkeypatch.setattr(click_log, "_CHUNK_ROWS", 7)
    folder = tmp_path / "records"
    folder.mkdir()
    training, last = [content(day) for day in (0, 1, 2)], content(23)
    half = {name: array[:11] for name, array in last.items()}
    for name, parts in (("train_data.bin", training), ("val_data.bin", [half])):
        rows = [np.concatenate([p["label"], p["dense"].view(np.int32), p["ids"]], 1) for p in parts]
        np.concatenate(rows).astype("<i4").tofile(folder / name)
    return folder


def log(folder, split="train", rows=ROWS, bags=BAGS) -> pipeline.Split:
    data = Criteo(rows, bags, tiny=pathlib.Path(folder).name == "days")
    return getattr(data, split)(folder)


def expected(*numbers: int) -> dict[str, np.ndarray]:
    parts = [content(day) for day in numbers]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return whole | {"label": whole["label"][:, 0].astype(np.float32)}


def equal(batch, wanted) -> None:
    assert set(batch) - {"mask"} == set(wanted)
    for name, array in wanted.items():
        assert batch[name].dtype == array.dtype and batch[name].flags.writeable
        np.testing.assert_array_equal(batch[name], array)


@pytest.fixture(params=["days", "binary"])
def folder(request) -> pathlib.Path:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("threads", [0, 3])
def test_training_is_in_file_order(folder, threads):
    data = log(folder)
    assert len(data) == 94 and data.steps_per_epoch(20) == 4
    wanted = expected(0, 1, 2)
    found = list(itertools.islice(data.batched(20, seed=1).stream(threads=threads), 9))
    for number, batch in enumerate(found):
        at = 20 * (number % 4)  # 14 samples are left out at the end of a pass
        equal(batch, {name: array[at : at + 20] for name, array in wanted.items()})


def test_a_batch_is_a_function_of_its_number(folder):
    data = log(folder)
    whole = list(itertools.islice(data.batched(30).stream(), 4))
    for start, (lo, hi) in itertools.product(range(4), [(0, 15), (15, 30), (7, 9), (29, 30)]):
        part = next(
            data.batched(30, seed=9, share=lambda rows, at=(lo, hi): at).stream(start, threads=1)
        )
        equal(part, {name: array[lo:hi] for name, array in whole[start].items()})


@pytest.mark.parametrize(("batch_size", "threads"), [(4, 0), (11, 1), (64, 2)])
def test_validation_is_the_first_half_rounded_up(folder, batch_size, threads):
    data = log(folder, "validation")
    assert len(data) == 11
    batches = list(data.batched(batch_size).stream(threads=threads))
    assert all(len(batch["label"]) == batch_size for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.tolist() == [i < 11 for i in range(len(mask))]
    for name, array in expected(23).items():
        joined = np.concatenate([batch[name] for batch in batches])
        np.testing.assert_array_equal(joined[:11], array[:11])
        assert not joined[11:].any()
    tail = data.batched(4, share=lambda rows: (2, 4))[2]["mask"].tolist()
    assert tail == [True, False]  # rows 10 and 11


def test_reading_goes_on_after_an_iterator_was_dropped(days):
    data = log(days)
    batches = data.batched(10).stream(threads=2)
    next(batches)
    batches.close()
    assert len(data.batched(10)[0]["label"]) == 10


def test_opening_reads_no_sample(folder, monkeypatch):
    monkeypatch.setattr(files.MappedFile, "map", property(lambda _: pytest.fail("read")))
    assert len(log(folder)) == 94
    tiny = folder.name == "days"
    assert Criteo(ROWS, BAGS, tiny=tiny).counts(folder) == {"train": 94, "validation": 11}


def test_labels_of_one_axis_are_read_too(days):
    np.save(days / "day_0_labels.npy", content(0)["label"][:, 0])
    equal(log(days).batched(94)[0], expected(0, 1, 2))


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        (2, 50, r"feature cat_0: id 50 is outside 0\.\.49"),
        (3, -1, r"feature cat_1: id -1 is outside 0\.\.8"),
        (11, 2**31 - 1, r"feature cat_2: id 2147483647 is outside 0\.\.199"),
        (12, 4, r"feature cat_3: id 4 is outside 0\.\.3"),
    ],
)
def test_an_id_that_is_no_row_is_named(days, column, value, said):
    bad = content(1)
    bad["ids"][17, column] = value
    write_day(days, 1, bad)
    data = log(days)
    data.batched(57)[0]  # samples 0 .. 56 are good
    words = r"^[^,]*day_1_sparse_multi_hot\.npz, sample 17, " + said  # named once, by its file
    with pytest.raises(UserError, match=words):
        data.batched(94)[0]
    problems = Criteo(ROWS, BAGS, tiny=True).check(days)
    assert any(line.startswith("problem:") and "sample 17" in line for line in problems)


def test_an_id_that_is_no_row_is_named_in_records(binary):
    words = np.fromfile(binary / "train_data.bin", "<i4").reshape(94, -1)
    words[63, 14 + 12] = 99
    words.tofile(binary / "train_data.bin")
    with pytest.raises(UserError, match=r"train_data\.bin, sample 63, feature cat_3: id 99"):
        log(binary).batched(94)[0]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_dense_feature_that_is_no_number_is_named(days, value):
    bad = content(2)
    bad["dense"][30, 12] = value
    write_day(days, 2, bad)
    words = rf"day_2_dense\.npy, sample 30, dense feature 12: the value is {value}"
    with pytest.raises(UserError, match=words):
        log(days).batched(94)[0]


def test_large_dense_features_are_numbers(days):
    good = content(2)
    good["dense"][:] = 3e38
    write_day(days, 2, good)
    assert log(days).batched(94)[0]["dense"].max() == np.float32(3e38)


@pytest.mark.parametrize("label", [2, -1])
def test_a_label_that_is_neither_is_named(days, label):
    bad = content(0)
    bad["label"][39] = label
    write_day(days, 0, bad)
    with pytest.raises(UserError, match=rf"day_0_labels\.npy, sample 39: the label is {label}"):
        log(days).batched(94)[0]


def test_missing_days(days):
    (days / "day_2_dense.npy").unlink()
    for open_ in (lambda: log(days), lambda: Criteo(ROWS, BAGS, tiny=True).counts(days)):
        with pytest.raises(UserError, match=r"lacks 1 of 12 files, the first is day_2_dense\.npy"):
            open_()
    with pytest.raises(UserError, match=r"lacks 61 of 72 files, the first is day_2_dense\.npy"):
        Criteo(ROWS, BAGS).train(days)  # as the full data set


def test_missing_records(binary, tmp_path):
    (binary / "val_data.bin").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 2 files, the first is val_data\.bin"):
        log(binary)
    with pytest.raises(UserError, match="no multi-hot Criteo click logs in"):
        Criteo().counts(tmp_path)
    with pytest.raises(UserError, match="data build dlrm_dcnv2 --tiny"):
        Criteo(tiny=True).counts(tmp_path)
    with pytest.raises(UserError, match="gcsfuse"):
        Criteo().counts("gs://bucket/criteo")


def test_other_bag_sizes(days, binary):
    with pytest.raises(
        UserError, match=r"npz, table 2 has shape \[40, 8\], expected \[samples, 7\]"
    ):
        log(days, bags=(3, 1, 7, 1))
    with pytest.raises(
        UserError, match=r"day_0_sparse_multi_hot\.npz has bags of 4 tables and .* 3"
    ):
        log(days, rows=ROWS[:3], bags=BAGS[:3])
    with pytest.raises(
        UserError, match=r"no whole number of records of 112 bytes \(bags of 14 ids\)"
    ):
        log(binary, bags=(3, 1, 9, 1))
    with pytest.raises(UserError, match="3 tables have rows and 4 have bag sizes"):
        log(days, rows=ROWS[:3])


def test_arrays_of_another_form(days):
    bags: Any = {str(table): np.zeros((40, size), "<i4") for table, size in enumerate(BAGS)}
    np.savez_compressed(days / "day_0_sparse_multi_hot.npz", **bags)
    with pytest.raises(UserError, match=r"table 0 is compressed and cannot be mapped"):
        log(days)
    write_day(days, 0, content(0) | {"ids": content(0)["ids"].astype(np.int64)})
    with pytest.raises(UserError, match=r"table 0 holds int64, expected int32"):
        log(days)
    write_day(days, 0, content(0) | {"dense": np.asfortranarray(content(0)["dense"])})
    with pytest.raises(UserError, match=r"day_0_dense\.npy holds float32 in Fortran order"):
        log(days)
    write_day(days, 0, content(1))
    write_day(days, 1, {name: content(1)[name][:20] for name in ("label", "dense", "ids")})
    np.save(days / "day_1_labels.npy", content(1)["label"])
    with pytest.raises(UserError, match=r"day_1_dense\.npy has 20 samples and .* has 23"):
        log(days)


@pytest.mark.parametrize("name", files.day_files(0))
def test_files_that_are_cut_short(days, name):
    path = days / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match=f"{name}.*cut short"):
        log(days)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=f"{name}.*damaged or cut short"):
        log(days)


def test_an_archive_without_a_table(days):
    path = days / "day_0_sparse_multi_hot.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("0", "1", "2", "five"):
            archive.writestr(f"{name}.npy", b"")
    with pytest.raises(UserError, match="damaged"):
        log(days)
    write_day(days, 0, content(0))
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(days / "other", "w") as other:
        for name, target in (("0", "0"), ("1", "1"), ("2", "2"), ("3", "four")):
            other.writestr(f"{target}.npy", archive.read(f"{name}.npy"))
    shutil.move(days / "other", path)
    with pytest.raises(UserError, match=r"has no member 3\.npy"):
        log(days)


def test_arguments_that_do_not_fit(days):
    data = log(days)
    for call, words in (
        (lambda: data.batched(95), "batch_size 95 is larger than the 94 training examples"),
        (lambda: data.batched(0), "at least 1"),
        (lambda: data.batched(10, share=lambda rows: (5, 11)), r"rows \(5, 11\)"),
        (lambda: data.batched(10).stream(-1), "start and workers are at least 0"),
        (lambda: data.batched(10, share=lambda rows: (3, 3)), r"rows \(3, 3\)"),
    ):
        with pytest.raises(UserError, match=words):
            call()


# -- the multi-hot synthesis -------------------------------------------------------------------


def generator(after: int | None) -> np.random.RandomState:
    """The synthesis' generator as it stands after a table."""
    random = np.random.RandomState(0)
    if after is not None:
        key, position = STATES[f"key_{after}"], int(STATES[f"position_{after}"])
        random.set_state(("MT19937", key, position, 0, 0.0))
    return random


def matrix(random: np.random.RandomState, table: int) -> np.ndarray:
    out = np.empty((criteo.ROWS[table], criteo.BAGS[table]), np.int32)
    multi_hot.bag_matrix(random, out)
    return out


CHECKED = {  # md5, sum, row 0, end of the last row: the fact sheet's values
    1: ("32f9e04d86d4abdf8c39d0ddd24baba0", 1525727756, (0, 24907), 5867),
    3: ("be7864445e8c816604e91b50c80eb376", 55311612, (0, 4345), 2895),
    4: ("5f6bbe756479d3e7d81f59f506a63add", 1229943810, (0, 3183, 13899, 1372, 19641, 7066), 1926),
    11: ("a90cbbe0ccad5dbf434cedee461c49df", 657014482648, (0, 128049, 41194, 334303), 196027),
    13: ("cad281f7edc0933562471c3fc15f03d5", 14749015, (0, 181, 948, 467, 263, 361), 1228),
    14: ("fe7969471bbbfacee5b2ce02365a45d8", 641675880, (0, 9194, 9488, 4977), 8064),
    15: ("aefa1373c6d0632b33b5a3f279a18e64", 58617, (0, 147, 132, 133, 11), 144),
    22: ("9b17fe3973dddf053378844b292cea7e", 1742118372884, (0, 580373, 407400, 365934), 481038),
    23: ("06ca161d2fd4e2cc53b1f4cdb12d37ec", 253200570, (0, 11837, 9696), 2844),
}


@pytest.mark.parametrize(("after", "last"), [(0, 4), (9, 15), (21, 23)])
def test_bags_of_the_official_tables(after, last, monkeypatch):
    import hashlib

    monkeypatch.setattr(multi_hot, "CHUNK", 1 << 17)
    random = generator(after)
    for table in range(after + 1, last + 1):
        bags = matrix(random, table)
        if table in CHECKED:
            md5, total, first, end = CHECKED[table]
            assert hashlib.md5(bags.astype("<i4").tobytes()).hexdigest() == md5
            assert bags.sum(dtype=np.int64) == total
            assert bags[0, : len(first)].tolist() == list(first) and bags[-1, -1] == end


def test_the_stream_begins_with_seed_0_and_table_0():
    out = np.empty((2, 3), np.int32)
    multi_hot.draw_bags(generator(None), criteo.ROWS[0], 0, out)
    assert out[0].tolist() == [0, 8325804, 2215104] and out[1, 0] == 1


def test_bags_do_not_depend_on_the_chunks(monkeypatch):
    whole = list(multi_hot.bag_matrices(ROWS, BAGS))
    monkeypatch.setattr(multi_hot, "CHUNK", 5)
    for a, b in zip(whole, multi_hot.bag_matrices(ROWS, BAGS)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a[:, 0], np.arange(len(a)))


def test_saved_bags_go_on_where_a_killed_build_was(tmp_path):
    whole = multi_hot.save_matrices(tmp_path, ROWS, BAGS)
    for table, array in enumerate(multi_hot.bag_matrices(ROWS, BAGS)):
        np.testing.assert_array_equal(whole[table], array)
    for table in (2, 3):
        (tmp_path / f"{table}.npy").unlink()
    again = multi_hot.save_matrices(tmp_path, ROWS, BAGS)
    np.testing.assert_array_equal(again[2], np.asarray(list(multi_hot.bag_matrices(ROWS, BAGS))[2]))


def test_the_official_sizes():
    assert sum(criteo.ROWS) == 204_184_588 and sum(criteo.BAGS) == 214 and len(criteo.ROWS) == 26
    assert 4 * (1 + 13 + sum(criteo.BAGS)) == 912
    assert sum(k for n, k in zip(criteo.ROWS, criteo.BAGS) if n > 1_000_000) == 152


# -- the small stand-in ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    TINY.build(folder)
    return str(folder)


def test_tiny_has_its_counts_and_no_problem(tiny):
    assert TINY.counts(tiny) == criteo.COUNTS[criteo.TINY_NAME]
    report = TINY.check(tiny)
    assert len(report) == 3 and not [line for line in report if line.startswith("problem")]
    before = sorted(pathlib.Path(tiny).rglob("*"))
    TINY.build(tiny)  # it is there already
    assert sorted(pathlib.Path(tiny).rglob("*")) == before


def test_check_compares_published_checksums(tiny, monkeypatch):
    size = 4 * criteo_tiny.DAYS[23]
    monkeypatch.setitem(builder.MD5, "day_23_labels.npy", (size, "0" * 32))
    report = TINY.check(tiny)
    assert report[-1].startswith("warning:") and "day_23_labels.npy has md5" in report[-1]
    monkeypatch.setattr(criteo, "_HASHED", 1000)
    assert len(TINY.check(tiny)) == 3
    assert TINY.check(tiny, whole=True) == report


def test_tiny_is_made_alike_each_time(tiny, tmp_path):
    TINY.build(tmp_path)
    for path in pathlib.Path(tiny).rglob("*.np?"):
        assert (tmp_path / path.relative_to(tiny)).read_bytes() == path.read_bytes()


def area(labels, scores) -> float:
    clicks, others = np.sort(scores[labels == 1]), np.sort(scores[labels == 0])
    below = np.searchsorted(others, clicks, "left") + np.searchsorted(others, clicks, "right")
    return float(below.mean() / 2 / len(others))


def test_products_tell_what_a_linear_model_cannot_see(tiny):
    """Area 0.65 for the linear model as least squares fits it, 0.8 for the products of signs alone."""
    rows, bags = criteo.TINY_ROWS, criteo.TINY_BAGS
    logs = TINY.train(tiny), TINY.validation(tiny)
    train, test = (data.batched(len(data))[0] for data in logs)
    starts = np.cumsum((0, *bags))[:-1]

    def own(batch):
        return batch["ids"][:, starts]

    def inputs(batch):
        hot = [np.eye(n, dtype=np.float32)[own(batch)[:, t]] for t, n in enumerate(rows)]
        return np.concatenate([batch["dense"], *hot], 1)

    x, y = inputs(train), train["label"] - train["label"].mean()
    weights = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    assert 0.6 < area(test["label"], inputs(test) @ weights) < 0.67

    def cells(batch):  # the cell of a pair of ids, each with a click rate of its own
        ids = own(batch)
        return [ids[:, a] * rows[b] + ids[:, b] for a, b in criteo_tiny._PAIRS]

    score = np.zeros(len(test["label"]))
    for (a, b), seen, asked in zip(criteo_tiny._PAIRS, cells(train), cells(test)):
        size = rows[a] * rows[b]
        clicks = np.bincount(seen, train["label"], size) + 1
        score += np.log(clicks / (np.bincount(seen, minlength=size) + 3 - clicks + 1))[asked]
    assert area(test["label"], score) > 0.72


def test_tables_of_other_sizes(tmp_path):
    rows, bags = tuple(n + 2 for n in criteo.TINY_ROWS), (1,) * 26
    other = Criteo(rows, bags, tiny=True)
    other.build(tmp_path)
    batch = other.train(tmp_path).batched(64)[0]
    assert batch["ids"].shape == (64, 26)
    with pytest.raises(UserError, match="expected"):
        TINY.train(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        TINY.build(tmp_path / "file")


@pytest.mark.parametrize("module", [multi_hot, numbering, raw_logs])
def test_documented_examples(module):
    assert doctest.testmod(module).failed == 0
