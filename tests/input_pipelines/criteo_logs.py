"""Small raw logs, and a slow twin of the organisers' preprocessing of them."""

import gzip
import pathlib

import numpy as np

ROWS = (31, 7, 5, 3, 11, 2, *range(2, 22))
BAGS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, *([1] * 10), 9, 2, 1, 3, 1, 1)
DAYS = (0, 1, 2, 3)
SAMPLES = (50, 64, 41, 33)  # of each day


def write_logs(folder, zipped=(1,)) -> str:
    """Writes `day_0` .. `day_3`; those in `zipped` compressed, the last without a final newline."""
    rng = np.random.default_rng(5)
    folder = pathlib.Path(folder)
    folder.mkdir()
    for day, samples in zip(DAYS, SAMPLES):
        lines = [_line(rng, day) for _ in range(samples)]
        text = ("\n".join(lines) + ("" if day == DAYS[-1] else "\n")).encode()
        if day in zipped:
            (folder / f"day_{day}.gz").write_bytes(gzip.compress(text))
        else:
            (folder / f"day_{day}").write_bytes(text)
    return str(folder)


def _line(rng, day: int) -> str:
    numbers = rng.choice([-2, -1, 0, 1, 7, 45, 789, 65535, 12345678, 2147483644], 13)
    words = rng.integers(0, 4 + 8 * day, 26).astype(np.uint64) * 2654435761 % 2**32
    fields = [str(rng.integers(0, 2)), *map(str, numbers), *(f"{w:08x}" for w in words)]
    return "\t".join("" if rng.random() < 0.15 else field for field in fields)


def text_of(folder, day: int) -> list[list[str]]:
    path = pathlib.Path(folder, f"day_{day}")
    data = (
        path.read_bytes()
        if path.exists()
        else gzip.decompress(path.with_suffix(".gz").read_bytes())
    )
    return [line.split("\t") for line in data.decode().removesuffix("\n").split("\n")]


def slow_twin(folder, first_id: int = 2, round_ids: bool = True) -> dict[str, np.ndarray]:
    """The arrays of all files by name, one field after another; shuffles one float32 matrix."""
    numbering: list[dict[int, int]] = [{} for _ in range(26)]
    days = []
    for day in DAYS:
        rows = []
        for fields in text_of(folder, day):
            numbers = np.array([int(field or 0) for field in fields[1:14]], np.int32)
            values = [int(field or "0", 16) for field in fields[14:]]
            ids = [d.setdefault(v, len(d) + first_id) for d, v in zip(numbering, values)]
            rows.append((int(fields[0] or 0), np.log((numbers + 3).astype(np.float32)), ids))
        labels, dense, ids = map(np.array, zip(*rows))
        days.append((labels.astype(np.int32)[:, None], dense, ids.astype(np.int32)))
    train = [np.concatenate(part) for part in zip(*days[:-1])]
    order = np.arange(len(train[0]))[:, None]
    np.random.RandomState(0).shuffle(order)  # rows of a matrix, as the reference does
    if round_ids:
        train[2] = train[2].astype(np.float32).astype(np.int32)
    train = [part[order[:, 0]] for part in train]
    cuts = np.cumsum([len(day[0]) for day in days[:-2]])
    split = [*zip(*(np.split(part, cuts) for part in train)), days[-1]]
    found = {}
    for day, (labels, dense, ids) in zip(DAYS, split):
        found |= {f"day_{day}_labels": labels, f"day_{day}_dense": dense, f"day_{day}_sparse": ids}
    return found


def slow_bags() -> list[np.ndarray]:
    random = np.random.RandomState(0)
    found = []
    for rows, size in zip(ROWS, BAGS):
        own = np.arange(rows)[:, None]
        drawn = random.randint(0, rows, (rows, size - 1)) if size > 1 else own[:, :0]
        found.append(np.concatenate([own, drawn], 1).astype(np.int32))
    return found
