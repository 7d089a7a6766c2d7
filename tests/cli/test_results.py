"""check, score, package, report."""

from mlperf_jax import cli
from mlperf_jax.results import log as logs


def test_check_repeats_the_findings(refused, tmp_path, capsys):
    path = tmp_path / "result_0.txt"
    with_log = logs.Log(path)
    with_log.event("submission_benchmark", "resnet")
    with_log.event("seed", 1)
    with_log.close()
    assert cli.main(["check", str(path)]) == 1
    out = capsys.readouterr().out
    assert "does not pass the official checker (resnet, ruleset 4.0.0)" in out
    assert "run_start" in out
    assert "no ruleset '9.9'" in refused(["check", path, "--ruleset", "9.9"])
