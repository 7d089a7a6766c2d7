"""1,797 handwritten digits, which every installation holds: what small stand-ins are made of.

The test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (UCI Machine Learning
Repository, 1998, doi 10.24432/C50P49; CC BY 4.0), as scikit-learn hands it out. `scripts/make_digits.py` wrote the file.
"""

from __future__ import annotations

import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_name("digits.npz")


def load() -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 [1797, 8, 8] from 0 (paper) to 16 (ink), and which digit each is, uint8 [1797].

    >>> images, labels = load()
    >>> images.shape, labels[:4].tolist()
    ((1797, 8, 8), [0, 1, 2, 3])
    """
    with np.load(FILE) as stored:
        return stored["images"], stored["labels"]
