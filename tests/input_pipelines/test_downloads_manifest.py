"""Manifests: one for each benchmark, all of it checked; a damaged one is told of by part and key."""

import urllib.parse

import pytest

from mlperf_jax.benchmarks import registry
from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import manifest
from mlperf_jax.input_pipelines.downloads.manifest import Licence, ManifestError

LICENCES = {"free": Licence("free", "https://example.org")}
PART = {
    "what": "a file",
    "address": "https://example.org/f",
    "into": "f",
    "licence": "free",
    "source": "https://example.org/readme",
}
SET = {**PART, "set": "https://example.org/f.uri", "address": None}
PAGE = {**PART, "page": "https://example.org", "by_hand": "ask", "address": None, "into": None}
MANY = {**PART, "numbered": "https://e.org/{n:05d}", "into": "{n}", "first": 1, "last": 2}
MANY |= {"address": None}


def read(top="", **part):
    """The manifest of one part, `thing`, without the keys that are None."""
    lines = [f"{key} = {_toml(value)}" for key, value in part.items() if value is not None]
    return manifest.read("x", "\n".join([top, "[parts.thing]", *lines]), LICENCES)


def _toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_every_benchmark_has_a_manifest_and_there_is_no_other():
    assert set(manifest.names()) == set(registry._BENCHMARKS)


@pytest.mark.parametrize("name", manifest.names())
def test_a_manifest_says_what_a_person_needs(name):
    """What it is, from where, under which licence; and no form of address that nobody could ask."""
    found = manifest.load(name)
    assert found.name == name
    assert any(not part.optional for part in found.parts.values())
    for part in found.parts.values():
        assert part.what and part.licence.name and part.size
        for address in (part.licence.address, part.source, part.set, part.address, part.page):
            assert not address or urllib.parse.urlsplit(address).scheme == "https"
        for text in (part.by_hand, part.after, part.what):
            assert "{dir}" not in text.format(dir="/data")
            assert not text.endswith(".")
    assert found.build.format(dir="/data").startswith(f"mlperf-jax data build {name} ") or (
        not found.build
    )


def test_shared_parts_are_stated_once():
    eight, full = manifest.load("llama31_8b").parts, manifest.load("llama31_405b").parts
    assert eight["text_6"] == full["text_6"] == manifest.load("gpt3").parts["text_6"]
    assert "text_7" in full and "text_7" not in eight


def test_every_licence_is_used():
    parts = [part for name in manifest.names() for part in manifest.load(name).parts.values()]
    assert {part.licence for part in parts} == set(manifest.licences().values())


def test_a_benchmark_of_ones_own_has_none():
    with pytest.raises(UserError, match="nobody has stated where the data of wine come from"):
        manifest.load("wine")
    with pytest.raises(UserError, match="licences come from"):
        manifest.load("licences")


def test_what_is_stated_is_read():
    found = read('build = "b {dir}"\nbuild_bytes = 5', **PART, md5="0" * 32, bytes=7, optional=True)
    (part,) = found.parts.values()
    assert (found.build, found.build_bytes) == ("b {dir}", 5)
    assert (part.key, part.into, part.bytes, part.size) == ("thing", "f", 7, "7 bytes")
    assert part.optional and not part.accept and part.licence is LICENCES["free"]
    assert str(part.digest) == f"MD5 {'0' * 32}"
    (part,) = read(**SET, files=["a*"], about_bytes=2_400_000_000_000).parts.values()
    assert (part.files, part.size) == (("a*",), "about 2.4 TB")
    (part,) = read(**PAGE, expects=["a"]).parts.values()
    assert (part.expects, part.size) == (("a",), "size unknown")
    (part,) = read(**{**SET, "into": "."}).parts.values()
    assert part.into == "."


