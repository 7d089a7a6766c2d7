"""LAION as a data set: its index built and resumed, what is read of it, prompts, embeddings, and the shapes."""

import json
import os
import pathlib
import pickle
import shutil
import sys
import types

import numpy as np
import pytest
from laion_toys import (
    HEADER,
    LENGTH,
    Letters,
    all_rows,
    captions_of,
    moments,
    small,
    write_set,
    write_tar,
)

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import pipeline
from mlperf_jax.input_pipelines.laion import Laion, files, prompts, write_embeddings
from mlperf_jax.input_pipelines.tokenizers import clip_bpe
from scripts import make_laion_reference as reference

WIDTH = 6


@pytest.fixture(autouse=True, scope="module")
def one_process():
    """Indices are written in this one: to start another takes longer than all of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "usable_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("laion")
    write_set(folder / "laion")
    small().build(folder)
    return str(folder)


@pytest.fixture
def copied(built, tmp_path) -> pathlib.Path:
    """The folder of a copy that a test may damage; the data folder is its parent."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "laion"


# -- rows ------------------------------------------------------------------------------------------


def test_an_epoch_holds_every_sample_once_with_its_caption(built):
    split = small().train(built)
    assert len(split) == 15 and split.steps_per_epoch(5) == 3
    rows = all_rows(split, 5, 3)
    assert rows["moments"].shape == (15, 4, 4, 8) and rows["moments"].dtype == np.float32
    assert rows["tokens"].shape == (15, LENGTH) and rows["tokens"].dtype == np.int32
    left = {k: t for shard in range(3) for k, t in captions_of(shard).items()}
    for image, tokens in zip(rows["moments"], rows["tokens"]):
        (key,) = [k for k in left if (moments(k)[0].transpose(1, 2, 0) == image).all()]
        assert tokens.tolist() == Letters()(left.pop(key)).tolist()
    assert not left


