"""Names of devices: what they mean, and what is refused with a list of what is possible."""

import math

import pytest

from mlperf_jax.core import peaks
from mlperf_jax.errors import UserError
from mlperf_jax.planning import devices as names


@pytest.mark.parametrize(
    ("text", "chips", "count", "hosts"),
    [
        ("v5p:8x8x16", 1024, 1024, 256),
        ("v6e:4x8", 32, 32, 8),
        ("2xv6e:16x16", 512, 512, 128),
        ("tpu7x:4x4x4", 64, 128, 16),
        ("v4:2x2x1", 4, 4, 1),
        ("v5e:1x1", 1, 1, 1),
        ("h100:8", 8, 8, 1),
        ("B200:8x4", 32, 32, 4),
        ("gb200:72", 72, 72, 18),
        ("trillium:2x4", 8, 8, 2),
    ],
)
def test_what_a_name_means(text, chips, count, hosts):
    found = names.parse(text)
    assert (found.chips, found.count, found.hosts) == (chips, count, hosts)
    assert names.parse(found.name) == found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v9p:2x2", ("no device", "v5p", "h100:8x4")),
        ("v5:", ("v5p:4x4x8",)),
        ("h10:8", ("did you mean 'h100'",)),
        ("v5p", ("lacks its shape", "2x2x1", "rising order")),
        ("v5p:3x3x3", ("does not come as 3x3x3", "2x2x4")),
        ("v6e:8x4", ("written v6e:4x8", "16x16")),
        ("v6e:32x32", ("possible: 1x1, 2x2", "16x16")),
        ("v5p:4x4", ("does not come as 4x4",)),
        ("h100:9", ("h100:N for N = 1 to 8",)),
        ("h100:4x2", ("h100:8x2",)),
        ("h100:8x1000", ("256",)),
        ("", ("no device",)),
        ("v5p:0x4x4", ("lacks its shape",)),
    ],
)
def test_what_is_refused(text, words):
    with pytest.raises(UserError) as error:
        names.parse(text)
    for word in words:
        assert word in str(error.value)


def test_every_shape_of_a_chip_is_accepted_and_within_its_pod():
    for name, chip in names.CHIPS.items():
        if chip.maker == "tpu":
            shapes = names.shapes(name)
            assert len(set(shapes)) == len(shapes)
            for shape in shapes:
                assert names.parse(f"{name}:{'x'.join(map(str, shape))}").shape == shape
                assert math.prod(shape) <= chip.most


def test_every_chip_has_all_its_figures():
    for name, chip in names.CHIPS.items():
        found = peaks.PEAKS[chip.kind]
        for what in ("memory", "bandwidth", "link", "network"):
            assert getattr(found, what), f"{name} lacks {what}"


def test_a_v4_is_one_device_and_slices_are_said():
    assert names.topology_arguments(names.parse("v4:4x4x4"))["chip_config_name"] == "megacore"
    assert names.topology_arguments(names.parse("2xv5p:4x4x4"))["num_slices"] == 2
    assert "num_slices" not in names.topology_arguments(names.parse("v5p:4x4x4"))


def test_the_next_larger():
    assert names.nearest_larger(names.parse("v6e:4x4"), 32) == "v6e:4x8"
    assert names.nearest_larger(names.parse("v6e:16x16"), 512) is None
    assert names.nearest_larger(names.parse("h100:8"), 16) == "h100:8x2"
