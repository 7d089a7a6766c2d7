"""Entries about files that runs, outputs and logs are: damaged, gone, of another kind, in the way."""

import gzip
import itertools

import score_sets
from hostile_entry import (
    Entry,
    both,
    cut,
    fifo,
    folder,
    link,
    overwritten,
    removed,
    written,
)
from spoilt_logs import BY_THE_CHECKER, SPOILT

# -- logs: a set of five, one of which is spoilt ---------------------------------------------------


def a_set(fifth, name="set"):
    """Four good logs, and a fifth as given: its content, or a damage that makes it."""

    def make(place):
        score_sets.write(place / name, *score_sets.resnet_set(9, 9, 9, 9))
        damage = fifth if callable(fifth) else written(f"{name}/result_4.txt", fifth)
        damage(place)

    return make


GOOD = "\n".join(score_sets.lines(9, seed=8)) + "\n"
FILES = {
    "empty": ("", "is empty"),
    "gzip": (gzip.compress(GOOD.encode(), mtime=0), "compressed by gzip"),
    "zip": (b"PK\3\4" + bytes(40), "compressed by zip"),
    "UTF-16": (GOOD.encode("utf-16"), "in UTF-16"),
    "binary": (bytes(range(256)) * 40, "binary"),
    "prose": ("Dear diary\n" * 9, "no log"),
    "a folder": (folder("set/result_4.txt"), "folder"),
    "a pipe": (fifo("set/result_4.txt"), "pipe|regular file"),
    "a link to nothing": (link("set/result_4.txt", "nowhere"), "result_4.txt"),
    "a link to itself": (link("set/result_4.txt", "result_4.txt"), "result_4.txt"),
    "brackets": (f":::MLLOG {'[' * 10_000}\n{GOOD}", "result_4.txt"),
    "a line of 400 kB": (f':::MLLOG {{"key": "x", "value": "{"y" * 400_000}"}}\n{GOOD}', "400,"),
    "endless digits": (GOOD.replace('"time_ms": 0', f'"time_ms": {10**400}', 1), "result_4.txt"),
    "ESC, BEL and U+202E": (
        GOOD.replace('"a lab"', '"\\u001b[31m\\u0007\\u202eevil"').replace(
            '"status": "success"', '"status": "\\u001b[2J"'
        ),
        "result_4.txt|resnet",
    ),
}


def of_logs():
    for name, (content, says) in FILES.items():
        damage = a_set(content)
        good = name.startswith("ESC")  # what it says of its submitter is no fault of the run
        yield Entry(
            "score set", "resnet" if good else says, code=int(not good), damage=damage, name=name
        )
        yield Entry(
            "report set", "report.html", code=0, damage=damage, may="report.html", name=name
        )
        yield Entry("check set", "result_", code=1, damage=damage, name=name)
    for name, (log, says) in SPOILT.items():
        damage = a_set("\n".join(log) + "\n")
        yield Entry("score set", says, code=1, damage=damage, name=name)
        yield Entry(
            "report set", "report.html", code=0, damage=damage, may="report.html", name=name
        )
        says = "set/result_4.txt" if name in BY_THE_CHECKER else says
        yield Entry("check set", says, code=1, damage=damage, name=name)


# -- outputs: nothing is lost --------------------------------------------------------------------


def of_outputs():
    whole = a_set(GOOD)
    for line in ("report set --out {}", "score set --json {}"):
        for name, damage, says in (
            ("set/result_0.txt", whole, "is there already and was not written by this command"),
            ("mine.html", both(whole, written("mine.html", "mine")), "is there already"),
            ("a", both(whole, folder("a")), "is a folder"),
            ("no/such/x", whole, "there is no folder"),
            ("pipe", both(whole, fifo("pipe")), "is there already"),
            ("away", both(whole, link("away", "nowhere")), "is there already"),
            ("set/result_0.txt/x", whole, "there is no folder"),
            ("/proc/x", whole, "/proc"),
        ):
            yield Entry(line.format(name), says, damage=damage)
    for name, damage in (("mine.png", written("mine.png", b"\x89PNG")), ("a.png", folder("a.png"))):
        yield Entry(
            f"show resnet --tiny --output {name}", "is there already|is a folder", damage=damage
        )


# -- runs: one that was killed after some checkpoints, one that came to its end ----------------------

AGAIN = "run resnet --tiny --resume --seed 1 --checkpoint-every 5 --output runs"


def of_runs():
    killed = dict(begins_with="killed", notes=True)
    for name, damage, says in (
        ("no log", removed("runs/result_0.txt"), "result_0.txt is gone"),
        ("an empty log", overwritten("runs/result_0.txt", b""), "is cut short or empty"),
        ("a log of spaces", overwritten("runs/result_0.txt", b"\n" * 99), "result_0.txt"),
        ("no meta.json", removed("runs/run_0/checkpoints/*/meta.json"), "checkpoints"),
        ("no config.json", removed("runs/run_0/config.json"), "config.json is gone"),
        ("config.json is []", overwritten("runs/run_0/config.json", b"[]"), "config.json"),
        ("config.json is cut", cut("runs/run_0/config.json"), "config.json"),
        ("config.json is binary", overwritten("runs/run_0/config.json", bytes(256)), "config.json"),
        ("nested config.json", overwritten("runs/run_0/config.json", b"[" * 99_999), "config.json"),
    ):
        yield Entry(AGAIN, says, damage=damage, name=name, **killed)
    for words, says in (
        ("--base-lr 1", "base_lr was 2.5 and is now 1"),
        ("--batch-size 128", "batch_size was 64 and is now 128"),
        ("--optimizer adamw:1e-3", "optimizer"),
        ("--opt-name sgd --convention tf2", "opt_name was"),
    ):
        yield Entry(f"{AGAIN} {words}", says, **killed)
    yield Entry(AGAIN.replace("--seed 1", "--seed 2"), "seed", **killed)
    yield Entry(AGAIN.replace("runs", "elsewhere"), "holds no unfinished run", **killed)
    yield Entry(
        AGAIN.replace(" --resume", ""),
        "has seed 1 already.*, or --resume, which takes it up",
        **killed,
    )
    ended = dict(begins_with="ended", notes=True)
    yield Entry("run resnet --tiny --seed 1 --max-samples 128 --output runs", "seed", **ended)
    yield Entry("evaluate runs", "has its result already", **ended)
    yield Entry(
        "run resnet --tiny --resume --max-samples 64 --output runs", "--max-samples", **ended
    )
    yield Entry("package runs --org a --system b", "tiny", **ended)
    yield Entry("package runs --org a --system b --allow-tiny", "run", **ended)
    yield Entry("show unet3d --run runs", "resnet", **ended)
    yield Entry("show resnet --run runs --step 99", "99", **ended)
    damages = {
        "removed": removed,
        "cut": cut,
        "[]": lambda path: overwritten(path, b"[]"),
        "not UTF-8": lambda path: overwritten(path, b"\xff"),
    }
    for file, (name, make) in itertools.product(("result", "config"), damages.items()):
        damage = make(f"runs/run_0/{file}.json")
        spoilt = dict(begins_with="ended", damage=damage, name=f"{file}.json {name}")
        if file == "config":
            says = r"config\.json|no run|not the folder"
            yield Entry("show resnet --run runs", says, notes=True, **spoilt)
        yield Entry("score runs", "resnet", code=1, **spoilt)
        yield Entry("report runs", "report.html", code=0, may="report.html", **spoilt)


ENTRIES = [*of_logs(), *of_outputs(), *of_runs()]
