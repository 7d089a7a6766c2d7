"""The stored digits are scikit-learn's."""

import numpy as np
from sklearn.datasets import load_digits

from mlperf_jax.input_pipelines import digits


def test_they_are_those_that_scikit_learn_hands_out():
    theirs, (images, labels) = load_digits(), digits.load()
    np.testing.assert_array_equal(images, theirs.images)
    np.testing.assert_array_equal(labels, theirs.target)
    assert images.dtype == labels.dtype == np.uint8
