"""data build, data check."""

from mlperf_jax import benchmarks, cli


def test_data_check_of_good_data(tiny_data, capsys):
    assert cli.main(["data", "check", "resnet", "--tiny", "--data-dir", tiny_data]) == 0
    assert "can be trained on" in capsys.readouterr().out


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
