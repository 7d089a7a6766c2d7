"""An output folder in a bucket, with a local stand-in for the bucket."""

import re
import sys

import fsspec
import pytest

from mlperf_jax.errors import UserError
from mlperf_jax.results.remote import Mirror


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A `gs://` filesystem that lies in memory, counting what is copied."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory", skip_instance_cache=True)
    memory.store = {}
    memory.pseudo_dirs = [""]

    class Bucket:
        puts: list

        def put_file(self, local, remote):
            self.puts.append(remote)
            memory.put_file(local, remote.removeprefix("gs:/"))

        def find(self, url, **limits):
            names = memory.find(url.removeprefix("gs:/"), **limits)
            return [name.removeprefix("/") for name in names]

        def glob(self, pattern):
            return [name.removeprefix("/") for name in memory.glob(pattern.removeprefix("gs:/"))]

        def rm_file(self, remote):
            memory.rm_file(remote.removeprefix("gs:/"))

        def cat_file(self, name):
            return memory.cat_file("/" + name)

    bucket = Bucket()
    bucket.puts = []
    return bucket


def fill(mirror, files):
    for name, text in files.items():
        path = mirror.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


FILES = {
    "result_0.txt": "log\n",
    "run_0/config.json": "{}",
    "run_0/scalars.jsonl": "1\n",
}


def test_a_local_output_is_itself(tmp_path):
    mirror = Mirror(tmp_path / "out")
    assert mirror.local == tmp_path / "out"
    assert mirror.url is None
    assert mirror.checkpoints(2) == f"{tmp_path}/out/run_2/checkpoints"
    mirror.pull()
    mirror.push(final=True)
    assert not mirror.local.exists()


def test_s3_is_refused_with_what_to_do():
    with pytest.raises(UserError, match="s3:// is not supported; mount the bucket"):
        Mirror("s3://bucket/x")
    with pytest.raises(UserError, match="local folder or a gs:// one"):
        Mirror("ftp://host/x")


def test_gs_needs_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=re.escape('pip install "mlperf-jax[gcs]"')):
        Mirror("gs://bucket/x")


def test_only_changed_small_files_are_copied(bucket):
    mirror = Mirror("gs://bucket/runs/", filesystem=bucket)
    assert mirror.checkpoints(0) == "gs://bucket/runs/run_0/checkpoints"
    fill(mirror, FILES | {"run_0/lock": "x", "run_0/checkpoints/big": "x", "notes.txt": "x"})
    mirror.push()
    root = "gs://bucket/runs"
    assert bucket.puts == [
        f"{root}/result_0.txt",
        f"{root}/run_0/config.json",
        f"{root}/run_0/scalars.jsonl",
    ]
    mirror.push()
    assert len(bucket.puts) == 3
    fill(mirror, {"result_0.txt": "log\nmore\n", "run_0/resumed.json": "1"})
    mirror.push(final=True)
    assert bucket.puts[3:] == [f"{root}/result_0.txt", f"{root}/run_0/resumed.json"]


def test_a_run_goes_on_on_another_machine(bucket, tmp_path, monkeypatch):
    first = Mirror("gs://bucket/runs", filesystem=bucket)
    fill(first, FILES)
    first.push()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    second = Mirror("gs://bucket/runs", filesystem=bucket)
    assert second.local != first.local
    second.pull()
    assert (second.local / "result_0.txt").read_text() == "log\n"
    assert (second.local / "run_0/scalars.jsonl").read_text() == "1\n"
    fill(second, {"result_0.txt": "log\nother\n"})
    second.push()
    fill(first, {"result_0.txt": "log\nlonger, but of a machine that was lost\n"})
    first.pull()
    assert (first.local / "result_0.txt").read_text() == "log\nother\n"


def test_an_event_file_takes_the_place_of_the_one_before(bucket, tmp_path, monkeypatch):
    first = Mirror("gs://bucket/runs", filesystem=bucket)
    events = "run_0/tensorboard/events.out.tfevents"
    fill(first, FILES | {f"{events}.1.run_0": "a", "run_1/tensorboard/events.out.tfevents.1": "b"})
    first.push()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    second = Mirror("gs://bucket/runs", filesystem=bucket)
    second.pull()
    earlier = second.local / f"{events}.1.run_0"
    assert earlier.read_text() == "a"
    earlier.rename(second.local / f"{events}.2.run_0")
    second.push()
    left = bucket.find("gs://bucket/runs")
    assert [name.rpartition("runs/")[2] for name in left if "tfevents" in name] == [
        f"{events}.2.run_0",
        "run_1/tensorboard/events.out.tfevents.1",
    ]


def test_lines_that_were_not_copied_yet_are_kept(bucket):
    mirror = Mirror("gs://bucket/runs", filesystem=bucket)
    fill(mirror, FILES)
    mirror.push()
    fill(mirror, {"result_0.txt": "log\nmore\n"})
    mirror.pull()
    assert (mirror.local / "result_0.txt").read_text() == "log\nmore\n"


def test_an_empty_bucket_has_nothing_to_fetch(bucket):
    mirror = Mirror("gs://bucket/none", filesystem=bucket)
    mirror.pull()
    assert not mirror.local.exists()


def test_a_bucket_that_fails_warns_during_the_run_and_raises_at_its_end(bucket, monkeypatch):
    mirror = Mirror("gs://bucket/runs", filesystem=bucket)
    fill(mirror, FILES)

    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(bucket, "put_file", fail)
    with pytest.warns(UserWarning, match="no route"):
        mirror.push()
    with pytest.raises(UserError, match=f"the files are in {mirror.local}"):
        mirror.push(final=True)
    monkeypatch.undo()
    monkeypatch.setattr(bucket, "find", fail)
    with pytest.raises(UserError, match="check the name and your credentials"):
        mirror.pull()
