"""The names and ranges that a metric states before a run are those of the qualities it then gives."""

import numpy as np
import pytest

from mlperf_jax import benchmarks, metrics
from mlperf_jax.metrics import coco, dice, fid

SCORES = (np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]))
BOX = np.array([[[0.0, 0.0, 9.0, 9.0]]], np.float32)
CASES = [
    (metrics.Mean("accuracy", range=(0, 1)), {"total": 3.0, "count": 4.0}),
    (metrics.LogPerplexity("eval_loss"), {"total": 10.0, "count": 4}),
    (metrics.Auc("auc"), SCORES),
    (
        metrics.FidClip(fid.statistics(np.eye(3))),
        {"features": np.eye(3, dtype=np.float32)[:2], "clip": np.array([-0.2, 0.1])},
    ),
    (dice.Dice(("kidney", "tumour")), np.ones((1, 3, 2), int)),
    (
        coco.CocoMAP("mAP"),
        {
            "boxes": BOX,
            "true_boxes": BOX,
            "scores": np.ones((1, 1)),
            "image_id": np.array([7]),
            **{name: np.zeros((1, 1), int) for name in ("classes", "true_classes", "crowd")},
        },
    ),
]


@pytest.mark.parametrize(("metric", "total"), CASES, ids=lambda case: type(case).__name__)
def test_a_metric_gives_what_it_promises(metric, total):
    quality = {n: v for n, v in metric.result(total).items() if "/" not in n}
    assert quality.keys() == metric.ranges.keys()
    for name, (low, high) in metric.ranges.items():
        assert low <= quality[name] <= high


def test_histograms_state_their_error_too():
    metric = metrics.AucHistogram("auc")
    scores, labels = (np.asarray(a, np.float32) for a in SCORES)
    quality = metric.result(metric.sums((scores, labels), np.ones(4, bool)))
    assert quality.keys() == metric.ranges.keys()


@pytest.mark.parametrize("name", benchmarks.names())
def test_the_qualities_of_every_benchmark_are_bounded(name):
    """By 0, or by -1 where cosines are averaged."""
    ranges = benchmarks.benchmark_class(name).metric.ranges
    assert all(low == (-1 if quality == "CLIP" else 0) for quality, (low, _) in ranges.items())
