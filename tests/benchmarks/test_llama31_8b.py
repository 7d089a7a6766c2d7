"""Llama 3.1 8B: recipes, rates, optimizer, evaluation, log and data against rules and fact sheet."""

import gzip
import json

import numpy as np
import pytest

from mlperf_jax import benchmarks
from mlperf_jax.benchmarks.llama31_8b import Llama31_8B
from mlperf_jax.core import preflight
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import text
from mlperf_jax.input_pipelines.tokens import megatron, megatron_file
from tests.benchmarks.language_models import write_tokens


def test_learning_rate() -> None:
    """NeMo's warm-up (t + 1) / (W + 1), then a cosine whose horizon is in steps at any batch size."""
    for size in (16, 96):
        recipe = Llama31_8B.recipes()[size]
        rate, base = recipe.learning_rate(), recipe.base_lr
        warm = -(-recipe.warmup_samples // size)
        for t in (0, 1, warm - 1, warm):
            np.testing.assert_allclose(rate(t), base * (t + 1) / (warm + 1), rtol=1e-6)
        middle = (1_200_000 + warm) // 2
        np.testing.assert_allclose(rate(middle), 0.55 * base, rtol=1e-4)
        np.testing.assert_allclose(rate(1_200_000), 0.1 * base, rtol=1e-3)


def test_whole_batches_of_the_first_windows_are_evaluated(tmp_path) -> None:
    """GBS * ceil(n / GBS) windows in file order, on into a second copy of the documents."""
    write_tokens(tmp_path / "valid", [50, 33, 20])
    small = (
        Llama31_8B()
        .tiny()
        .replace(validation_file="valid", eval_samples=12, batch_size=8, sequence_length=8)
    )
    data = small.data().validation(str(tmp_path))
    assert len(data) == 16
    file = np.fromfile(tmp_path / "valid.bin", np.uint16)
    stream = np.concatenate([file, file]).astype(np.int32)
    batches = data.batched(8)
    rows = [row for batch in batches for row in batch["inputs"]]
    np.testing.assert_array_equal(np.concatenate(rows), stream[: 16 * 8])
    labels = [row for batch in batches for row in batch["labels"]]
    np.testing.assert_array_equal(np.concatenate(labels), stream[1 : 16 * 8 + 1])


def test_order_follows_steps_batch_and_seed(tmp_path) -> None:
    """The order depends on the samples of the whole schedule (facts: llama31 section 3b)."""
    write_tokens(tmp_path / "train", [30] * 9)
    small = Llama31_8B().tiny().replace(train_files=("train",), sequence_length=8, max_steps=50)

    def first(benchmark, seed):
        return benchmark.data().train(str(tmp_path)).batched(8, seed=seed)[0]["inputs"]

    wanted = first(small.replace(batch_size=8), 1)
    assert small.replace(batch_size=8).requested_samples() == 400
    np.testing.assert_array_equal(first(small.replace(batch_size=8), 1), wanted)
    assert (first(small.replace(batch_size=8), 2) != wanted).any()
    assert (first(small.replace(batch_size=16), 1) != wanted).any()


def test_the_order_is_made_before_the_clock_starts(tmp_path, monkeypatch) -> None:
    """From lengths alone: a token is read after `run_start` only."""
    said = []
    log = lambda: (tmp_path / "out" / "result_0.txt").read_text()  # noqa: E731
    ready, read = megatron.TokenWindows.ready, megatron_file.TokenFile.read

    def ordering(self):
        said.append(("ready", self.windows.sources[0].seed, "run_start" in log()))
        return ready(self)

    def reading(self, *where):
        said.append(("read", "run_start" in log()))
        return read(self, *where)

    folder = str(tmp_path / "data")
    benchmarks.build_data(benchmarks.get("llama31_8b", tiny=True), folder)
    monkeypatch.setattr(megatron.TokenWindows, "ready", ordering)
    monkeypatch.setattr(megatron_file.TokenFile, "read", reading)
    settings = {"seed": 5, "mesh": "data=1", "show": "none", "max_samples": 16}
    benchmarks.run(
        "llama31_8b", tiny=True, data_dir=folder, output=str(tmp_path / "out"), **settings
    )
    assert said[0] == ("ready", 5, False)
    assert set(said[1:]) == {("read", True)}


def test_missing_damaged_and_short_data_are_named(tmp_path) -> None:
    tiny = Llama31_8B().tiny().replace(train_files=("train",), validation_file="valid")
    with pytest.raises(UserError, match=r"train\.bin is missing"):
        tiny.data().counts(str(tmp_path))
    write_tokens(tmp_path / "train", [3000])
    write_tokens(tmp_path / "valid", [3 * 64 + 1])
    assert tiny.data().counts(str(tmp_path)) == {"validation": 3}
    with pytest.raises(UserError, match="hold 3 validation samples and llama31_8b expects 128"):
        preflight.check_counts(tiny, str(tmp_path))
    whole = (tmp_path / "train.bin").read_bytes()
    (tmp_path / "train.bin").write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"train\.bin.*bytes"):
        tiny.data().counts(str(tmp_path))


def test_ids_beyond_the_vocabulary_are_named_by_file_and_byte(tmp_path) -> None:
    write_tokens(tmp_path / "train", [3000])
    write_tokens(tmp_path / "valid", [3000])
    raw = np.fromfile(tmp_path / "train.bin", np.uint16)
    raw[70] = 600
    raw.tofile(tmp_path / "train.bin")
    tiny = Llama31_8B().tiny().replace(train_files=("train",), validation_file="valid")
    found = tiny.data().check(str(tmp_path))
    problems = [line for line in found if line.startswith("problem:")]
    assert len(problems) == 1
    assert "train.bin" in problems[0] and "600" in problems[0] and "byte 140" in problems[0]


def test_sequences_beyond_two_tokens() -> None:
    with pytest.raises(
        UserError, match="sequence_length must be a whole number of tokens, at least 2"
    ):
        Llama31_8B(sequence_length=1)


def test_builds_from_the_organisers_c4(tmp_path, capsys) -> None:
    """128 training files of group 6 in order, and only the first 91,205 validation documents."""
    source, out = tmp_path / "en", tmp_path / "out"
    source.mkdir()
    texts = [f"document {number} of the crawl" for number in range(128)]
    text.train_tokenizer(texts, 300, source / "tokenizer.json")
    for number, line in enumerate(texts):
        name = f"c4-train.{768 + number:05d}-of-01024.json.gz"
        (source / name).write_bytes(gzip.compress(json.dumps({"text": line}).encode()))
    for number in range(8):
        lines = "".join(json.dumps({"text": f"held out {number}"}) + "\n" for _ in range(12_000))
        name = f"c4-validation.{number:05d}-of-00008.json.gz"
        (source / name).write_bytes(gzip.compress(lines.encode(), 1))
    benchmark = Llama31_8B()
    benchmark.data().build(str(out), str(source))
    reader = text.open_tokenizer(source)
    train = megatron_file.TokenFile(out / benchmark.train_files[0])
    assert train.documents == 128
    first = train.read([0], [int(train.lengths[0])])
    assert reader.decode(first.tolist()) == texts[0]
    assert megatron_file.TokenFile(out / benchmark.validation_file).documents == 91_205
