"""check, score, package, report."""

from score_sets import resnet_set, write

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


def test_score_and_report_take_the_scaling(tmp_path, refused, capsys):
    logs_of_set = resnet_set(10, 10, 10, 10, 10, length=35.0)
    folder = write(tmp_path / "lab/results/box/resnet", *logs_of_set)
    (folder / "scaling.json").write_text('{"scaling_factor": 1.5}')
    given = [str(folder), "--ruleset", "4.0"]
    for number, (options, minutes, words) in enumerate(
        [
            ([], "15.000 minutes", "scaled by 1.5000 from scaling.json; 10.044 minutes, scaled"),
            (["--scaling", "rcp"], "10.044 minutes", "scaled by 1.0044 by the reference"),
            (["--scaling", "none"], "10.000 minutes", "10.044 minutes, scaled by 1.0044"),
        ]
    ):
        cli.main(["score", *given, *options])
        assert capsys.readouterr().out.splitlines()[1].startswith(minutes)
        page = tmp_path / f"page-{number}.html"
        assert cli.main(["report", *given, "--out", str(page), *options]) == 0
        capsys.readouterr()
        assert words in page.read_text(encoding="utf-8")
    assert "scaling" in refused(["report", folder, "--scaling", "all"])
