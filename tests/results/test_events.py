"""Event files, read back by TensorBoard's own reader."""

import errno
import json
import math
import os
import sys

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from mlperf_jax.cli import main
from mlperf_jax.errors import UserError
from mlperf_jax.results import events
from mlperf_jax.results.runs import RunFolder, RunSet, Scalars

CONFIG = {
    "benchmark": "resnet",
    "batch_size": 64,
    "base_lr": 0.1,
    "flip": True,
    "stages": [1, 2],
    "optimizer": None,
    "targets": [{"name": "accuracy", "at_least": 0.9, "at_most": None, "above": None}],
}
START = 1_700_000_000  # seconds


def line(key, seconds, value=None, **metadata):
    members = {"namespace": "", "time_ms": 1000 * (START + seconds), "event_type": "INTERVAL_START"}
    return f":::MLLOG {json.dumps({**members, 'key': key, 'value': value, 'metadata': metadata})}\n"


@pytest.fixture
def run(tmp_path):
    """A run's folder: two blocks of ten seconds, ten seconds of evaluation between them."""
    with RunSet(tmp_path / "set").create(CONFIG, {"seed": 7}) as made:
        scalars = Scalars(made.scalars_path)
        scalars.write(step=1, samples=64, loss=2.5, rate=0.1)
        scalars.write(step=2, samples=128, loss=math.inf, rate=0.1)
        scalars.write(step=3, samples=192, loss=1.25, rate=0.3)
        scalars.close()
        made.log_path.write_text(
            line("init_start", -5)
            + line("run_start", 0)
            + line("block_start", 0, samples_count=0)
            + line("block_stop", 10, samples_count=128)
            + line("eval_accuracy", 18, 0.75, samples_count=128, epoch_num=1)
            + line("block_start", 20, samples_count=128)
            + line("block_stop", 30, samples_count=256)
        )
    return made


def read(run):
    """What TensorBoard reads of a run: all of its points, sampled by nothing."""
    sizes = {event_accumulator.SCALARS: 0, event_accumulator.TENSORS: 0}
    found = event_accumulator.EventAccumulator(str(run.path / "tensorboard"), sizes)
    return found.Reload()


def points(run, tag):
    return [(point.step, point.value) for point in read(run).Scalars(tag)]


def test_what_a_run_told_is_what_is_read(run):
    (path,) = events.convert(run.path)
    assert [path] == events.files(run)
    assert read(run).Tags()["scalars"] == ["train/loss", "train/rate", "eval/accuracy"]
    assert points(run, "train/rate") == [
        (samples, float(np.float32(rate))) for samples, rate in ((64, 0.1), (128, 0.1), (192, 0.3))
    ]
    losses = points(run, "train/loss")
    assert losses[::2] == [(64, 2.5), (192, 1.25)]
    assert losses[1][0] == 128 and math.isnan(losses[1][1])
    assert points(run, "eval/accuracy") == [(128, 0.75)]


def test_times_are_read_off_the_log(run):
    events.convert(run.path)
    seconds = [point.wall_time - START for point in read(run).Scalars("train/loss")]
    assert seconds == [5.0, 20.0, 25.0]
    assert [point.wall_time - START for point in read(run).Scalars("eval/accuracy")] == [18.0]


def test_the_configuration_is_there_as_text_and_as_hyperparameters(run):
    events.convert(run.path)
    found = read(run)
    (text,) = found.Tensors("config")
    (shown,) = text.tensor_proto.string_val
    document = json.loads(shown.decode().strip("`\n"))
    assert document["config"] == CONFIG and document["options"]["seed"] == 7
    content = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    told = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert sorted(told) == ["base_lr", "batch_size", "benchmark", "flip"]
    assert told["base_lr"].number_value == 0.1 and told["flip"].bool_value


