"""Whether addresses still answer: each once, side by side, with the size that is stated."""

import threading

from download_site import part, serving

from mlperf_jax.input_pipelines.downloads import links, manifest
from mlperf_jax.input_pipelines.downloads.manifest import Licence, Manifest


def test_every_address_of_every_manifest_is_asked_once():
    everything = [manifest.load(name) for name in manifest.names()]
    found = links.stated(everything)
    for each in everything:
        for of in each.parts.values():
            asked = {address for address, (names, _) in found.items() if each.name in names}
            for address in (of.set, of.address, of.page, of.licence.address):
                assert not address or address in asked
    c4 = "https://huggingface.co/datasets/allenai/c4/resolve/main/en/c4-train.{}-of-01024.json.gz"
    for number in ("00768", "00895"):
        assert found[c4.format(number)] == (("gpt3", "llama31_405b", "llama31_8b"), None)
    sets = [address for address in found if address.endswith(".uri")]
    assert all(f"{address.removesuffix('.uri')}.md5" in found for address in sets) and sets


def test_what_they_answer():
    with serving() as site:
        licence = Licence("free", site.add("licence", b"free"))
        site.files["licence"].statuses.append(405)  # to HEAD
        parts = [
            part("good", address=site.add("good", b"123"), bytes=3, into="g"),
            part("other", address=site.add("other", b"1234"), bytes=3, into="o"),
            part("gone", address=f"{site.address}/gone", into="x"),
            part(
                "page", page=site.add("page", b"<html>", sized=False, ranges=False), by_hand="ask"
            ),
        ]
        made = Manifest(
            "x", {p.key: manifest.dataclasses.replace(p, licence=licence) for p in parts}
        )
        found = {link.address.rpartition("/")[2]: link for link in links.test(links.stated([made]))}
    assert {name: link.good for name, link in found.items()} == {
        "good": True,
        "licence": True,
        "other": False,
        "gone": False,
        "page": True,
    }
    assert found["good"].text == "3 bytes, as stated"
    assert found["other"].text == "4 bytes, and 3 are stated"
    assert found["page"].text == "answers, without a size"
    assert "has no such file (status 404)" in found["gone"].text
    assert str(found["good"]).startswith("ok  http") and "(x)" in str(found["good"])
    assert str(found["gone"]).startswith("BAD ")


def test_they_are_asked_side_by_side():
    """Each answer waits until the last of them was asked for."""
    with serving() as site:
        gate, wanted = threading.Event(), 8

        class Asked(list):
            def append(self, each):
                super().append(each)
                if len(self) == wanted:
                    gate.set()

        site.asked = Asked()
        addresses = {site.add(str(n), b"1", gate=gate): (("x",), None) for n in range(wanted)}
        assert all(link.good for link in links.test(addresses))


def test_nothing_reachable_is_a_line_each():
    addresses = {f"http://127.0.0.1:9/{n}": (("x",), None) for n in range(40)}
    found = list(links.test(addresses))
    assert [link.address for link in found] == list(addresses)
    assert not any(link.good for link in found)
    assert all("127.0.0.1 cannot be reached" in link.text for link in found)
