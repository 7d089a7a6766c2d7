"""Exact paired statistics: against slow enumeration, SciPy and simulated comparisons with a known answer."""

import doctest
import itertools
import math

import numpy as np
import pytest
from made_comparisons import BATCH, BUDGET, comparison, outcome
from scipy import stats

from mlperf_jax.errors import UserError
from mlperf_jax.results import scored
from mlperf_jax.results.comparison import paired as module
from mlperf_jax.results.comparison.model import Entrant
from mlperf_jax.results.comparison.paired import (
    bounds,
    holm,
    olympic,
    paired,
    seeds_needed,
    sign_flip,
)

INF = math.inf


def test_examples():
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(scored).failed == 0


def slow(differences, confidence):
    """The interval and the p-value by the definitions, one subset and one choice of signs after the other."""
    n = len(differences)
    subsets = [s for size in range(1, n + 1) for s in itertools.combinations(differences, size)]
    means = sorted(sum(s) / len(s) for s in subsets)
    k = max(k for k in range(1, 2**n) if 1 - 2 * k / 2**n >= confidence)
    flipped = [
        sum(s * d for s, d in zip(signs, differences))
        for signs in itertools.product((1, -1), repeat=n)
    ]
    extreme = sum(abs(total) >= abs(sum(differences)) - 1e-12 for total in flipped)
    return means[k - 1], means[-k], 1 - 2 * k / 2**n, extreme / 2**n


@pytest.mark.parametrize("n", [6, 7, 9])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_interval_and_p_are_those_of_the_definition(n, confidence):
    for seed in range(5):
        values = list(np.random.default_rng(seed).normal(0.3, 1, n))
        found = sign_flip(values, values, confidence)
        assert (found.low, found.high, found.confidence, found.p) == pytest.approx(
            slow(values, confidence)
        )


@pytest.mark.parametrize("n", [3, 8, 12])
def test_p_is_scipys(n):
    for seed in range(4):
        # steps of an evaluation make ties
        values = np.random.default_rng(seed).integers(-3, 6, n).astype(float)
        scipys = stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        )
        assert sign_flip(values, values).p == pytest.approx(scipys.pvalue)


@pytest.mark.parametrize("noise", ["normal", "cauchy", "each seed its own", "coarse"])
@pytest.mark.parametrize("n", [6, 8, 11])
def test_the_interval_covers_the_centre_as_often_as_it_says(noise, n):
    rng = np.random.default_rng(n)
    trials, centre = 1500, 0.4
    drawn = {
        "normal": rng.normal(size=(trials, n)),
        "cauchy": rng.standard_cauchy((trials, n)),
        "each seed its own": rng.normal(size=(trials, n)) * np.arange(1, n + 1) ** 2,
        "coarse": rng.integers(-2, 3, (trials, n)).astype(float),
    }[noise]
    found = [sign_flip(row, row) for row in drawn + centre]
    covered = np.mean([one.low - 1e-9 <= centre <= one.high + 1e-9 for one in found])
    nominal = found[0].confidence
    assert nominal >= 0.95
    error = math.sqrt(nominal * (1 - nominal) / trials)
    assert covered > nominal - 4 * error
    if noise != "coarse":  # ties cover more often
        assert covered < nominal + 4 * error, "an interval that is too wide tells nothing"


def test_many_seeds_are_flipped_in_blocks_and_cover_too():
    assert len(module._subset_means(np.arange(30.0))) == 2**20 - 1
    rng = np.random.default_rng(0)
    blocks, module_most = 8, module.MOST_BLOCKS
    module.MOST_BLOCKS = blocks
    try:
        found = [sign_flip(row, row) for row in rng.normal(1.0, 1.0, (1500, 3 * blocks - 1))]
    finally:
        module.MOST_BLOCKS = module_most
    nominal = found[0].confidence
    assert nominal == 1 - 2 * 6 / 2**blocks
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])
    assert abs(covered - nominal) < 4 * math.sqrt(nominal * (1 - nominal) / 1500)
    assert np.mean([one.p <= 0.05 for one in found]) > 0.9, "a centre of one deviation is seen"


