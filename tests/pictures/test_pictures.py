"""Pictures: what is drawn where, and what cannot be drawn."""

import io
import sys

import numpy as np
import pytest

from mlperf_jax import pictures
from mlperf_jax.errors import UserError

Image = pytest.importorskip("PIL.Image")


def batch(count=2):
    draw = np.random.RandomState(0)
    image = draw.standard_normal((count, 12, 10, 8, 1)).astype(np.float32)
    label = np.zeros((count, 12, 10, 8), np.uint8)
    label[:, 4:7, 2:5, 2:5] = 1
    label[:, 5, 3, 3] = 2
    label[:, 10:] = pictures.IGNORED
    return {"image": image, "label": label}


def tint(picture, colour):
    """How many pixels lean towards a colour: those of a mask over black."""
    pixels = np.asarray(picture).astype(int)
    return (np.abs(pixels - np.array(colour) * pictures._MASK).max(-1) < 2).sum()


def test_masks_lie_over_their_voxels():
    mask = np.zeros((4, 6), int)
    mask[1, 2], mask[3, 5] = 1, 2
    picture = pictures.overlay(np.zeros((4, 6), np.uint8), mask, side=60)
    assert picture.size == (60, 40)
    pixels = np.asarray(picture)
    for (row, column), colour in zip(((1, 2), (3, 5)), pictures.COLOURS, strict=False):
        square = pixels[10 * row : 10 * row + 10, 10 * column : 10 * column + 10]
        np.testing.assert_allclose(square - np.array(colour) * pictures._MASK, 0, atol=1)
    assert (pixels.reshape(-1, 3).any(-1)).sum() == 200
    assert not np.asarray(pictures.overlay(np.zeros((4, 6), np.uint8), None, 60)).any()


def test_volumes_have_a_row_of_slices_for_scan_truth_and_prediction():
    given = batch()
    without = pictures.volumes(given, slices=3)
    wrong = np.where(given["label"] == 1, 2, 0)
    with_them = pictures.volumes(given, wrong, slices=3)
    assert without.width == with_them.width
    rows = with_them.height - without.height
    assert rows > 2 * 160  # one more row of slices for each of the two volumes
    assert tint(with_them, pictures.COLOURS[1]) >= tint(without, pictures.COLOURS[1])
    assert pictures.volumes(batch(9), most=2).size == pictures.volumes(batch(2)).size


def test_padding_is_not_drawn():
    given = batch(1)
    inner = {k: v[:, :10] for k, v in given.items()}
    assert pictures.to_png(pictures.volumes(given)) == pictures.to_png(pictures.volumes(inner))


def test_planes_without_foreground_are_spread_over_the_volume():
    assert pictures.chosen_planes(np.zeros((9, 2, 2)), 3) == [0, 4, 8]
    assert pictures.chosen_planes(np.zeros((2, 2, 2)), 5) == [0, 1]


def test_values_of_any_range_are_drawn():
    values = np.array([np.nan, -np.inf, 0, 5.0])
    assert pictures.to_bytes(values).tolist() == [0, 0, 0, 255]
    assert not pictures.to_bytes(np.full(3, 7.0)).any()


def test_png_can_be_read_back():
    picture = pictures.labelled(np.random.RandomState(0).rand(5, 8, 8, 3), list("abcde"), columns=2)
    again = Image.open(io.BytesIO(pictures.to_png(picture)))
    assert again.size == picture.size
    np.testing.assert_array_equal(np.asarray(again), np.asarray(picture))


def test_hostile_names_are_drawn_as_text():
    """Emoji, control characters and length change nothing but the letters."""
    for name in ("kidney \U0001f4a5", "a\nb", "x" * 500, "<script>"):
        assert pictures.legend([name], 100).size == (100, pictures._LINE)
        assert pictures.caption(Image.new("RGB", (40, 9)), name).size == (40, 9 + pictures._LINE)


