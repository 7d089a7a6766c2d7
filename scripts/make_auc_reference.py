"""Areas under the ROC curve by scikit-learn, for tests/metrics/test_auc.py.

    python scripts/make_auc_reference.py           # a few seconds; needs scikit-learn

Writes tests/metrics/data/auc.npz: scores, labels and area of small cases (many ties, none, few clicks,
many clicks, signed scores), and the area of a million scores with a thousand values, which the test draws
again from the same legacy generator.
"""

from __future__ import annotations

import pathlib

import numpy as np
from sklearn.metrics import roc_auc_score

TARGET = pathlib.Path(__file__).parent.parent / "tests/metrics/data/auc.npz"


def small() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    found = {}
    for name, share, decimals in (
        ("distinct", 0.3, 9),
        ("ties", 0.3, 1),
        ("rare", 0.01, 2),
        ("common", 0.97, 2),
    ):
        labels = (rng.random(1500) < share).astype(np.int32)
        logits = rng.normal(0, 1, 1500) + 1.1 * labels - 1
        found[name] = (1 / (1 + np.exp(-logits))).round(decimals).astype(np.float32), labels
    labels = rng.integers(0, 2, 1500, np.int32)
    found["logits"] = (rng.normal(0, 2, 1500) + labels).round(1).astype(np.float32), labels
    return found


def million() -> tuple[np.ndarray, np.ndarray]:
    """Scores of a thousand values and their labels; the test repeats these lines."""
    random = np.random.RandomState(0)
    scores = random.randint(0, 1000, 10**6) / np.float32(1000)
    return scores, random.randint(0, 1000, 10**6) < 40 + 100 * scores


def main() -> None:
    found = {}
    for name, (scores, labels) in small().items():
        found |= {f"{name}_scores": scores, f"{name}_labels": labels}
        found[f"{name}_area"] = roc_auc_score(labels, scores)
    scores, labels = million()
    found["million_area"] = roc_auc_score(labels, scores)
    TARGET.parent.mkdir(exist_ok=True)
    np.savez_compressed(TARGET, **found)
    print({name: float(value) for name, value in found.items() if name.endswith("area")})


if __name__ == "__main__":
    main()