def test_interval_and_p_agree():
    rng = np.random.default_rng(3)
    for row in rng.normal(0.7, 1, (300, 7)):
        found = sign_flip(row, row)
        assert (found.low <= 0 <= found.high) == (found.p > 1 - found.confidence + 1e-12)


def test_few_seeds_have_no_interval():
    for n in range(6):
        found = sign_flip(range(1, n + 1), range(1, n + 1))
        assert (found.low, found.high, found.confidence) == (None, None, 0.0)
        assert found.p == min(1, 2 / 2**n)
    assert sign_flip(range(1, 7), range(1, 7)).low == 1
    for confidence in (0.5, 0.9, 0.95, 0.99, 0.999):
        n = seeds_needed(confidence)
        assert sign_flip(range(n), range(n), confidence).low is not None
        assert sign_flip(range(n - 1), range(n - 1), confidence).low is None
    with pytest.raises(UserError, match="give one above 0 and below 1"):
        sign_flip([1], [1], 95)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_inside_the_ends_gives_more_than_they_do(seed):
    rng = np.random.default_rng(seed)
    lows = rng.normal(0.5, 1, 8)
    highs = lows + rng.exponential(0.5, 8) * (rng.random(8) < 0.4)
    found = sign_flip(lows, highs, 0.9)
    for _ in range(50):
        inside = rng.uniform(lows, highs)
        one = sign_flip(inside, inside, 0.9)
        assert found.low <= one.low and one.high <= found.high
        assert found.p >= one.p


# -- entries ---------------------------------------------------------------------------------------


def planted(rng, ratio, trials, n=8):
    """Comparisons in which the second needs `ratio` times the samples of the first, but for noise."""
    for _ in range(trials):
        base = rng.lognormal(10, 0.3, n)
        other = base * ratio * rng.lognormal(0, 0.05, n)
        yield comparison({"a": [*map(round, base)], "b": [*map(round, other)]}, budget=10**7)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr("made_comparisons.EVERY", 10**9)


def test_equal_entries_are_rarely_told_apart():
    found = [paired(each)[0] for each in planted(np.random.default_rng(0), 1.0, 600)]
    alike = np.mean([one.verdict == "not told apart" for one in found])
    assert alike >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(("ratio", "verdict"), [(0.85, "fewer"), (1.2, "more")])
def test_a_planted_difference_is_found_with_its_size(ratio, verdict):
    found = [paired(each)[0] for each in planted(np.random.default_rng(1), ratio, 100)]
    assert np.mean([one.verdict == f"{verdict} samples" for one in found]) > 0.95
    assert np.mean([one.ratio for one in found]) == pytest.approx(ratio, rel=0.02)
    assert np.mean([one.low <= ratio <= one.high for one in found]) > 0.85


