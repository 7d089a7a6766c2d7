"""Writes mlperf_jax/input_pipelines/digits.npz from scikit-learn's copy of the digits.

python scripts/make_digits.py           # a second; needs scikit-learn
"""

import numpy as np
from sklearn.datasets import load_digits

from mlperf_jax.input_pipelines import digits

if __name__ == "__main__":
    found = load_digits()
    images, labels = (np.asarray(a, np.uint8) for a in (found.images, found.target))
    np.savez_compressed(digits.FILE, images=images, labels=labels)
