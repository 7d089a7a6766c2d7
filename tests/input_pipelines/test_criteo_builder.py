"""Raw logs to multi-hot day files: against a slow twin, killed anywhere, bad input."""

import io
import os
import pathlib

import criteo_logs
import numpy as np
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building
from mlperf_jax.input_pipelines.criteo import (
    Criteo,
    builder,
    data_set as criteo,
    files,
    numbering,
    plan as criteo_plan,
    raw_logs,
)

DAYS = criteo_logs.DAYS


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Nothing waits for the disk: these builds outlive no power cut."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.fixture
def logs(tmp_path) -> str:
    return criteo_logs.write_logs(tmp_path / "raw")


def plan_of(source, folder, **changes) -> criteo_plan.BuildPlan:
    settings = {"days": DAYS, "rows": criteo_logs.ROWS, "bags": criteo_logs.BAGS, **changes}
    return criteo_plan.BuildPlan(str(source), str(folder), **settings)


def build(plan) -> list[str]:
    said: list[str] = []
    builder.write(plan, said.append)
    return said


def npz_of(ids: np.ndarray) -> bytes:
    """What `numpy.savez` writes for the bags of these ids."""
    file = io.BytesIO()
    matrices = criteo_logs.slow_bags()
    np.savez(file, **{str(t): m[ids[:, t] % len(m)] for t, m in enumerate(matrices)})  # pyright: ignore
    return file.getvalue()


def same(folder, expected: dict[str, np.ndarray]) -> None:
    """Every file has the bytes that NumPy would write."""
    folder = pathlib.Path(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        name for day in DAYS for name in files.day_files(day)
    )
    for day in DAYS:
        for kind in ("labels", "dense"):
            file = io.BytesIO()
            np.save(file, expected[f"day_{day}_{kind}"])
            assert (folder / f"day_{day}_{kind}.npy").read_bytes() == file.getvalue()
        sparse = (folder / f"day_{day}_sparse_multi_hot.npz").read_bytes()
        assert sparse == npz_of(expected[f"day_{day}_sparse"])


@pytest.mark.parametrize("processes", [1, 2])
def test_raw_logs_become_what_the_slow_twin_makes(tmp_path, logs, processes):
    said = build(plan_of(logs, tmp_path / "out", processes=processes))
    same(tmp_path / "out", criteo_logs.slow_twin(logs))
    assert not (tmp_path / "out.incomplete").exists()
    assert "GB of disk" in said[0]
    assert [s for s in said if s.startswith("stage")] == [
        f"stage {name}" for name in ("parse", "number", "shuffle", "one-hot", "multi-hot")
    ]


@pytest.mark.parametrize("round_ids", [True, False])
def test_ids_are_rounded_on_training_days_alone(tmp_path, logs, round_ids, monkeypatch):
    monkeypatch.setattr(numbering, "FIRST_ID", 2**24 + 1)  # where float32 begins to round
    build(plan_of(logs, tmp_path / "out", round_ids=round_ids))
    expected = criteo_logs.slow_twin(logs, 2**24 + 1, round_ids)
    training = np.concatenate([expected[f"day_{day}_sparse"] for day in DAYS[:-1]])
    assert (training % 2 == 0).all() == round_ids
    assert (expected[f"day_{DAYS[-1]}_sparse"] % 2 == 1).any()
    same(tmp_path / "out", expected)


def test_one_hot_arrays_become_multi_hot(tmp_path, logs):
    expected = criteo_logs.slow_twin(logs)
    source = tmp_path / "one_hot"
    source.mkdir()
    for name, array in expected.items():
        np.save(source / f"{name}.npy", array)
    build(plan_of(source, tmp_path / "out"))
    same(tmp_path / "out", expected)
    assert (source / "day_0_sparse.npy").exists()  # the user's own files stay


