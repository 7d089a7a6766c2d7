"""What BERT's data cost: text -> examples, TFRecords -> examples, plans of packed batches, and rows read.

    python scripts/bench_bert_data.py --cores 1                      # under a minute
    python scripts/bench_bert_data.py --cores 1 --vocabulary vocab.txt

All by processor time in one process, so the rates are of one core. The text is the standard library's docstrings, a
paragraph an article, with BERT's own vocabulary where it is given, and otherwise one trained on them; lengths are
those of input_pipelines/wikipedia/drawing.py. "copy" is 64 MiB copied by NumPy, a yardstick.

Then the rows that batches of the recipes' sizes need, of 2,000 batches, of larger ones 200.
"""

from __future__ import annotations

import pathlib
import statistics
import sys
import tempfile
import types

import measuring

# isort: split

import numpy as np

sys.path.append(str(measuring.ROOT / "tests" / "input_pipelines"))
import wikipedia_toys as toys

from mlperf_jax.input_pipelines import pipeline, text
from mlperf_jax.input_pipelines.tokenizers import WordPiece, wordpiece
from mlperf_jax.input_pipelines.wikipedia import drawing, files, instances, packing, tfrecords
from mlperf_jax.input_pipelines.wikipedia.rows import Rows

L, MOST, S, PIECES = 512, 76, 8, 30_522
RECORDS, BATCHES = 2000, (256, 448, 1536, 3072, 8192)


def write_text(folder: pathlib.Path, vocabulary: str | None) -> tuple[str, WordPiece]:
    paragraphs = [p for document in text.docstrings() for p in document.split("\n\n")]
    path = folder / "part"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    if vocabulary is None:
        vocabulary = str(folder / "vocab.txt")
        wordpiece.train(text.docstrings(), 8000, vocabulary)
    return str(path), WordPiece(vocabulary)


def write_records(folder: pathlib.Path) -> str:
    """TFRecords and the same examples on disk."""
    rng = np.random.default_rng(0)
    made = [toys.random_example(rng, L, MOST, PIECES) for _ in range(RECORDS)]
    messages = [toys.frame(toys.serialised(toys.padded(one, L, MOST))) for one in made]
    (folder / "records").write_bytes(b"".join(messages))
    files.write(files.part(folder, "train", 0, 1), made, L, PIECES)
    return str(folder / "records")


def measure(folder: pathlib.Path, vocabulary: str | None, rounds: int, seconds: float) -> None:
    path, tokenizer = write_text(folder, vocabulary)
    recorded = write_records(folder)
    split = packed(files.Examples(str(folder), "train", L, PIECES))
    batches = split.batched(448)
    articles = instances.read_articles(path, tokenizer)
    lengths = drawing.lengths(8192, np.random.default_rng(0))
    source = np.ones(1 << 23)
    target = np.zeros_like(source)
    number = iter(range(1 << 30))
    sides = {
        "copy": lambda: np.copyto(target, source),
        "tokens": lambda: instances.read_articles(path, tokenizer),
        "text": lambda: instances.examples(
            instances.read_articles(path, tokenizer), tokenizer, L, MOST
        ),
        "TFRecords": lambda: list(tfrecords.read(recorded, L, MOST, PIECES)),
        "plan of 8,192": lambda: packing.best_fit(lengths, L, S),
        "batch of 448": lambda: batches[next(number)],
    }
    spent = measuring.in_turns(sides, rounds, seconds)
    measuring.report(spent, "copy", "a call")
    megabytes = {
        "tokens": pathlib.Path(path).stat().st_size / 1e6,
        "text": pathlib.Path(path).stat().st_size / 1e6,
        "TFRecords": pathlib.Path(recorded).stat().st_size / 1e6,
    }
    for name, size in megabytes.items():
        print(f"  {name}: {measuring.spread([size / s for s in spent[name]])} MB a second and core")
    made = len(instances.examples(articles, tokenizer, L, MOST))
    print(
        f"  text: {measuring.spread([made / s for s in spent['text']])} examples a second and core"
    )
    rate = measuring.spread([448 / s for s in spent["batch of 448"]])
    print(f"  batch of 448: {rate} sequences a second and core")


def packed(examples: files.Examples) -> pipeline.Split:
    packer = packing.Packer(examples, 448, (448,), S, L)
    rows = Rows(examples, L, packing.masked_places(L, S), packer)
    return pipeline.training(rows, plan=packer.plan())


def row_counts() -> None:
    lengths = drawing.lengths(1_000_000, np.random.default_rng(0))
    print(
        f"  mean length {lengths.mean():.1f}, so at most {L / lengths.mean():.3f} sequences a row"
    )
    for batch in BATCHES:
        examples = types.SimpleNamespace(lengths=lengths)
        packer = packing.Packer(examples, batch, (batch,), S, L)  # pyright: ignore[reportArgumentType]
        needed = [
            int((np.diff(packer[0, k].starts) > 0).sum())
            for k in range(2000 if batch < 1000 else 200)
        ]
        mean, deviation = statistics.mean(needed), statistics.stdev(needed)
        print(
            f"  batch {batch:5}: {mean:.1f} rows ({min(needed)} … {max(needed)}, deviation {deviation:.1f}), "
            f"{batch / mean:.3f} sequences a row"
        )


def main() -> None:
    parser = measuring.parser(__doc__, seconds=2.0)
    parser.add_argument("--vocabulary", help="BERT's vocab.txt")
    given = parser.parse_args()
    print(measuring.header())
    with tempfile.TemporaryDirectory() as folder:
        measure(pathlib.Path(folder), given.vocabulary, given.rounds, given.seconds)
    row_counts()


if __name__ == "__main__":
    main()