# -- classes ---------------------------------------------------------------------------------------


def near(picture, colour):
    """How many pixels have this colour, or nearly: those of lines and of the inside of letters."""
    return (np.abs(np.asarray(picture).astype(int) - colour).max(-1) < 40).sum()


def test_wrong_predictions_are_framed_and_counted():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    labels = np.array([0, 1, 2, 9])
    without = pictures.classified(images, labels, "abc")
    right = pictures.classified(images, labels, "abc", labels)
    wrong = pictures.classified(images, labels, "abc", np.array([0, 2, 2, 0]))
    assert right.size == wrong.size == (without.width, without.height + pictures._LINE)
    assert near(without, pictures.WRONG) == near(right, pictures.WRONG) == 0
    frame = 96**2 - (96 - 2 * pictures._FRAME) ** 2
    assert 2 * frame <= near(wrong, pictures.WRONG) < 2.2 * frame, "two frames and two captions"
    at = pictures._GAP + 96 + pictures._GAP  # the second one is framed
    assert wrong.getpixel((at + 1, pictures._LINE + 50)) == pictures.WRONG
    assert wrong.getpixel((pictures._GAP + 1, pictures._LINE + 50)) == (0, 0, 0)


def test_bytes_are_drawn_as_they_are():
    grey = np.full((1, 8, 8, 3), 100, np.uint8)
    assert pictures.labelled(grey, ["x"]).getpixel((50, 50)) == (100, 100, 100)
    assert pictures.classified(grey, np.array([3])).getpixel((50, 50)) == (100, 100, 100)


def test_classes_have_names_or_numbers():
    assert [pictures.name_of(k, ("cat", "dog")) for k in (1, 2, -1)] == [
        "dog",
        "class 2",
        "class -1",
    ]


def test_text_ends_where_its_picture_does():
    wide, narrow = Image.new("RGB", (300, 20)), Image.new("RGB", (40, 20))
    for picture in (wide, narrow):
        pictures.write(picture, (0, 0), "n01440764 / n01443537", (255, 255, 255))
    assert np.asarray(wide)[:, 100:140].any() and np.asarray(narrow)[:, :30].any()
    assert not np.asarray(narrow)[:, 38:].any(), "cut between letters"


# -- files -----------------------------------------------------------------------------------------


def test_a_picture_is_saved_whole(tmp_path):
    picture = Image.new("RGB", (7, 5), (1, 2, 3))
    for name in ("a.png", "b.PNG"):
        pictures.save(picture, tmp_path / name)
        assert Image.open(tmp_path / name).size == (7, 5)
    pictures.save(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.PNG"]


def test_where_no_picture_can_be_saved(tmp_path, monkeypatch):
    (tmp_path / "folder.png").mkdir()
    for name, said in (
        ("a.jpg", "must end in .png"),
        ("a", "must end in .png"),
        ("missing/a.png", "there is no folder"),
        ("folder.png", "is a folder"),
    ):
        with pytest.raises(UserError, match=said):
            pictures.check_output(tmp_path / name)
    with pytest.raises(UserError, match="there is no folder"):
        pictures.check_output("gs://bucket/a.png")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        pictures.save(Image.new("RGB", (2, 2)), tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_without_pillow_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"mlperf-jax\[pictures\]"):
        pictures.pillow()


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="3 predictions cannot be drawn on 2 images"):
        pictures.classified(np.zeros((2, 4, 4, 3)), np.zeros(2, int), (), np.zeros(3, int))
    with pytest.raises(UserError, match="cannot be drawn over each other"):
        pictures.volumes(batch(), np.zeros((2, 3, 3, 3)))
    with pytest.raises(UserError, match="5 images with 4 words"):
        pictures.labelled(np.zeros((5, 4, 4, 3)), list("abcd"))
    with pytest.raises(UserError, match="nothing to draw"):
        pictures.grid([], 3)
