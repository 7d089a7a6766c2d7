"""Wikipedia -> examples on disk, from the organisers' text or from their TFRecords, part by part in processes.

A part of the result is one file of theirs. Each appears when it is whole, so a build that was stopped goes on with those
that it lacks; all lie under an unfinished name until none does.
"""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines import building, records
from mlperf_jax.input_pipelines.tokenizers import WordPiece
from mlperf_jax.input_pipelines.wikipedia import files, instances, tfrecords

TEXT, RECORDS = "eval.txt", "eval_10k"  # evaluation's file says what a source holds
VOCABULARY = "vocab.txt"
# bytes and MD5 of the organisers' files; with other text the target does not hold
OFFICIAL = {
    VOCABULARY: (231_508, "64800d5d8528ce344256daf115d4965e"),
    TEXT: (32_851_144, "2a220f790517261547b1b45ed3ada07a"),
    "part-00000-of-00500": (27_150_902, "a64a7c31eff5cd38ae6d94f7a6229dab"),
    "part-00499-of-00500": (21_873_644, "b3b087ad24e3770d879a351664cebc5a"),
}
_PART = re.compile(r"part-(\d{5})-of-(\d{5})")
_GROWTH = {TEXT: 12, RECORDS: 0.35}  # most bytes of the result for one of a source's


class Sizes(NamedTuple):
    """What the examples depend on, beside their source.

    Attributes:
        longest: tokens of the longest example.
        most: masked tokens of an example at most.
        vocabulary: ids lie below it.
        evaluated: examples that are picked for evaluation.
    """

    longest: int
    most: int
    vocabulary: int
    evaluated: int


class Job(NamedTuple):
    """A file to be written: the path of its source, the part's, and which split's it is."""

    source: str
    prefix: str
    split: str


def check_official(source: str) -> None:
    """Nothing, if the text of a source is the organisers', as far as their sums are known.

    Raises:
        UserError: a file is missing or another one.
    """
    for name, (size, md5) in OFFICIAL.items():
        path = f"{source}/{name}"
        if not os.path.exists(path):
            raise UserError(f"{path} is missing: fetch the organisers' files")
        found = os.path.getsize(path)
        if found != size or building.md5(path) != md5:
            raise UserError(
                f"{path} ({found:,} bytes) is not the organisers' file of {size:,} bytes and MD5 {md5}, and "
                "with another the target does not hold: fetch theirs"
            )


def build(
    folder: str,
    source: str,
    sizes: Sizes,
    processes: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Writes the examples of a source, or finds them there already.

    Args:
        folder: of the examples, which appears when all are written.
        source: holds part-00000-of-00500 and so on, with `eval.txt` and `vocab.txt` text, with `eval_10k` TFRecords.
        sizes: of the examples.
        processes: at most so many; with more than one, a script needs the guard `if __name__ == "__main__"`.
        report: is told how far the build has come.

    Raises:
        UserError: files are missing or damaged, or there is no room on the disk.
    """
    with building.alone(folder, resumes=True) as target:
        if target.exists():
            return
        kind = _kind(source)
        names = [*_parts(source), kind]
        work = target.with_name(f"incomplete.{target.name}")
        bytes_of = {name: os.path.getsize(f"{source}/{name}") for name in names}
        settings = {**sizes._asdict(), "source": os.path.abspath(source), "files": bytes_of}
        if kind == TEXT:
            vocabulary = pathlib.Path(_vocabulary(source, sizes))
            settings[VOCABULARY] = hashlib.sha256(vocabulary.read_bytes()).hexdigest()
        building.begin(work, settings, restart=True)
        count = len(names) - 1
        jobs = [
            Job(f"{source}/{name}", files.part(work, "train", number, count), "train")
            for number, name in enumerate(names[:-1])
        ]
        jobs.append(Job(f"{source}/{kind}", files.part(work, "validation", 0, 1), "validation"))
        left = [job for job in jobs if not os.path.exists(f"{job.prefix}.idx")]
        need = sum(os.path.getsize(job.source) for job in left) * _GROWTH[kind]
        building.check_room(work, int(need))
        building.in_processes(
            functools.partial(_write, kind, sizes),
            left,
            processes,
            lambda done: report(f"{done} of {len(left)} files written"),
        )
        (work / building.SETTINGS).unlink()
        building.publish(work, target)


def pick(made: Sequence[instances.Example], count: int) -> list[instances.Example]:
    """So many examples, evenly from first to last, by the reference's arithmetic of floats.

    Raises:
        UserError: there are fewer.
    """
    if len(made) < count:
        raise UserError(
            f"the text of evaluation makes {len(made):,} examples, and {count:,} are picked: take more text"
        )
    ratio = len(made) / count
    return [made[int(number * ratio)] for number in range(count)]


def _kind(source: str) -> str:
    there = records.listing(source) or {}
    found = [kind for kind in (TEXT, RECORDS) if kind in there]
    if len(found) != 1:
        raise UserError(
            f"{source} holds {'both' if found else 'neither'} {TEXT} (text) {'and' if found else 'nor'} "
            f"{RECORDS} (TFRecords): name a folder with one of them and with part-00000-of-00500 and so on"
        )
    return found[0]


def _parts(source: str) -> list[str]:
    """The names of training's files, all of them, in order."""
    names = sorted(name for name in records.listing(source) or () if _PART.fullmatch(name))
    totals = sorted({int(name.rpartition("-")[2]) for name in names})
    if len(totals) != 1:
        what = f"parts of {totals[0]} and of {totals[1]}" if totals else "no part-00000-of-00500"
        raise UserError(f"{source} holds {what}: fetch the organisers' files into one folder")
    expected = [f"part-{number:05d}-of-{totals[0]:05d}" for number in range(totals[0])]
    missing = sorted({*expected} - {*names})
    if missing:
        raise UserError(
            f"{source} lacks {len(missing)} of {totals[0]} files, the first is {missing[0]}: fetch them"
        )
    return names


def _vocabulary(source: str, sizes: Sizes) -> str:
    path = f"{source}/{VOCABULARY}"
    tokenizer = _opened(path)
    if tokenizer.size != sizes.vocabulary:
        raise UserError(
            f"{path} holds {tokenizer.size:,} pieces, and the model's vocabulary is {sizes.vocabulary:,}: take "
            "the one it was made with"
        )
    return path


_opened = functools.lru_cache(maxsize=1)(WordPiece)


def _write(kind: str, sizes: Sizes, job: Job) -> None:
    if multiprocessing.parent_process():  # there is one for each core
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if kind == TEXT:
        tokenizer = _opened(str(pathlib.Path(job.source).with_name(VOCABULARY)))
        articles = instances.read_articles(job.source, tokenizer)
        made = instances.examples(articles, tokenizer, sizes.longest, sizes.most)
        if job.split == "validation":
            made = pick(made, sizes.evaluated)
    else:
        made = tfrecords.read(job.source, sizes.longest, sizes.most, sizes.vocabulary)
    written = files.write(job.prefix, made, sizes.longest, sizes.vocabulary)
    if job.split == "validation" and written != sizes.evaluated:
        pathlib.Path(f"{job.prefix}.idx").unlink()
        raise UserError(
            f"{job.source} holds {written:,} examples, and {sizes.evaluated:,} are evaluated: take the "
            "organisers' file"
        )