# parse: 4; number: 26 x (4 days seen + 4 days numbered); shuffle: 1 + 40; one-hot: 12; multi-hot: 26 + 4
@pytest.mark.parametrize("kill", [0, 3, 6, 9, 213, 234, 256, 280, 293])
def test_a_killed_build_goes_on_where_it_was(tmp_path, logs, kill, monkeypatch):
    class Killed(BaseException):
        pass

    published: list[str] = []
    publish, apart = building.publish, (building.SETTINGS, "out")

    def dying(part, path):
        if len(published) == kill and path.name not in apart:
            raise Killed
        published.extend([path.name] * (path.name not in apart))
        publish(part, path)

    monkeypatch.setattr(building, "publish", dying)
    with pytest.raises(Killed):
        build(plan_of(logs, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    done, published, kill = published, [], -1
    build(plan_of(logs, tmp_path / "out"))
    same(tmp_path / "out", criteo_logs.slow_twin(logs))
    # nothing that was finished is made again (or the permutation)
    assert len(published) <= 295 - len(done) + 1


def test_what_was_built_is_what_is_read(tmp_path, logs, monkeypatch, capsys):
    monkeypatch.setattr(criteo, "DAYS", DAYS)
    monkeypatch.setattr(criteo, "VALIDATION_DAY", DAYS[-1])
    rows, bags = criteo_logs.ROWS, criteo_logs.BAGS
    data = Criteo(rows, bags)
    data.build(tmp_path, logs)
    data.build(tmp_path)
    assert criteo.locate(tmp_path) == (f"{tmp_path}/criteo_multihot", "days")
    assert capsys.readouterr().out.count("building") == 1
    expected = criteo_logs.slow_twin(logs)
    training = [expected[f"day_{day}_sparse"] for day in DAYS[:-1]]
    batch = data.train(tmp_path).batched(155)[0]
    matrices = criteo_logs.slow_bags()
    ids = np.concatenate(training)
    bag = [m[ids[:, t] % len(m)] for t, m in enumerate(matrices)]
    np.testing.assert_array_equal(batch["ids"], np.concatenate(bag, 1))
    (last,) = data.validation(tmp_path).batched(17).stream()
    np.testing.assert_array_equal(last["label"], expected["day_3_labels"][:17, 0])


def test_processes_are_for_large_sources_with_memory_to_spare(tmp_path, monkeypatch):
    plan = plan_of(tmp_path, "x")
    with open(tmp_path / "day_0", "wb") as file:
        file.truncate(20 << 30)  # a hole
    monkeypatch.setattr(building, "available_memory", lambda: 64 * 10**9)
    assert plan.with_processes(4).processes == 4 and plan.with_processes(99).processes == 8
    monkeypatch.setattr(building, "available_memory", lambda: 13 * 10**9)
    assert plan.with_processes(99).processes == 3
    monkeypatch.setattr(building, "available_memory", lambda: None)
    assert plan.with_processes(99).processes == 1


def test_work_begun_with_other_settings_is_refused(tmp_path, logs, monkeypatch):
    monkeypatch.setattr(builder, "_FROM_RAW", {"parse": lambda plan: 1 / 0})
    with pytest.raises(ZeroDivisionError):
        build(plan_of(logs, tmp_path / "out"))
    with pytest.raises(UserError, match="was begun with another round_ids"):
        build(plan_of(logs, tmp_path / "out", round_ids=False))


# -- what it needs -----------------------------------------------------------------------------


def test_the_estimate_of_the_official_build(tmp_path, monkeypatch):
    """4.37 G samples: the multi-hot files, a day's one-hot ids beside them, the tables of bags."""
    for day in range(24):
        (tmp_path / f"day_{day}").touch()
    monkeypatch.setattr(criteo_plan, "_estimate_lines", lambda path: 4_373_472_329 // 24)
    plan = criteo_plan.BuildPlan(str(tmp_path), "x", tuple(range(24)), criteo.ROWS, criteo.BAGS)
    needs = criteo_plan.needs(plan, raw=True)
    assert 4.4e12 < needs.disk < 4.6e12
    assert 18e9 < needs.memory < 20e9


def test_lines_are_estimated_from_the_beginning(tmp_path):
    logs = criteo_logs.write_logs(tmp_path / "raw")
    for day, samples in zip(DAYS, criteo_logs.SAMPLES):
        path = criteo_plan.raw_file(plan_of(logs, "x"), day)
        assert abs(criteo_plan._estimate_lines(path) - samples) <= 1


def test_too_little_room(tmp_path, logs, monkeypatch):
    huge = criteo_plan.Needs(1, 1 << 60, 0)
    monkeypatch.setattr(builder, "needs", lambda plan, raw: huge)
    with pytest.raises(UserError, match=r"GB free and the build needs 1,152,921,504\.6 GB"):
        build(plan_of(logs, tmp_path / "out"))
    huge = criteo_plan.Needs(1, 0, 1 << 60)
    with pytest.raises(UserError, match="of memory are available and the build needs"):
        build(plan_of(logs, tmp_path / "out"))
    assert not (tmp_path / "out.incomplete").exists()


# -- bad input ---------------------------------------------------------------------------------


def test_missing_days(tmp_path, logs):
    pathlib.Path(logs, "day_2").unlink()
    with pytest.raises(UserError, match="lacks 1 files, the first is day_2: all of days 0 to 3"):
        build(plan_of(logs, tmp_path / "out"))
    with pytest.raises(UserError, match="neither the raw logs"):
        build(plan_of(tmp_path, tmp_path / "out"))
    with pytest.raises(UserError, match="cannot read the folder"):
        build(plan_of(tmp_path / "nowhere", tmp_path / "out"))


def test_one_hot_sources_that_do_not_fit(tmp_path, logs):
    source = tmp_path / "one_hot"
    source.mkdir()
    expected = criteo_logs.slow_twin(logs)
    for name, array in expected.items():
        np.save(source / f"{name}.npy", array)
    bad = expected["day_1_sparse"].copy()
    bad[17, 4] = -5
    np.save(source / "day_1_sparse.npy", bad)
    words = r"day_1_sparse\.npy, sample 17, feature cat_4: id -5 is negative"
    with pytest.raises(UserError, match=words):
        build(plan_of(source, tmp_path / "a"))
    np.save(source / "day_1_sparse.npy", bad[:, :25])
    with pytest.raises(UserError, match=r"expected int32 \[samples, 26\]"):
        build(plan_of(source, tmp_path / "b"))
    (source / "day_3_dense.npy").unlink()
    with pytest.raises(UserError, match=r"lacks 1 files, the first is day_3_dense\.npy"):
        build(plan_of(source, tmp_path / "c"))


def line(label="1", numbers=("5",) * 13, words=("0000002a",) * 26) -> str:
    return "\t".join([label, *numbers, *words])


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (line()[:-9], r"line 3 has 39 fields, expected 40"),
        (line() + "\t", r"line 3 has 41 fields"),
        ("", r"line 3 has 1 fields"),
        (line(label="2"), r"line 3, field 1: '2': the label is 0 or 1"),
        (line(label="-"), r"line 3, field 1: '-': a whole number"),
        (line(numbers=("5", "1.5", *["5"] * 11)), r"line 3, field 3: '1.5': a whole number"),
        (line(numbers=("1x5",) + ("5",) * 12), r"line 3, field 2: '1x5': a whole number"),
        (line(numbers=("5",) * 12 + ("-",)), r"line 3, field 14: '-': a whole number"),
        (line(numbers=("5",) * 12 + ("-3",)), r"line 3, field 14: '-3': an integer is at least -2"),
        (
            line(numbers=("9999999999",) + ("5",) * 12),
            r"line 3, field 2: '9999999999': .* fits 32 bits",
        ),
        (
            line(numbers=("12345678x",) + ("5",) * 12),
            r"line 3, field 2: '12345678x': a whole number",
        ),
        (
            line(words=("0000002a",) * 25 + ("0000002g",)),
            r"line 3, field 40: '0000002g': a hexadecimal",
        ),
        (
            line(words=("000000:a",) + ("0000002a",) * 25),
            r"line 3, field 15: '000000:a': a hexadecimal",
        ),
        (
            line(words=("123456789",) + ("0000002a",) * 25),
            r"line 3, field 15: .*up to 8 hexadecimal",
        ),
    ],
)
def test_a_damaged_line_is_named(tmp_path, bad, said):
    path = tmp_path / "day_0"
    path.write_text("\n".join([line(), line(), bad, line()]) + "\n")
    with pytest.raises(UserError, match=r"day_0, " + said):
        list(raw_logs.read(str(path)))
    with pytest.raises(UserError, match=r"day_0, " + said):  # also where pieces are cut
        list(raw_logs.read(str(path), piece=300))


def test_short_and_upper_case_words():
    lines = raw_logs.parse((line(words=("2a", "2A", "0000002A") * 8 + ("", "f")) + "\n").encode())
    assert lines.words[0].tolist() == [42] * 24 + [0, 15]


def test_a_truncated_gzip_file(tmp_path, logs):
    path = pathlib.Path(logs, "day_1.gz")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"day_1\.gz is damaged or cut short after line"):
        build(plan_of(logs, tmp_path / "out"))
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"day_1\.gz is not gzipped"):
        build(plan_of(logs, tmp_path / "another"))
    path.unlink()
    (path.parent / "day_1").write_bytes(b"")
    with pytest.raises(UserError, match="day_1 is empty"):
        build(plan_of(logs, tmp_path / "other"))


