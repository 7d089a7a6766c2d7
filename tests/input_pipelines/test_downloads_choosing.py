"""What is fetched of a manifest, what is not and why, and the manifest in plain words."""

import pytest
from download_site import LICENCE, part

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import choosing, manifest
from mlperf_jax.input_pipelines.downloads.manifest import Manifest

PARTS = (
    part(
        "free",
        address="https://a.org/f",
        into="f",
        about_bytes=2_000_000_000_000,
        after="unpack {dir}/f",
    ),
    part("bound", set="https://a.org/s.uri", into=".", accept=True),
    part("asked", page="https://a.org/form", by_hand="put t.tar into {dir}", expects=("t.tar",)),
    part("extra", numbered="https://a.org/{n}", first=1, last=9, into="e/{n}", optional=True),
)
ALL = Manifest(
    "x", {each.key: each for each in PARTS}, "mlperf-jax data build x --data-dir {dir}", 3
)


def keys(choice):
    return [
        [each.key for each in parts]
        for parts in (choice.fetched, choice.unaccepted, choice.by_hand)
    ]


def test_what_is_fetched(tmp_path):
    place = str(tmp_path)
    assert keys(choosing.choose(ALL, place)) == [["free"], ["bound"], ["asked"]]
    assert keys(choosing.choose(ALL, place, accepted=True)) == [["free", "bound"], [], ["asked"]]
    assert keys(choosing.choose(ALL, place, ["extra", "free"])) == [["free", "extra"], [], []]
    (tmp_path / "t.tar").touch()
    assert keys(choosing.choose(ALL, place)) == [["free"], ["bound"], []], "it came by hand"
    with pytest.raises(UserError, match="the data of x have no part 'freee': did you mean 'free'"):
        choosing.choose(ALL, place, ["freee"])


def test_what_is_not_fetched_is_told_with_the_way_to_it():
    choice = choosing.choose(ALL, "/d")
    assert choice.told("/d") == [
        "asked is to be had by hand (https://a.org/form): put t.tar into /d"
    ]
    said = choice.withheld()
    assert "bound; read https://example.org/licence, then add --accept-licence" in said
    assert choosing.choose(ALL, "/d", ["free"]).withheld() == ""


def test_what_is_left_to_do():
    check = "mlperf-jax data check x --data-dir /d"
    build = "mlperf-jax data build x --data-dir /d"
    assert choosing.next_steps(ALL, PARTS, "/d") == ["free: unpack /d/f", build, check]
    assert choosing.next_steps(Manifest("x", {}), PARTS[1:], "/d") == [check]


def test_a_manifest_in_plain_words():
    said = choosing.describe(ALL, "/d")
    flat = " ".join(said.split())
    for text in (
        "the free (about 2 TB) from https://a.org/f to /d/f",
        f"licence: {LICENCE.name}, {LICENCE.address}; to be accepted: --accept-licence",
        "by hand: https://a.org/form: put t.tar into /d",
        "extra (optional: --only extra)",
        "from https://a.org/{n} to /d/e/{n}, n from 1 to 9",
        "disk: 2 TB, and what has no stated size for all that is not optional; building writes 3 bytes more",
        "time: 5.6 hours for it at 100 MB a second",
        "then: mlperf-jax data fetch x --data-dir /d --accept-licence free: unpack",
    ):
        assert text in flat
    assert max(map(len, said.splitlines())) <= 100


@pytest.mark.parametrize("name", manifest.names())
def test_every_manifest_is_told(name):
    found = manifest.load(name)
    said = choosing.describe(found, "DIR")
    for each in found.parts.values():
        assert f"\n{each.key}" in said
        assert each.licence.address in said
        assert (each.page or each.set or each.numbered or each.address) in said
    assert f"mlperf-jax data check {name} --data-dir DIR" in said
