"""The organisers' storage: a `.uri`, the sums beside it, and what a list may not say."""

import pytest
from download_site import part, serving

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import listing, web
from mlperf_jax.input_pipelines.downloads.manifest import Digest

SUM = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def site():
    with serving() as made:
        yield made


def listed(of):
    with web.session(1) as session:
        return listing.files(of, session)


def test_a_set_is_what_its_list_says(site):
    lines = [f"{SUM}  b.bin", f"{SUM} *./deep/a b.bin", "", " " * 34 + "huge.bin"]
    found = listed(site.set("graph", [], sums=lines, into="x"))
    base = f"{site.address}/graph"
    assert found == [
        listing.File("x/b.bin", f"{base}/b.bin", digest=Digest("md5", SUM)),
        listing.File("x/deep/a b.bin", f"{base}/deep/a%20b.bin", digest=Digest("md5", SUM)),
        listing.File("x/huge.bin", f"{base}/huge.bin"),
    ]
    assert listed(site.set("graph", [], sums=[f"{SUM}  b.bin"]))[0].path == "b.bin"


def test_patterns_choose_files_and_each_finds_one(site):
    lines = [f"{SUM}  {path}" for path in ("a_6.bin", "a_6.idx", "a_7.bin", "deep/a_6.bin")]
    found = listed(site.set("tokens", [], sums=lines, files=("a_6.*", "deep/*")))
    assert [file.path for file in found] == ["a_6.bin", "a_6.idx", "deep/a_6.bin"]
    with pytest.raises(UserError, match=r"tokens.md5 lists no a_9.\*: the set was changed"):
        listed(site.set("tokens", [], sums=lines, files=("a_6.*", "a_9.*")))


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "./../a",
        "a\\..\\b",
        "C:a",
        "a/./b",
        "a/",
        "~/\x1b",
    ],
)
def test_no_path_leaves_the_folder(site, path):
    lines = [f"{SUM}  good", f"{SUM}  {path}"]
    with pytest.raises(UserError, match=r"x.md5, line 2 is no sum and path below the folder"):
        listed(site.set("x", [], sums=lines))


@pytest.mark.parametrize("line", ["no sum", f"{SUM}", f"{SUM}x  a", f"{SUM[1:]}  a", "<html>"])
def test_a_list_of_anything_else_is_refused(site, line):
    with pytest.raises(UserError, match="line 1 is no sum and path"):
        listed(site.set("x", [], sums=[line]))


@pytest.mark.parametrize("base", ["https://elsewhere.org/x", "x", "", "http://a b/", "file:///etc"])
def test_a_set_lies_on_the_server_that_names_it(site, base):
    site.set("x", [], sums=[f"{SUM}  a"])
    site.files["metadata/x.uri"].content = base.encode()
    with pytest.raises(UserError, match=r"x.uri should name a folder of 127.0.0.1:\d+ and says"):
        listed(part("x", set=f"{site.address}/metadata/x.uri", into="."))


def test_other_parts_need_no_list():
    one = part("one", address="https://a.org/f", into="d/f", bytes=3, digest=Digest("md5", SUM))
    assert listed(one) == [listing.File("d/f", "https://a.org/f", 3, Digest("md5", SUM))]
    many = part("many", numbered="https://a.org/{n:03d}", into="d/{n}", first=8, last=9)
    assert [(file.path, file.address) for file in listed(many)] == [
        ("d/8", "https://a.org/008"),
        ("d/9", "https://a.org/009"),
    ]
    assert listed(part("asked for", page="https://a.org", by_hand="ask")) == []