def test_the_order_is_shuffled_anew_and_depends_on_the_seed(built):
    batches = small().train(built).batched(5, seed=3)
    other = small().train(built).batched(5, seed=4)
    epochs = [
        np.concatenate([source[3 * epoch + i]["moments"][:, 0, 0, 0] for i in range(3)]).tolist()
        for source, epoch in ((batches, 0), (batches, 1), (other, 0))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_batches_run_on_across_epochs_and_threads_give_the_same(built):
    split = small().train(built)
    assert split.steps_per_epoch(4) == 3
    batches = split.batched(4, seed=1)
    streamed = batches.stream(2, threads=3)
    for number in range(2, 8):
        batch, again = next(streamed), batches[number]
        for name in ("moments", "tokens"):
            np.testing.assert_array_equal(batch[name], again[name])
    streamed.close()
    part = split.batched(4, seed=1, share=lambda rows: (1, 3))[5]
    np.testing.assert_array_equal(part["moments"], batches[5]["moments"][1:3])


def test_a_shard_of_webdataset(tmp_path):
    shutil.copy(reference.TAR, tmp_path / "00000.tar")
    (tmp_path / "val2014_30k.tsv").write_text(f"{HEADER}\n1\t2\ta\n")
    data = small(shards=1)
    data.build(tmp_path)
    rows = all_rows(data.train(tmp_path), 3, 1)
    captions = {tuple(Letters()(t).tolist()): k for k, t in reference.CAPTIONS.items()}
    for image, tokens in zip(rows["moments"], rows["tokens"].tolist()):
        key = captions.pop(tuple(tokens))
        np.testing.assert_array_equal(image, reference.moments(key)[0].transpose(1, 2, 0))
    assert not captions


def column(shard, name):
    """Where a column of the index of a shard begins in its file, and what it holds."""
    at = files._HEADER.size
    for one, kind in files._COLUMNS.items():
        values = np.fromfile(shard, kind, 5, offset=at)
        if one == name:
            return at, values
        at += values.nbytes


@pytest.mark.parametrize("name", ["array", "text", "length", "head"])
@pytest.mark.parametrize("by", [1, 64, 512, 1 << 20])
def test_an_index_with_another_number_is_refused(copied, name, by):
    path = copied / "index" / "00001.idx"
    at, values = column(path, name)
    values[3] = (int(values[3]) + by) % (1 << 8 * values.itemsize)
    whole = bytearray(path.read_bytes())
    whole[at : at + values.nbytes] = values.tobytes()
    path.write_bytes(whole)
    if name == "head" and by == 1 << 20:
        return  # the same number again
    with pytest.raises(UserError, match=r"0000[01]\.(idx|tar).*(again|index)"):
        all_rows(small().train(copied.parent), 5, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_moments_that_are_not_finite_stop_the_run(copied, value):
    path = copied / "00001.tar"
    at = column(copied / "index" / "00001.idx", "array")[1][2]
    whole = bytearray(path.read_bytes())
    whole[at + 128 + 40 : at + 128 + 44] = np.float32(value).tobytes()
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"00001.tar, 100002.npy holds values that are not finite"):
        all_rows(small().train(copied.parent), 5, 3)


def test_workers_are_given_paths_alone(built):
    source = small().train(built).source
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source.samples)) < 500
    ids = np.array([0, 14])
    ours, theirs = source.begin(ids), copy.begin(ids)
    source.read(ids, ours)
    copy.read(ids, theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    assert copy.describe(14).endswith("00002.tar, 200004.npy")


def test_clips_vocabulary_lies_in_the_data_folder(built, copied):
    data = small(tokenizer=None)
    with pytest.raises(UserError, match=r"bpe_simple_vocab.* is missing: take .* and put it there"):
        data.train(copied.parent)
    path = copied.parent / clip_bpe.VOCABULARY
    clip_bpe.train(["prompt 1 2 3 4"], 518, path)
    tokenizer = clip_bpe.ClipBpe(path, context=LENGTH)
    tokens = data.validation(copied.parent).batched(7)[0]["tokens"]
    assert tokens[0].tolist() == tokenizer("prompt 0").tolist()
    assert all_rows(data.train(copied.parent), 5, 3)["tokens"].max() == 517
    names = data.class_names(copied.parent)
    assert clip_bpe.spelled(names[token] for token in tokens[0]) == "prompt 0"


def test_a_tokenizer_of_another_length(built):
    split = small(tokenizer=Letters(12)).train(built)
    with pytest.raises(UserError, match=r"gives int32\[12\] for a caption, not int32\[10\]: take"):
        split.batched(5)[0]


def test_a_bucket_is_read_by_ranges(copied, monkeypatch):
    base = str(copied.parent)

    class Bucket:
        def isdir(self, path):
            return os.path.isdir(path.replace("gs://data", base))

        def ls(self, path, detail):
            with os.scandir(path.replace("gs://data", base)) as entries:
                return [{"name": f"data/x/{e.name}", "size": e.stat().st_size} for e in entries]

        def cat_file(self, path):
            return pathlib.Path(path.replace("gs://data", base)).read_bytes()

        def cat_ranges(self, paths, starts, ends, on_error):
            assert all(a < b for a, b in zip(starts, ends))
            return [self.cat_file(p)[a:b] for p, a, b in zip(paths, starts, ends)]

    monkeypatch.setitem(sys.modules, "gcsfs", types.SimpleNamespace(GCSFileSystem=Bucket))
    write_tar(copied / "00001.tar", [("7.npy", b""), ("7.txt", b"")])
    shutil.copytree(reference.TAR.parent, copied / "unused")
    shutil.copy(reference.TAR, copied / "00001.tar")  # with an empty caption
    small().build(base)
    near, far = (small().train(folder).batched(13, seed=2)[0] for folder in (base, "gs://data"))
    for name in near:
        np.testing.assert_array_equal(near[name], far[name])
    assert small().counts("gs://data") == {"validation": 7}
    with pytest.raises(UserError, match=r"build writes to a local folder"):
        small().build("gs://data")


# -- its index -------------------------------------------------------------------------------------


def test_shards_in_the_folder_itself_and_in_another(built, tmp_path):
    shards = write_set(tmp_path / "read_only")
    small().build(tmp_path / "data", shards)
    (tmp_path / "data" / "laion" / "index").rename(tmp_path / "index")
    with pytest.raises(UserError, match=r"lacks 3 of 3 indices of shards, the first is 00000\.idx"):
        small().train(tmp_path / "data")
    (tmp_path / "index").rename(tmp_path / "data" / "laion" / "index")
    assert not (shards / "index").exists()
    elsewhere = all_rows(small().train(tmp_path / "data"), 5, 3)
    small().build(shards)
    for found in (elsewhere, all_rows(small().train(shards), 5, 3)):
        np.testing.assert_array_equal(
            found["moments"], all_rows(small().train(built), 5, 3)["moments"]
        )
    assert small().counts(tmp_path / "data") == {"validation": 7}, "the table beside the shards"
    small().build(tmp_path / "data", shards)
    with pytest.raises(UserError, match=r"reads the shards in .*read_only, not those in .*laion"):
        small().build(tmp_path / "data", f"{built}/laion")


def test_a_build_that_was_stopped_goes_on(tmp_path, monkeypatch):
    write_set(tmp_path)
    write, wrote = files.write_index, []

    def stops(path, shard, form):
        if len(wrote) == 1:
            raise KeyboardInterrupt
        wrote.append(shard)
        return write(path, shard, form)

    monkeypatch.setattr(files, "write_index", stops)
    with pytest.raises(KeyboardInterrupt):
        small().build(tmp_path)
    assert os.listdir(tmp_path / "index") == ["00000.idx"]
    left = []
    monkeypatch.setattr(files, "write_index", lambda *a: left.append(a[1]) or write(*a))
    small().build(tmp_path)
    assert left == [f"{tmp_path}/0000{i}.tar" for i in (1, 2)] and wrote == [
        f"{tmp_path}/00000.tar"
    ]
    small().build(tmp_path)
    assert len(left) == 2
    write_tar(tmp_path / "00001.tar", [])  # another shard of another size
    with pytest.raises(UserError, match=r"00001\.tar holds no samples"):
        small().build(tmp_path)


def test_indices_are_written_in_processes(tmp_path, monkeypatch, capsys):
    write_set(tmp_path)
    monkeypatch.setattr(pipeline, "usable_cores", lambda: 2)
    small().build(tmp_path)
    assert len(small().train(tmp_path)) == 15
    assert "3 of 3 shards indexed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "00001.tar").unlink(), r"lacks 1 of 3 shards, the first is number 1 \(00001.tar\): fetch"),
        (lambda f: (f / "00003.tar").touch(), r"holds 00003.tar, and 3 shards end with 00002.tar"),
        (lambda f: (f / "index" / "00002.idx").unlink(), r"lacks 1 of 3 indices of shards, the first is 00002"),
        (lambda f: os.truncate(f / "00002.tar", 9000), r"00002.tar has 9,000 bytes and its index says 30,720: fetch"),
        (lambda f: os.truncate(f / "index" / "00001.idx", 30), r"00001.idx is no index of a shard: remove it"),
        (lambda f: os.truncate(f / "index" / "00001.idx", 0), r"cannot read .*00001.idx"),
        (lambda f: os.truncate(f / "index" / "00001.idx", 99), r"00001.idx is cut short: it holds 59 of 140 bytes"),
        (lambda f: (f / "index" / "00001.idx").write_bytes(b"x" * 180), r"00001.idx is no index of a shard"),
        (lambda f: [p.unlink() for p in f.glob("*.tar")], r"no shards of LAION in .*/laion: .* 00000.tar to 00002"),
        (lambda f: (f / "val2014_30k.tsv").unlink(), r"val2014_30k.tsv is missing: fetch the organisers'"),
    ],
)  # fmt: skip
def test_data_that_are_not_whole(copied, change, message):
    change(copied)
    with pytest.raises(UserError, match=message):
        small().counts(copied.parent)