def test_steps_and_seconds_are_compared_likewise():
    made = comparison({"a": [6400] * 6, "b": [3200] * 6})
    for measure in ("samples", "steps", "seconds"):
        (found,) = paired(made, measure)
        assert (found.ratio, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
        assert found.verdict == f"fewer {measure}"
    with pytest.raises(UserError, match="no measure 'epochs': give one of samples, steps, seconds"):
        paired(made, "epochs")


def test_a_failed_run_is_at_least_the_budget_and_not_left_out():
    base = [12_800] * 8
    (slower,) = paired(comparison({"a": base, "b": [*base[:7], None]}))
    assert (slower.pairs, slower.censored, slower.ratio) == (8, 1, None)
    assert (slower.low, slower.high) == (1, INF)
    assert slower.verdict == "not told apart"
    # the baseline fails in all but one, where it is as good
    (better,) = paired(comparison({"a": [*[None] * 7, 12_800], "b": base}))
    assert better.low == 0
    # the largest six means: the pair alike, and it with one of five others
    assert better.high == pytest.approx((12_800 / BUDGET) ** 0.5)
    assert better.verdict == "fewer samples"
    assert "at most" in better.words
    assert better.p == pytest.approx(4 / 2**8), "one pair alike: its sign may be either"


def test_two_failures_of_a_seed_say_nothing():
    base = [12_800] * 7
    (found,) = paired(comparison({"a": [*base, None], "b": [*base, None]}))
    assert (found.low, found.high, found.p) == (0, INF, 1)
    assert found.words == "anything"


def test_bounds_of_a_failed_run():
    made = comparison({"a": [6400, None], "b": ["stopped", "crashed"], "c": [3200, 6400]})
    a, b, _ = made.entrants

    def least(entrant, seed, measure):
        low, high = bounds(made, entrant, entrant.outcomes[seed], measure)
        assert high == INF
        return low

    assert bounds(made, a, a.outcomes[0], "samples") == (6400, 6400)
    assert least(a, 1, "samples") == least(b, 0, "samples") == BUDGET
    assert least(b, 1, "samples") == b.outcomes[1].seen == BUDGET // 4, "a crash is no verdict"
    assert least(a, 1, "steps") == least(b, 0, "steps") == BUDGET / BATCH
    assert least(a, 1, "seconds") == pytest.approx(BUDGET / 1000)
    assert least(b, 0, "seconds") == 0, "nobody knows how fast it is"


def test_runs_still_to_be_made_are_no_failures():
    made = comparison({"a": [6400] * 8, "b": [3200] * 6})
    (found,) = paired(made)
    assert (found.pairs, found.censored, found.ratio) == (6, 0, pytest.approx(0.5))
    assert "no seed has runs of both" in paired(comparison({"a": [6400], "b": []}))[0].sentence


def test_a_sentence_says_what_is_known():
    told = paired(comparison({"a": [6400] * 6, "b": [3200] * 6}))[0].sentence
    assert told.startswith("b against a: fewer samples; 0.5 of the samples, 0.5 to 0.5 with 96.9%")
    few = paired(comparison({"a": [6400] * 3, "b": [3200] * 3}))[0]
    assert "no interval of 95.0% confidence exists with fewer than 6" in few.sentence
    assert few.verdict == "not told apart"
    failed = paired(comparison({"a": [6400] * 6, "b": [3200] * 5 + [None]}))[0]
    assert "in 1 a run did not reach the target" in failed.sentence


def test_p_values_are_adjusted_for_all_that_are_compared():
    rng = np.random.default_rng(2)
    p = rng.random(6)
    adjusted = holm(p)
    # by the definition: those below are rejected at this level, and no other
    for level in (0.05, 0.2, 0.5, 0.9):
        order = np.argsort(p)
        rejected = set()
        for rank, index in enumerate(order):
            if p[index] > level / (6 - rank):
                break
            rejected.add(index)
        assert rejected == {i for i, one in enumerate(adjusted) if one <= level}
    base = [12_800 + 640 * i for i in range(8)]
    half, same = [b // 2 for b in base], [b + 64 * (-1) ** i for i, b in enumerate(base)]
    found = paired(comparison({"a": base, "b": half, "c": same}))
    assert found[0].holm == 2 * found[0].p < 0.05
    assert found[1].holm == found[1].p > 0.05


def test_the_olympic_mean_is_that_of_the_rules():
    made = comparison({"a": [6400, 3200, 12_800, 9600, 4800]})
    (a,) = made.entrants
    assert olympic(made, a) == (6400 + 9600 + 4800) / 3
    assert olympic(made, a, "seconds") == pytest.approx(olympic(made, a) / 1000)
    one = Entrant("a", "a", (outcome(5, None), *a.outcomes[1:]))
    assert olympic(made, one) == (4800 + 9600 + 12_800) / 3, "the failed one is the slowest"
    two = Entrant("a", "a", (outcome(5, None), outcome(6, "stopped"), *a.outcomes[2:]))
    assert olympic(made, two) is None
    own = comparison({"a": [6400, 3200]}, benchmark="my_own")
    assert olympic(own, own.entrants[0]) == 4800, "no rules: the plain mean"