def test_what_is_added_goes_on_and_what_was_there_is_replaced(run):
    for _ in range(2):
        made = events.Events(run)
        made.record(256, {"loss": 1.0, "rate": 0.3})
        made.evaluated(256, "accuracy", np.float32(0.5), 1000 * (START + 40))
        made.evaluated(320, "accuracy", math.inf)
        made.close()
        made.close()
        assert len(events.files(run)) == 1
        assert [samples for samples, _ in points(run, "train/loss")] == [64, 128, 192, 256]
        qualities = read(run).Scalars("eval/accuracy")
        assert [(point.step, point.wall_time - START) for point in qualities[:2]] == [
            (128, 18.0),
            (256, 40.0),
        ]
        assert math.isnan(qualities[2].value)
        (path,) = events.files(run)
        path.rename(path.with_name("events.out.tfevents.0000000001.run_0"))  # of an earlier second
    events.convert(run.path)  # neither file of the run tells of what was added
    assert [samples for samples, _ in points(run, "train/loss")] == [64, 128, 192]


def test_a_file_made_anew_keeps_the_times_it_had(run):
    made = events.Events(run)
    with open(run.scalars_path, "a") as scalars:
        scalars.write('{"step": 4, "samples": 256, "loss": 1.0}\n')
    made.record(256, {"loss": 1.0})
    made.close()
    when = read(run).Scalars("train/loss")[-1].wall_time
    assert when > START + 30, "now, not the time of the log's lines"
    (path,) = events.files(run)
    with open(path, "ab") as file:
        file.write(b"\x40\0\0\0\0\0\0\0half a record, as a kill leaves it")
    events.convert(run.root)
    assert [point.wall_time for point in read(run).Scalars("train/loss")][-1] == when
    assert b"half a record" not in events.files(run)[0].read_bytes()


@pytest.mark.parametrize("content", [b"", b"no event file" * 9, b"\xff" * 64])
def test_a_spoilt_event_file_is_made_anew(run, content):
    (path,) = events.convert(run.path)
    path.write_bytes(content)
    events.convert(run.path)
    assert points(run, "eval/accuracy") == [(128, 0.75)]
    assert read(run).Scalars("train/loss")[0].wall_time == START + 5


def test_a_run_that_told_nothing_has_its_configuration(tmp_path):
    with RunSet(tmp_path).create(CONFIG, {"seed": 1}):
        pass
    events.convert(tmp_path)
    tags = read(RunFolder(tmp_path, 0)).Tags()
    assert tags["scalars"] == [] and len(tags["tensors"]) == 2


def test_a_full_disk_is_told_and_leaves_whole_records(run, monkeypatch):
    made, write = events.Events(run), os.write

    def nearly_full(file, data):
        if len(data) < 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data[:20])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left"):
        made.record(256, {"loss": 1.0})
    monkeypatch.undo()
    made.record(320, {"loss": 0.5})
    made.close()
    assert [samples for samples, _ in points(run, "train/loss")] == [64, 128, 192, 320]


# -- bad input -------------------------------------------------------------------------------------


def test_the_extra_is_named(run, monkeypatch):
    events._library.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r'an extra: pip install "mlperf-jax\[tensorboard\]"'):
        events.convert(run.path)
    assert not (run.path / "tensorboard").exists()


def test_a_run_that_is_being_written_is_left_alone(run):
    with run.acquire(), pytest.raises(UserError, match="is being written by this very process"):
        events.convert(run.path)
    assert events.files(run) == []


def test_damage_is_told_of(run, tmp_path):
    with pytest.raises(UserError, match="is not the folder of a run"):
        events.convert(tmp_path)
    run.scalars_path.write_text('{"step": 1, "samples": "many", "loss": 1.0}\n')
    with pytest.raises(UserError, match=r"scalars.jsonl has a line with samples 'many'"):
        events.convert(run.path)
    run.scalars_path.write_text('{"step": 1}\n')
    with pytest.raises(UserError, match="samples None"):
        events.convert(run.path)
    run.scalars_path.write_text("{")
    run.config_path.write_text('{"config_hash": "0", "config": 3}')
    with pytest.raises(UserError, match=r"config.json has no configuration"):
        events.convert(run.path)
    assert events.files(run) == []


def test_a_file_in_the_folders_place_is_told_of(run):
    (run.path / "tensorboard").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        events.convert(run.path)


def test_the_command_prints_the_files(run, capsys):
    assert main(["tensorboard", str(run.root)]) == 0
    assert capsys.readouterr().out.strip() == str(events.files(run)[0])
