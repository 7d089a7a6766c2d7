"""Logs each of which says one thing that cannot be, and what is found of it."""

import json

from score_sets import MINUTE, line, lines

# the lines of a small log, from 0
DIVISION, CLEAR, BATCH, SAMPLES, SEED, START, FIRST, LAST, STOP = 1, 4, 6, 7, 8, 11, 12, 13, 14


def spoilt(at, log=None, **members):
    """A log in which members of one line are others."""
    log = list(log or lines(9, seed=8))
    log[at] = (
        log[at].split(" ", 1)[0] + " " + json.dumps(json.loads(log[at].split(" ", 1)[1]) | members)
    )
    return log


def with_second_seed(log=None):
    log = list(log or lines(9, seed=8))
    return [*log[: SEED + 1], line("seed", 77), *log[SEED + 1 :]]


SPOILT = {
    "division": (spoilt(DIVISION, value="open"), r':2: submission_division: is "open"; "closed" in 4'),
    "no division": (spoilt(DIVISION, value=None), ":2: submission_division: is null; it is"),
    "75.9": (spoilt(LAST, value=75.9), ":14: eval_accuracy: is 75.9; accuracy is between 0 and 1"),
    "below 0": (spoilt(FIRST, value=-0.1), ":13: eval_accuracy: is -0.1; accuracy is between 0 and 1"),
    "Infinity": (spoilt(LAST, value=float("inf")), ":14: eval_accuracy: is Infinity, which is no acc"),
    "NaN": (spoilt(FIRST, value=float("nan")), ":13: eval_accuracy: is NaN, which is no accuracy"),
    "text": (spoilt(LAST, value="0.76"), ':14: eval_accuracy: has the text "0.76" for a number'),
    "epoch": (spoilt(LAST, metadata={"epoch_num": -1}), ":14: eval_accuracy: has the epoch_num -1"),
    "time 0": (spoilt(LAST, time_ms=0), ":14: eval_accuracy: is 2 minutes earlier than run_start"),
    "time 1e30": (spoilt(STOP, time_ms=1e30), r":15: run_stop: has the time_ms 1e\+30, which is not"),
    "time as text": (spoilt(CLEAR, time_ms="60"), ':5: cache_clear: has the time_ms "60", which is not'),
    "time below 0": (spoilt(START, time_ms=-1), ":12: run_start: has the time_ms -1, which is not"),
    "time null": (spoilt(LAST, time_ms=None), ":14: eval_accuracy: has the time_ms null, which is not"),
    "time true": (spoilt(STOP, time_ms=True), ":15: run_stop: has the time_ms true, which is not"),
    "time NaN": (spoilt(STOP, time_ms=float("nan")), ":15: run_stop: has the time_ms NaN, which is not"),
    "time 10**400": (spoilt(CLEAR, time_ms=10**400), ":5: cache_clear: has the time_ms 1000.* …, which"),
    "years": (spoilt(STOP, time_ms=9e12), r":15: run_stop: is 104,167 days later than run_start"),
    "backwards": (spoilt(STOP, time_ms=MINUTE), ":15: run_stop: is 60 seconds earlier than run_start"),
    "seed 1.5": (spoilt(SEED, value=1.5), ":9: seed: is 1.5, which is no whole number from 0 on"),
    "seed as text": (spoilt(SEED, value="7"), ':9: seed: is "7", which is no whole number'),
    "seed null": (spoilt(SEED, value=None), ":9: seed: is null, which is no whole number"),
    "seed true": (spoilt(SEED, value=True), ":9: seed: is true, which is no whole number"),
    "seed below 0": (spoilt(SEED, value=-3), ":9: seed: is -3, which is no whole number"),
    "two seeds": (with_second_seed(), ":10: seed: is 77 here and 8 before: one run has one seed"),
    "batch 0": (spoilt(BATCH, value=0), ":7: global_batch_size: is 0, which is no whole number from 1"),
    "batch 1.5": (spoilt(BATCH, value=1.5), ":7: global_batch_size: is 1.5, which is no whole number"),
    "samples": (spoilt(SAMPLES, value=-5), ":8: train_samples: is -5, which is no whole number from 1"),
    "key": (spoilt(CLEAR, key=[1]), r":5: has the key \[1\], which is no name"),
}  # fmt: skip
BY_THE_CHECKER = "no division,text,batch 0,time null,time 10**400,key".split(
    ","
)  # it says it itself