def test_moments_of_another_size_than_the_model_s(built):
    with pytest.raises(UserError, match=r"00000.idx is of moments \[8, 4, 4\], not \[8, 64, 64\]"):
        small(side=64).train(built)


def test_a_build_without_shards(tmp_path):
    with pytest.raises(
        UserError, match=r"no shards of LAION .* or name their folder with --source"
    ):
        small().build(tmp_path)
    write_set(tmp_path)
    with pytest.raises(UserError, match=r"lacks 829 of 832 shards, the first is number 3 \(00003"):
        Laion(Letters(), side=4).build(tmp_path)


def test_a_shard_of_the_same_size_in_another_order_is_noticed(copied):
    path = copied / "00001.tar"
    data = path.read_bytes()
    path.write_bytes(data[1024:4096] + data[:1024] + data[4096:])
    split = small().train(copied.parent)
    with pytest.raises(UserError, match=r"00001.tar, 10000\d.npy is not where the index has it"):
        all_rows(split, 5, 3)
    (copied / "00000.tar").write_bytes(
        (copied / "00000.tar").read_bytes().replace(b" 0\0", b"\xff0\0")
    )
    found = [line for line in small().check(copied.parent) if line.startswith("problem:")]
    assert any("00000.tar, 000004.txt is no text" in line for line in found)
    assert any("00001.tar" in line for line in found)