DAMAGED = [
    (PART, {"address": None}, "comes from nowhere: say one of set, address, numbered, page"),
    (PART, {"set": "https://e.org/a.uri"}, "comes from set and address"),
    (PART, {"addres": "x"}, "has a key 'addres' that means nothing"),
    (PART, {"what": 3}, "what is 3, no str"),
    (PART, {"what": " "}, "does not state what"),
    (PART, {"optional": 1}, "optional is 1, no bool"),
    (PART, {"bytes": True}, "bytes is True, no int"),
    (PART, {"bytes": 0}, "bytes is 0, no number of bytes"),
    (PART, {"about_bytes": -1}, "no number of bytes"),
    (PART, {"bytes": 3, "about_bytes": 4}, "states the size or the sum twice"),
    (PART, {"md5": "0" * 32, "sha256": "0" * 64}, "states the size or the sum twice"),
    (PART, {"md5": "0" * 31}, "no md5"),
    (PART, {"sha512": "G" * 128}, "no sha512"),
    (PART, {"address": "http://e.org/f"}, "'http://e.org/f' is no https address"),
    (PART, {"address": "https:///f"}, "is no https address"),
    (PART, {"source": None}, "does not state source"),
    (PART, {"source": "the readme"}, "'the readme' is no https address"),
    (PART, {"licence": "gratis"}, "has the licence 'gratis', which licences.toml lacks"),
    (PART, {"licence": None}, "does not state licence"),
    (PART, {"into": None}, "does not state into, as address needs"),
    (PART, {"into": "../f"}, "goes to '../f', which is no place below"),
    (PART, {"into": "/f"}, "no place below"),
    (PART, {"into": ""}, "no place below"),
    (PART, {"into": "."}, "is one file, which needs a name"),
    (PART, {"files": ["a"]}, "says files, which means nothing of address"),
    (PART, {"by_hand": "ask"}, "says by_hand, which means nothing of address"),
    (PART, {"first": 1}, "says first, which means nothing of address"),
    (SET, {"set": "https://e.org/f"}, "is a set, whose address ends with .uri"),
    (SET, {"files": []}, "files is [], no list of texts"),
    (SET, {"files": [3]}, "no list of texts"),
    (SET, {"bytes": 3}, "says bytes, which means nothing of set"),
    (SET, {"md5": "0" * 32}, "says md5, which means nothing of set"),
    (PAGE, {"by_hand": None}, "does not state by_hand, as page needs"),
    (PAGE, {"accept": True}, "says accept, which means nothing of page"),
    (PAGE, {"into": "f"}, "says into, which means nothing of page"),
    (MANY, {"last": None}, "does not state last, as numbered needs"),
    (MANY, {"first": 3}, "has a first number behind its last"),
    (MANY, {"numbered": "https://e.org/f"}, "address and place hold {n}"),
    (MANY, {"into": "f"}, "address and place hold {n}"),
]


@pytest.mark.parametrize(("part", "damage", "said"), DAMAGED)
def test_a_damaged_part_is_told_of(part, damage, said):
    read(**part)
    with pytest.raises(ManifestError) as told:
        read(**{**part, **damage})
    assert said in str(told.value) and "x.toml, thing" in str(told.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[parts", "x.toml is no TOML"),
        ("", "x.toml has no parts"),
        ("part = 3", "x.toml has a key 'part' that means nothing"),
        ("build_bytes = 1.5", "build_bytes is 1.5, no int"),
        ("parts = 3", "parts is 3, no dict"),
        ("[parts]\nA-B = {}", "A-B is no part"),
        ("[parts]\na = 3", "a is no part"),
        ('shared = ["c4.text_9"]', "shares 'c4.text_9', which is missing"),
        ('shared = ["../c4.text_6"]', "shares '../c4.text_6', and there is no .toml"),
        ('shared = ["c5.text_6"]', "and there is no c5.toml"),
    ],
)
def test_a_damaged_manifest_is_told_of(text, said):
    with pytest.raises(ManifestError) as told:
        manifest.read("x", text, manifest.licences())
    assert said in str(told.value)


def test_words_for_sizes():
    sizes = (0, 999, 1000, 1_234_567, 89e9, 2.4e12, 4.5e15)
    said = ["0 bytes", "999 bytes", "1 kB", "1.23 MB", "89 GB", "2.4 TB", "4.5e+03 TB"]
    assert [manifest.in_words(size) for size in sizes] == said
