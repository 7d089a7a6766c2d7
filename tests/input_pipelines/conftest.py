"""Small data sets that the tests of input pipelines make for themselves."""

import numpy as np
import pytest
from photographs import photograph

from mlperf_jax.input_pipelines import images
from mlperf_jax.input_pipelines.imagenet import ImageNet


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny"))
    ImageNet(tiny=True).build(folder)
    return folder


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory) -> str:
    """train and val with three ImageNet classes, 7 + 5 photographs of various sizes."""
    folder, rng = tmp_path_factory.mktemp("raw"), np.random.default_rng(1)
    wnids = ("n01440764", "n01443537", "n01484850")
    for split, count in (("train", 7), ("val", 5)):
        for i in range(count):
            wnid = wnids[i % 3]
            path = folder / split / wnid / f"{wnid}_{split}_{i}.{('JPEG', 'jpg')[i % 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            size = rng.integers(60, 200, 2)
            path.write_bytes(images.encode_jpeg(photograph(rng, *size), 90))
    return str(folder)