def test_check_counts_the_captions_that_are_cut(built, copied):
    report = small().check(built)
    assert report[0].startswith("train: 15 samples in 3 shards, 0.00 GB")
    # of 5 samples of a shard 4 are looked at; captions have 2, 4, 6, 10 letters, 8 fit
    assert report[1].startswith(
        "train: 3 of 12 captions looked at have more than 10 tokens and are cut"
    )
    assert report[2] == "validation: 7 prompts"
    assert report[3].startswith("validation: 0 of 7 captions")
    data = (copied / "00002.tar").read_bytes()
    wrong = moments("200004").copy()
    wrong[0, 0, 0, 0] = np.nan
    (copied / "00002.tar").write_bytes(data.replace(moments("200004").tobytes(), wrong.tobytes()))
    (found,) = [line for line in small().check(copied.parent) if line.startswith("problem:")]
    assert "00002.tar, 200004.npy holds values that are not finite" in found


# -- prompts ---------------------------------------------------------------------------------------


def test_prompts_are_read_as_pandas_writes_them(tmp_path):
    path, pandas = tmp_path / "p.tsv", pytest.importorskip("pandas")
    texts = ['A "stop" sign', "two\tcats", "naïve", "NA", " blank ", "it's; a, line"]
    table = {"image_id": range(6), "id": range(829_000, 829_006), "caption": texts}
    pandas.DataFrame(table).to_csv(path, sep="\t", index=False)
    found = prompts.read(str(path))
    assert list(found.captions) == texts
    assert found.numbers.tolist() == [[i, 829_000 + i] for i in range(6)]
    prompts.write(tmp_path / "again", zip(*found.numbers.T, found.captions))
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_evaluation_holds_each_prompt_once_in_order(built):
    batches = list(small().validation(built).batched(4).stream(threads=2))
    assert [batch["mask"].tolist() for batch in batches] == [[True] * 4, [True] * 3 + [False]]
    assert [i for b in batches for i in b["image_id"][b["mask"]]] == list(range(100, 107))
    assert [i for b in batches for i in b["id"][b["mask"]]] == list(range(900, 893, -1))
    for number in range(7):
        tokens = batches[number // 4]["tokens"][number % 4]
        assert tokens.tolist() == Letters()(f"prompt {number}").tolist()
    assert batches[0]["tokens"].dtype == batches[0]["id"].dtype == np.int32


def test_columns_may_stand_in_another_order(tmp_path):
    (tmp_path / "p").write_text("caption\textra\tid\timage_id\na cat\t0\t5\t6\n")
    found = prompts.read(str(tmp_path / "p"))
    assert (found.captions, found.numbers.tolist()) == (("a cat",), [[6, 5]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}\n", r"p\.tsv holds no prompts"),
        ("", r"has no column image_id, only none: it needs"),
        ("image_id\tcaption\n1\ta\n", r"has no column id, only image_id, caption"),
        ("image_id,id,caption\n1,2,a\n", r"has no column image_id, only image_id,id,caption: .* with tabs"),
        (f"{HEADER}\n1\t2\ta\n3\t4\n", r"p\.tsv, line 3 has 2 fields of 3"),
        (f"{HEADER}\n1\t2\ta\n3\tb\tc\n", r"line 3 has the ids '3' and 'b', which are no numbers"),
        (f"{HEADER}\n1\t-2\ta\n", r"line 2 has the ids '1' and '-2'"),
        (f"{HEADER}\n1\t99999999999\ta\n", r"line 2 has the ids '1' and '99999999999'"),
        (f"{HEADER}\n1\t2\ta\n3\t4\tb\n3\t2\tc\n", r"line 4 has the id 2 of line 2 again"),
        (f'{HEADER}\n1\t2\t"a" b\n', r"p\.tsv, line 2 is damaged \("),
        (f'{HEADER}\n1\t2\t"never closed\n', r"p\.tsv, line 2 is damaged \(unexpected end"),
    ],
)  # fmt: skip
def test_tables_that_hold_no_prompts(tmp_path, text, message):
    (tmp_path / "p.tsv").write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.read(str(tmp_path / "p.tsv"))


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "p.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"p\.tsv cannot be read \(.*utf-8"):
        prompts.read(str(tmp_path / "p.tsv"))


# -- embeddings ------------------------------------------------------------------------------------


def embedding(caption: str) -> np.ndarray:
    """f32 [T, W]."""
    draw = np.random.RandomState(len(caption))
    return draw.standard_normal((LENGTH, WIDTH)).astype(np.float32)


def embed(folder, width=WIDTH):
    for shard in small().samples(folder).shards:
        captions = list(shard.captions())
        parts = ([embedding(c)[:, :width] for c in captions[i : i + 2]] for i in range(0, 5, 2))
        write_embeddings(f"{folder}/laion/embeddings", shard, map(np.stack, parts))


EMBEDDED = small(embedding_width=WIDTH)


def test_embeddings_are_read_in_place_of_tokens(copied):
    embed(copied.parent)
    assert sorted(os.listdir(copied / "embeddings"))[:2] == ["00000.json", "00000.npy"]
    whole = np.load(copied / "embeddings" / "00001.npy", mmap_mode="r")
    assert whole.shape == (5, LENGTH, WIDTH) and whole.dtype == np.float16
    rows = all_rows(EMBEDDED.train(copied.parent), 5, 3)
    assert list(rows) == ["moments", "embedding"] and rows["embedding"].dtype == np.float16
    texts = {k: t for shard in range(3) for k, t in captions_of(shard).items()}
    for image, found in zip(rows["moments"], rows["embedding"]):
        (key,) = [k for k in texts if (moments(k)[0].transpose(1, 2, 0) == image).all()]
        np.testing.assert_array_equal(found, embedding(texts.pop(key)).astype(np.float16))
    assert not texts
    assert len(EMBEDDED.check(copied.parent)) == 4
    source = EMBEDDED.train(copied.parent).source
    assert len(pickle.dumps(source)) < 1500


def test_embeddings_that_are_there_are_kept(copied):
    embed(copied.parent)
    (shard, *_) = small().samples(copied.parent).shards
    write_embeddings(copied / "embeddings", shard, iter("never asked for"))
    note = copied / "embeddings" / "00000.json"
    for value, other in enumerate((json.dumps({"rows": 5, "keys": "of others"}), '{"ro')):
        note.write_text(other)
        write_embeddings(copied / "embeddings", shard, [np.full((5, LENGTH, WIDTH), value)])
        assert np.load(copied / "embeddings" / "00000.npy").min() == value
    EMBEDDED.train(copied.parent)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([np.ones((4, 2, 3))], r"4 embeddings were given for the 5 captions of .*00000.tar"),
        ([np.ones((4, 2, 3)), np.ones((2, 2, 3))], r"6 embeddings were given for the 5 captions"),
        ([], r"0 embeddings were given for the 5"),
        ([np.ones((4, 2, 3)), np.ones((1, 2, 4))], r"\[1, 2, 4\] of .* before number 5 are not \[n, T, W\]"),
        ([np.ones((5, 6))], r"\[5, 6\] of .* are not \[n, T, W\]"),
        ([np.full((5, 2, 3), 1e6)], r"or not finite in float16"),
    ],
)  # fmt: skip
def test_embeddings_that_do_not_fit_the_captions(built, tmp_path, arrays, message):
    (shard, *_) = small().samples(built).shards
    with pytest.raises(UserError, match=message):
        write_embeddings(tmp_path / "embeddings", shard, arrays)
    assert os.listdir(tmp_path / "embeddings") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "00001.json").unlink(), r"lacks the embeddings of shard 00001: write them"),
        (lambda f: (f / "00001.npy").unlink(), r"lacks the embeddings of shard 00001"),
        (lambda f: shutil.copy(f / "00000.json", f / "00001.json"), r"00001.npy is of other samples than .*00001.tar"),
        (lambda f: os.truncate(f / "00001.json", 9), r"or 00001.json is damaged: remove that"),
        (lambda f: os.truncate(f / "00001.npy", 700), r"00001.npy has 700 bytes and its header asks for 728"),
        (lambda f: os.truncate(f / "00001.npy", 20), r"00001.npy is no array"),
        (lambda f: np.save(f / "00001.npy", np.ones((5, 10, 6), "f4")), r"holds float32\[5, 10, 6\], not float16"),
        (lambda f: np.save(f / "00001.npy", np.ones((5, 10, 7), "f2")), r"holds float16\[5, 10, 7\], not float16\[5"),
    ],
)  # fmt: skip
def test_embeddings_that_are_not_whole(copied, change, message):
    embed(copied.parent)
    change(copied / "embeddings")
    with pytest.raises(UserError, match=message):
        EMBEDDED.train(copied.parent)


def test_embeddings_that_are_not_finite_stop_the_run(copied):
    embed(copied.parent)
    path = copied / "embeddings" / "00001.npy"
    whole = np.load(path)
    whole[3, 2, 1] = np.nan
    np.save(path, whole)
    data = small(embedding_width=WIDTH)
    with pytest.raises(UserError, match=r"embeddings/00001.npy, row 3 holds values that are not f"):
        all_rows(data.train(copied.parent), 5, 3)