# -- pieces ------------------------------------------------------------------------------------


def test_the_permutation_is_the_references():
    matrix = np.arange(2 * 1000, dtype=np.float32).reshape(1000, 2)
    np.random.RandomState(0).shuffle(matrix)
    np.testing.assert_array_equal(builder.permutation(1000), matrix[:, 0] // 2)
    np.testing.assert_array_equal(
        builder.permutation(1000), np.random.RandomState(0).permutation(1000)
    )


def test_float32_ids():
    ids = np.array([5, 2**24 - 1, 2**24 + 1, 2**25 + 3, 2**28 + 17, 2**28 + 16], np.int32)
    rounded = [5, 2**24 - 1, 2**24, 2**25 + 4, 2**28 + 32, 2**28]  # 2^28 + 16 is a tie: to even
    assert numbering.as_float32(ids).tolist() == rounded


def test_values_at_the_ends_of_their_range(tmp_path):
    values = np.array([0, 2**32 - 1, 2**31, 0, 7, 2**32 - 1], np.uint32)
    vocabulary = numbering.Vocabulary(tmp_path / "words", 0)
    vocabulary.add(values[:3])
    vocabulary.add(values[3:])
    assert vocabulary.sync() == 4
    vocabulary.close()
    assert numbering.Numbering(tmp_path / "words")(values).tolist() == [2, 3, 4, 2, 5, 3]
    shorter = numbering.Vocabulary(tmp_path / "words", 2)  # a killed build kept two too many
    shorter.add(values[::-1])
    shorter.close()
    found = np.fromfile(tmp_path / "words", np.uint32)
    assert found.tolist() == [0, 2**32 - 1, 7, 2**31]


def test_checksums_are_compared_for_files_of_the_official_size(tmp_path, monkeypatch):
    path = tmp_path / "day_0_labels.npy"
    np.save(path, np.zeros((100, 1), np.int32))
    assert builder.verify(tmp_path) == []
    monkeypatch.setitem(builder.MD5, path.name, (400, "0" * 32))
    (warning,) = builder.verify(tmp_path)
    assert warning.startswith("warning:") and "day_0_labels.npy has md5" in warning
    assert builder.verify(tmp_path, limit=399) == []
    assert builder.verify(tmp_path, limit=400) == [warning]
