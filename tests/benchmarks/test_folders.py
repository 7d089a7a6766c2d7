"""Where data lie, and what happens when tiny's are damaged: the advice of each message is followed to the letter."""

import io
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import sys

import pytest

from mlperf_jax import benchmarks, cli
from mlperf_jax.benchmarks.folders import told_of_tiny
from mlperf_jax.core.options import RunOptions
from mlperf_jax.errors import DataError, UserError

COMMAND = re.compile(r"mlperf-jax (data build .*?)(?:[;,)]|$)")
CHEAP = ("resnet", "retinanet", "unet3d", "dlrm_dcnv2", "llama31_8b", "stable_diffusion", "rgat")
DEAR = ("gpt3", "bert", "llama2_70b_lora", "llama31_405b")  # each mending takes seconds


def files_of(name: str, folder: str) -> list[str]:
    """The files of a benchmark's tiny data: the folder may hold those of others too."""
    noted = json.loads(pathlib.Path(folder, ".generated.json").read_text())
    return sorted(path for what, sums in noted.items() if what.split()[0] == name for path in sums)


def begins(name: str, folder: str | None) -> str:
    """The folder that a run would read, opened as it begins: the data, the weights, and a batch of each split."""
    benchmark = benchmarks.get(name, tiny=True)
    where = benchmarks.data_folder(benchmark, RunOptions(data_dir=folder))
    for split in (benchmark.data().train(where), benchmark.data().validation(where)):
        next(iter(split.batched(2).stream(threads=0)))
    return where


def complaint(name: str, folder: str) -> str | None:
    """What a run has against the data, as its command tells it."""
    try:
        begins(name, folder)
    except DataError as error:
        return told_of_tiny(benchmarks.get(name, tiny=True), folder, str(error))
    except UserError as error:
        return str(error)
    return None


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "removed": pathlib.Path.unlink,
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "overwritten": lambda path: path.write_bytes(b"[]"),
}


@pytest.fixture
def own(name: str, tiny_data, tmp_path: pathlib.Path) -> str:
    """A folder of its own with the tiny data of one benchmark."""
    shutil.copytree(tiny_data(name), tmp_path / "data")
    return str(tmp_path / "data")


@pytest.mark.parametrize(
    "name", [*CHEAP, *(pytest.param(name, marks=pytest.mark.slow) for name in DEAR)]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_advice_of_a_message_mends_what_it_calls_damaged(name, damage, own, capsys):
    """One file after the other, of many one of each folder; what is refused names a command, and after it the run begins."""
    paths, refused = files_of(name, own), 0
    if len(paths) > 12:
        paths = [next(group) for _, group in itertools.groupby(paths, os.path.dirname)]
    for path in paths:
        whole = (pathlib.Path(own) / path).read_bytes()
        mine = pathlib.Path(own, path).with_name("mine.txt")
        mine.write_text("of the user")
        DAMAGES[damage](pathlib.Path(own) / path)
        said = complaint(name, own)
        if said is not None:
            refused += 1
            (command,) = COMMAND.findall(said)
            assert cli.main(shlex.split(command)) == 0, capsys.readouterr()
            assert complaint(name, own) is None
            assert (pathlib.Path(own) / path).read_bytes() == whole
        assert mine.read_text() == "of the user"
        mine.unlink()
        (pathlib.Path(own) / path).write_bytes(whole)
    assert refused


@pytest.mark.parametrize("name", ["resnet", "rgat"])
def test_in_tinys_own_folder_what_is_damaged_is_made_again_and_said(
    name, tiny_data, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = benchmarks.default_tiny_folder()
    shutil.copytree(tiny_data(name), folder)
    path = next(
        p for p in files_of(name, folder) if p.endswith(("dataset_info.json", "indptr.npy"))
    )
    (pathlib.Path(folder) / path).write_bytes(b"[]")
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    assert begins(name, None) == folder
    assert f"tiny data in {folder} were damaged and are made again" in said.getvalue()
    begins(name, None)
    assert said.getvalue().count("made again") == 1


def test_a_record_that_stops_a_run_is_told_with_what_makes_it_again(tiny_data, tmp_path, capsys):
    own = str(tmp_path / "data")
    shutil.copytree(tiny_data("dlrm_dcnv2"), own)
    path = pathlib.Path(own, "criteo_tiny", "1.0.0", "day_0_labels.npy")
    whole = bytearray(path.read_bytes())
    path.write_bytes(whole[:128] + b"\7" + whole[129:])
    words = ["run", "dlrm_dcnv2", "--tiny", "--data-dir", own, "--max-samples", "4096"]
    words += ["--output", str(tmp_path / "runs")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "day_0_labels.npy, sample 0: the label is 7" in said
    (command,) = COMMAND.findall(said.strip().splitlines()[-1])
    assert cli.main(shlex.split(command)) == 0
    assert path.read_bytes() == whole
    assert cli.main([*words, "--resume"]) in (0, 1)


def test_a_file_is_no_data_folder(tmp_path):
    path = tmp_path / "file"
    path.touch()
    for call in (
        lambda: benchmarks.run("resnet", data_dir=str(path)),
        lambda: benchmarks.run("resnet", tiny=True, data_dir=str(path)),
        lambda: benchmarks.build_data(benchmarks.get("resnet", tiny=True), str(path)),
        lambda: benchmarks.build_data(benchmarks.get("resnet"), str(path)),
    ):
        with pytest.raises(UserError, match=r"--data-dir .*/file is a file: give the folder"):
            call()
    for words in (["data", "check"], ["data", "build"]):
        assert cli.main([*words, "resnet", "--tiny", "--data-dir", str(path)]) == 2
