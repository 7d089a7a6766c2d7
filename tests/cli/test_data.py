"""data build, data check."""

import re

from mlperf_jax import benchmarks, cli


def test_data_check_of_good_data(tiny_data, capsys):
    assert cli.main(["data", "check", "resnet", "--tiny", "--data-dir", tiny_data]) == 0
    assert "can be trained on" in capsys.readouterr().out


def test_data_check_scores_the_start_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mlperf_jax.benchmarks.bert._TINY_STEPS", 2)
    argv = ["data", "check", "bert", "--tiny", "--data-dir", str(tmp_path)]
    assert cli.main(["data", "build", *argv[2:]]) == 0
    assert cli.main(argv) == 0
    assert "the start weights were not scored: --score does" in capsys.readouterr().out
    assert cli.main([*argv, "--score", "--mesh", "data=4"]) == 0
    found = re.search(r"the start weights score mlm_accuracy (0\.\d{5})\n", capsys.readouterr().out)
    assert found and 0 < float(found[1]) < 0.11


def test_only_start_weights_are_scored(tiny_data, refused):
    argv = ["data", "check", "resnet", "--tiny", "--data-dir", tiny_data, "--score"]
    assert "resnet begins with random weights" in refused(argv)


def test_data_check_fails_on_a_damaged_record(tmp_path, refused):
    benchmarks.build_data(benchmarks.get("resnet", tiny=True), str(tmp_path))
    shard = next(tmp_path.rglob("*train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[300:3000] = bytes(2700)
    shard.write_bytes(content)
    said = refused(["data", "check", "resnet", "--tiny", "--data-dir", tmp_path])
    assert "record 0" in said
    assert shard.name in said


def test_data_check_counts(tiny_data, refused):
    argv = ["data", "check", "resnet", "--tiny", "--data-dir", tiny_data, "--train-samples", "99"]
    assert "expects 99" in refused(argv)
