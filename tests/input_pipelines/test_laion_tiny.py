"""The shapes in LAION's place: what is drawn, said and written of them, and the map that makes their moments."""

import os

import cv2
import numpy as np
import pytest
from laion_toys import FORM, Letters, all_rows

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.laion import Laion, Sizes, files, tiny

TINY = Laion(Letters(77), side=8, shards=2, tiny=Sizes(24, 10, 32))


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("tiny"))
    TINY.build(folder)
    return folder


def test_tiny_is_built_and_read_as_the_real_one(tiny_folder):
    assert TINY.counts(tiny_folder) == {"validation": 10}
    assert not [line for line in TINY.check(tiny_folder) if "problem" in line]
    pixels, captions = tiny.shapes(24, tiny.TRAINING, 32)
    wanted = tiny.encode(pixels)
    rows = all_rows(TINY.train(tiny_folder), 8, 3)
    assert {k: v.shape[1:] for k, v in rows.items()} == {"moments": (8, 8, 8), "tokens": (77,)}
    order = [int(abs(wanted - row).sum((1, 2, 3)).argmin()) for row in rows["moments"]]
    assert sorted(order) == list(range(24))
    np.testing.assert_array_equal(rows["moments"], wanted[order])
    for row, number in enumerate(order):
        said = captions[number] if number % 8 else ""
        assert rows["tokens"][row].tolist() == Letters(77)(said).tolist()
    prompt = TINY.validation(tiny_folder).batched(10)[0]["tokens"]
    for tokens, caption in zip(prompt, tiny.shapes(10, tiny.VALIDATION, 32)[1]):
        assert tokens.tolist() == Letters(77)(caption).tolist()
    (folder,) = os.listdir(tiny_folder)
    assert "incomplete" not in folder
    TINY.build(tiny_folder)


def test_shapes_are_what_their_captions_say():
    pixels, captions = tiny.shapes(200, 5, 64)
    assert pixels.shape == (200, 64, 64, 3) and pixels.dtype == np.float32
    assert pixels.min() >= 0 and pixels.max() <= 1
    more, same = tiny.shapes(300, 5, 64)
    assert same[:200] == captions and (more[:200] == pixels).all()
    assert len({*captions}) > 60
    areas: dict[str, list[float]] = {}
    for image, caption in zip(pixels, captions):
        size, colour, kind, ground = (caption.split()[i] for i in (1, 2, 3, 6))
        assert colour != ground
        inside = abs(image - tiny.COLOURS[colour]).max(-1) < 1e-6
        outside = abs(image - tiny.COLOURS[ground]).max(-1) < 1e-6
        assert (inside | outside).mean() > 0.9
        box = cv2.boundingRect(inside.astype(np.uint8))
        assert min(box[:2]) > 0 and box[0] + box[2] < 64 and box[1] + box[3] < 64
        areas.setdefault(f"{size} {kind}", []).append(inside.sum() / (box[2] * box[3]))
        assert (box[3] > 30) == (size == "large")
    for kind, share in (("circle", np.pi / 4), ("square", 1.0), ("triangle", 0.5)):
        assert np.mean(areas[f"large {kind}"]) == pytest.approx(share, abs=0.05)


def test_the_map_of_shapes_to_moments_is_linear_and_keeps_nearly_all():
    pixels, _ = tiny.shapes(256, 7, 32)
    moments = tiny.encode(pixels)
    means, log_variances = np.split(moments, 2, axis=-1)
    assert moments.dtype == np.float32 and (log_variances == tiny.LOG_VARIANCE).all()
    matrix = tiny.matrix()
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(4), atol=1e-6)
    patch = pixels[3, 8:12, 20:24].reshape(48)
    np.testing.assert_allclose(means[3, 2, 5], tiny.SCALE * (patch - 0.5) @ matrix, atol=1e-5)
    back = tiny.decode(means)
    np.testing.assert_allclose(tiny.encode(back)[..., :4], means, atol=1e-4)
    lost = ((back - pixels) ** 2).sum() / ((pixels - pixels.mean((0, 1, 2))) ** 2).sum()
    assert 0.001 < lost < 0.1
    assert 0.5 < (0.18215 * means).std() < 2


def test_shapes_and_latents_of_one_size():
    with pytest.raises(
        UserError, match=r"side and channels are 16 and 4: shapes of 32 pixels .* 8 and 4"
    ):
        Laion(Letters(), side=16, tiny=Sizes())
    with pytest.raises(
        UserError, match=r"no shapes as LAION in .*data build stable_diffusion --tiny"
    ):
        TINY.train("nowhere")


def test_the_form_of_moments():
    assert files.Form(8, 64).bytes == 131_072 and FORM.shape == (8, 4, 4)
