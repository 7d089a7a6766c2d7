"""data fetch, data build, data check."""

import re

import pytest
from download_site import part, serving

from mlperf_jax import benchmarks, cli
from mlperf_jax.input_pipelines.downloads import manifest

# -- data fetch --------------------------------------------------------------------------------


@pytest.fixture
def site(monkeypatch):
    """A site on this machine, whose files are all that bert is said to need."""
    with serving() as made:
        made.add("text/part", b"text")
        parts = [
            made.set("text", ["part"], into="t", after="unpack {dir}/t"),
            part("bound", address=made.add("bound", b"bound"), into="b", accept=True),
            part("asked", page="https://example.org/form", by_hand="put it into {dir}/a"),
            part("extra", address=made.add("extra", b"extra"), into="e", optional=True),
        ]
        build = "mlperf-jax data build bert --data-dir {dir}"
        stated = manifest.Manifest("bert", {each.key: each for each in parts}, build)
        monkeypatch.setattr(manifest, "load", lambda name: stated)
        yield made


def fetched(folder):
    return sorted(p.name for p in folder.rglob("[!.]*") if p.is_file())


def test_data_fetch_tells_what_there_is_and_fetches_nothing(site, tmp_path, capsys):
    for argv in (["data", "fetch", "bert"], ["data", "fetch", "bert", "--list"]):
        assert cli.main(argv) == 0
        assert "bert: what its data are" in capsys.readouterr().out
    assert cli.main([*argv, "--data-dir", str(tmp_path)]) == 0
    assert f"by hand: https://example.org/form: put it into {tmp_path}/a" in " ".join(
        capsys.readouterr().out.split()
    )
    assert site.asked == [] and fetched(tmp_path) == []


def test_data_fetch_of_what_is_free_and_then_of_what_is_accepted(site, tmp_path, capsys):
    argv = ["data", "fetch", "bert", "--data-dir", str(tmp_path)]
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert fetched(tmp_path) == ["part"]
    assert f"unpack {tmp_path}/t" in out and f"data build bert --data-dir {tmp_path}" in out
    assert "asked is to be had by hand (https://example.org/form)" in err
    last = "mlperf-jax: not fetched without a licence accepted: bound; read https://example.org/licence"
    assert err.splitlines()[-1].startswith(last)
    assert cli.main([*argv, "--accept-licence"]) == 0
    out, err = capsys.readouterr()
    assert fetched(tmp_path) == ["b", "part"]
    assert "bert: 1 files were fetched" in out
    assert "licence: a licence, https://example.org/licence" in err


def test_data_fetch_of_some_parts(site, tmp_path, capsys, refused):
    argv = ["data", "fetch", "bert", "--data-dir", tmp_path, "--only", "extra,asked"]
    assert cli.main(list(map(str, argv))) == 0
    assert fetched(tmp_path) == ["e"]
    assert "have no part 'extar': did you mean 'extra'?" in refused([*argv[:-1], "extar"])
    refused([*argv[:-1], "bound"])
    assert fetched(tmp_path) == ["e"]


def test_data_fetch_says_in_one_sentence_what_went_wrong(site, tmp_path, capsys):
    site.files["text/part"].content = b"damaged"
    argv = ["data", "fetch", "bert", "--data-dir", str(tmp_path), "--only", "text", "extra"]
    assert cli.main(argv) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"mlperf-jax: what came from .*/text/part has the MD5", last)
    assert fetched(tmp_path) == ["e"]


def test_a_benchmark_of_ones_own_is_not_fetched(tmp_path, refused):
    (tmp_path / "wine.py").write_text(
        "from mlperf_jax.benchmarks.resnet import ResNet50\n"
        "from dataclasses import dataclass\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Wine(ResNet50):\n"
        "    name = 'wine'\n    ruleset = ''\n"
    )
    said = refused(["data", "fetch", f"{tmp_path}/wine.py:Wine", "--data-dir", tmp_path])
    assert "nobody has stated where the data of " in said


# -- data check --------------------------------------------------------------------------------


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
