"""Files over HTTP: taken up at the last byte, begun anew where they must, and refused in one sentence each."""

import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from download_site import EAGER, part, serving

from mlperf_jax.errors import UserError
from mlperf_jax.input_pipelines.downloads import fetching, journal, listing, web
from mlperf_jax.input_pipelines.downloads.manifest import Digest
from mlperf_jax.input_pipelines.downloads.progress import Progress

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def site():
    with serving() as made:
        yield made


@pytest.fixture
def get(tmp_path):
    """Fetches files into a folder; what was said on the way is in `get.said`."""

    def fetch(*files, patience=EAGER, **how):
        stream = io.StringIO()
        try:
            return fetching.fetch(files, tmp_path / "d", Progress(stream), patience=patience, **how)
        finally:
            fetch.said = stream.getvalue()

    fetch.folder = tmp_path / "d"
    return fetch


def content(folder):
    """The files of a folder but for the journal, and their bytes."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != journal.NAME}


# -- all goes well ---------------------------------------------------------------------------------


def test_files_come_to_their_places_and_are_not_asked_for_again(site, get):
    files = [site.file(f"a/{i}.bin", CONTENT[: 1000 * i], place=f"x/{i}") for i in range(6)]
    assert get(*files) == 6
    assert content(get.folder) == {f"x/{i}": CONTENT[: 1000 * i] for i in range(6)}
    assert "fetching 6 files, 15 kB" in get.said
    site.asked.clear()
    assert get(*files) == 0
    assert site.asked == [] and get.said == ""


def test_redirects_are_followed(site, get):
    site.add("there", CONTENT)
    file = site.file("here", leads_to="there", digest=False)
    get(file)
    assert content(get.folder) == {"here": CONTENT}


@pytest.mark.parametrize("how", [{"sized": False}, {"statuses": [405]}, {"statuses": [503, 500]}])
def test_servers_that_tell_no_size_or_know_no_head_or_are_busy(site, get, how):
    get(site.file("a", CONTENT, **how))
    assert content(get.folder) == {"a": CONTENT}


def test_an_empty_file(site, get):
    assert get(site.file("a", b"")) == 1
    assert content(get.folder) == {"a": b""}


# -- it breaks off ---------------------------------------------------------------------------------


def test_a_broken_connection_goes_on_at_the_last_byte(site, get):
    get(site.file("a", CONTENT, break_after=[1_000_000, 500_000]))
    assert content(get.folder) == {"a": CONTENT}
    assert site.gets("a") == [None, "bytes=1000000-", "bytes=1500000-"]
    assert site.gets("a", "If-Range") == [None, '"one"', '"one"']
    assert "broke off" in get.said


def test_what_brings_bytes_is_tried_for_ever_and_what_brings_none_is_given_up(site, get):
    get(site.file("a", CONTENT, break_after=[200_000] * 10))
    assert content(get.folder) == {"a": CONTENT}
    file = site.file("b", CONTENT, break_after=[200_000, *[0] * 10])
    with pytest.raises(UserError, match=r"127.0.0.1 broke off .*given up after 3 tries, and what"):
        get(file)
    assert len(site.gets("b")) == 4
    site.files["b"].break_after.clear()
    get(file)
    assert content(get.folder)["b"] == CONTENT
    assert site.gets("b")[-1] == "bytes=200000-", "the next fetch goes on where this one stopped"


def test_a_server_without_ranges_begins_anew(site, get):
    get(site.file("a", CONTENT, ranges=False, break_after=[2_000_000]))
    assert content(get.folder) == {"a": CONTENT}
    assert site.gets("a") == [None, "bytes=2000000-"]


@pytest.mark.parametrize("etag", ['"two"', ""])
@pytest.mark.parametrize("longer", [0, 10])
def test_a_file_that_is_another_between_two_tries_is_begun_anew(site, get, etag, longer):
    """By its ETag; without one by its size, and else its sum is wrong, which makes the next fetch begin anew."""
    file = site.file("a", CONTENT, etag='"one"' if etag else "", break_after=[900_000, *[0] * 9])
    with pytest.raises(UserError, match="given up"):
        get(file)
    new = CONTENT[::-1] + bytes(longer)
    file = site.file("a", new, etag=etag)
    if not etag and not longer:
        with pytest.raises(UserError, match=r"what came from .*/a has the MD5 .*it was removed"):
            get(file)
        assert content(get.folder) == {}
    get(file)
    assert content(get.folder) == {"a": new}


def test_a_file_that_became_shorter_is_begun_anew(site, get):
    with pytest.raises(UserError, match="given up"):
        get(site.file("a", CONTENT, break_after=[2_000_000, *[0] * 9]))
    get(site.file("a", CONTENT[:1000], etag=""))
    assert content(get.folder) == {"a": CONTENT[:1000]}


def test_what_was_stopped_before_its_name_is_only_named(site, get):
    get.folder.mkdir()
    (get.folder / "incomplete.a").write_bytes(CONTENT)
    get(site.file("a", CONTENT))
    assert content(get.folder) == {"a": CONTENT}
    assert site.gets("a") == []


@pytest.mark.parametrize("etag", ['"one"', ""])
def test_a_lost_or_damaged_journal_costs_nothing_but_a_sum(site, get, etag):
    file = site.file("a", CONTENT, etag=etag)
    get(file)
    for text in ("", "{}", "[1]", '{"whole": 3, "begun": 4}'):
        (get.folder / journal.NAME).write_text(text)
        assert get(file) == 0
        assert "checking a" in get.said
    assert len(site.gets("a")) == 1


# -- what is wrong -----------------------------------------------------------------------------------


def test_a_wrong_sum_is_told_and_the_file_fetched_anew(site, get):
    right = site.file("a", CONTENT)
    site.files["a"].content = CONTENT[::-1]
    good = site.file("b", b"good")
    with pytest.raises(
        UserError, match=r"what came from http.*/a has the MD5 \w{32}, and \w{32} is"
    ):
        get(right, good)
    assert content(get.folder) == {"b": b"good"}, "the others are fetched"
    site.files["a"].content = CONTENT
    assert get(right, good) == 1
    assert content(get.folder) == {"a": CONTENT, "b": b"good"}


def test_other_sums_than_md5(site, get):
    file = site.file("a", CONTENT, digest=False)
    for algorithm in ("sha256", "sha512"):
        value = hashlib.new(algorithm, CONTENT).hexdigest()
        get(listing.File(algorithm, file.address, digest=Digest(algorithm, value)))
        with pytest.raises(UserError, match=f"the {algorithm.upper()} "):
            get(listing.File("b", file.address, digest=Digest(algorithm, value[::-1])))
    assert content(get.folder).keys() == {"sha256", "sha512"}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"statuses": [404] * 9}, r"127.0.0.1 has no such file \(status 404\)"),
        ({"statuses": [403] * 9}, r"does not hand it out \(status 403\)"),
        ({"statuses": [401] * 9}, r"asks for a login \(status 401\)"),
        ({"statuses": [418] * 9}, "answers 418"),
        ({"statuses": [405, *[500] * 20]}, r"\(status 500\): given up after 3 tries"),
        ({"says": 10}, r"\w+ has the MD5"),
        ({"says": 4_000_000}, "given up after 3 tries"),
    ],
)
def test_one_sentence_for_each_answer(site, get, how, said):
    good = site.file("b", b"good")
    with pytest.raises(UserError, match=said) as told:
        get(good, site.file("a", CONTENT, **how), connections=1)
    assert "\n" not in str(told.value) and not str(told.value).endswith(".")
    assert content(get.folder)["b"] == b"good"


def test_how_many_more_were_not_handed_out(site, get):
    files = [listing.File(str(i), f"{site.address}/{i}") for i in range(5)]
    with pytest.raises(UserError, match=r"has no such file .*\(and 4 more files, told of above\)"):
        get(*files, site.file("a", CONTENT))
    assert get.said.count("not fetched: ") == 5
    assert content(get.folder) == {"a": CONTENT}


def test_a_server_in_trouble_keeps_no_other_file_from_being_fetched(site, get):
    busy = site.file("a", CONTENT, statuses=[503] * 99)
    with pytest.raises(UserError, match=r"/a: 127.0.0.1 answers 503 .*given up after 3 tries"):
        get(busy, site.file("b", b"good"), connections=1)
    assert content(get.folder) == {"b": b"good"}
    site.files["a"].statuses = [503, 503]
    assert get(busy) == 1


def test_without_a_network_nothing_else_is_tried(site, get):
    """Each of a thousand files would wait for its tries to be over."""
    file = site.file("a", CONTENT)
    nobody = listing.File("n", "http://127.0.0.1:9/n", 5)
    with pytest.raises(UserError, match="cannot be reached"):
        get(nobody, file, connections=1)
    assert site.gets("a") == []


def test_a_stated_size_that_is_another(site, get):
    with pytest.raises(
        UserError, match=r"/a has 3,000,000 bytes, and 17 are stated: it was changed"
    ):
        get(site.file("a", CONTENT, size=17))
    assert content(get.folder) == {}


def test_a_login_page_is_no_file(site, get):
    site.add("login", b"<html>who are you?</html>", kind="text/html")
    with pytest.raises(UserError, match="/a asks for a login: it is not handed out freely"):
        get(site.file("a", leads_to="login", digest=False))


def test_no_network(tmp_path):
    nobody = listing.File("a", "http://127.0.0.1:9/a")
    with pytest.raises(UserError, match=r"127.0.0.1 cannot be reached \(.*refused\): given up"):
        fetching.fetch([nobody], tmp_path, Progress(io.StringIO()), patience=EAGER)


def test_a_server_that_says_nothing(site, get):
    gate = threading.Event()
    impatient = fetching.Patience(tries=2, pause=0.0, answer=(1.0, 0.05))
    try:
        with pytest.raises(UserError, match=r"127.0.0.1 does not answer: .*given up after 2 tries"):
            get(site.file("a", CONTENT, gate=gate), patience=impatient)
    finally:
        gate.set()


def test_room_on_the_disk_is_asked_for_what_is_still_to_come(site, get, monkeypatch):
    usage = type(shutil.disk_usage("/"))(10**9, 10**9, 2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    file = site.file("a", CONTENT)
    with pytest.raises(UserError, match=r"GB free and the download needs 0.0 GB: free space"):
        get(file)
    assert site.gets("a") == []
    (get.folder / "incomplete.a").write_bytes(CONTENT[:1_500_000])
    get(file)
    assert content(get.folder) == {"a": CONTENT}


def test_a_full_disk_keeps_what_came(site, get, monkeypatch):
    real = fetching._Work._write

    def full(work, part, answer):
        with open(part, "ab") as out:
            out.write(next(answer.blocks())[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching._Work, "_write", full)
    file = site.file("a", CONTENT)
    with pytest.raises(
        UserError, match=r"cannot write .*incomplete.a: No space left on device; what"
    ):
        get(file)
    monkeypatch.setattr(fetching._Work, "_write", real)
    get(file)
    assert site.gets("a")[-1] == "bytes=1000-"
    assert content(get.folder) == {"a": CONTENT}


def test_files_in_the_way_are_left_alone(site, get):
    get.folder.mkdir()
    (get.folder / "a").write_bytes(b"mine")
    stated = site.file("a", CONTENT)
    with pytest.raises(UserError, match=r"d/a has the MD5 .*is stated: remove it, or give another"):
        get(stated)
    unstated = site.file("a", CONTENT, digest=False)
    with pytest.raises(UserError, match=r"d/a has 4 bytes and its source 3,000,000: remove it"):
        get(unstated)
    (get.folder / "b").mkdir()
    with pytest.raises(UserError, match="d/b is no file and in the way"):
        get(site.file("b", CONTENT))
    assert content(get.folder) == {"a": b"mine"}
    (get.folder / "a").write_bytes(CONTENT)
    assert get(unstated) == 0 and get(stated) == 0, "what came another way is taken as it is"
    (get.folder / "a").write_bytes(CONTENT[::-1])
    os.utime(get.folder / "a", (1, 1))
    with pytest.raises(UserError, match="d/a has the MD5"):
        get(stated)


def test_a_folder_that_may_not_be_written(site, tmp_path):
    (tmp_path / "file").touch()
    for folder, said in (
        (tmp_path / "file" / "d", "cannot write"),
        ("gs://b/d", "gs://b/d is none"),
    ):
        with pytest.raises(UserError, match=said):
            fetching.fetch([site.file("a", CONTENT)], folder, Progress(io.StringIO()))


def test_an_error_stops_the_others_and_keeps_their_bytes(site, get, monkeypatch):
    """What no file can do anything about, here a full disk, ends all at their next byte."""
    gate, real = threading.Event(), fetching._Work._write

    def write(work, part, answer):
        if part.name == "incomplete.b":
            gate.set()
            raise OSError(28, "No space left on device")
        assert gate.wait(60)
        while not work.stop.is_set():
            pass
        real(work, part, answer)

    monkeypatch.setattr(fetching._Work, "_write", write)
    with pytest.raises(UserError, match="No space left"):
        get(site.file("a", CONTENT), site.file("b", CONTENT), connections=2)
    kept = content(get.folder)["incomplete.a"]
    assert kept and CONTENT.startswith(kept) and len(kept) < len(CONTENT)


# -- killed and resumed ------------------------------------------------------------------------------

CHILD = """
import sys
from mlperf_jax.input_pipelines.downloads import fetching, listing, progress
from mlperf_jax.input_pipelines.downloads.manifest import Digest

class Told(progress.Progress):
    def add(self, count):
        print(count, flush=True)

file = listing.File("a", sys.argv[1], digest=Digest("md5", sys.argv[2]))
patience = fetching.Patience(answer=(5.0, 1.0))
fetching.fetch([file], sys.argv[3], Told(sys.stderr), patience=patience)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_is_gone_on_with(site, get, number):
    gate = threading.Event()
    file = site.file("a", CONTENT, gate=gate, hold=web.BLOCK + 1000)
    command = [sys.executable, "-c", CHILD, file.address, file.digest.value, str(get.folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    try:
        with subprocess.Popen(command, **pipes) as child:
            assert child.stdout.readline() == f"{web.BLOCK}\n", "a block is on the disk"
            child.send_signal(number)
            assert child.wait(60) != 0
    finally:
        gate.set()
    assert content(get.folder)["incomplete.a"] == CONTENT[: web.BLOCK]
    assert get(file) == 1
    assert content(get.folder) == {"a": CONTENT}
    assert site.gets("a")[-1] == f"bytes={web.BLOCK}-"
    assert site.gets("a", "If-Range")[-1] == '"one"'


# -- parts -------------------------------------------------------------------------------------------


def test_parts_are_listed_and_fetched_and_a_lost_list_keeps_none_from_the_others(site, tmp_path):
    for name in ("x", "deep/y"):
        site.add(f"graph/{name}", name.encode())
    parts = [
        part("gone", set=f"{site.address}/metadata/gone.uri", into="gone"),
        site.set("graph", ["x", "deep/y"], into="g"),
        part("many", numbered=f"{site.address}/n{{n:03d}}", first=1, last=3, into="m/{n}"),
        part("one", address=site.add("one", b"1"), into="o"),
    ]
    for number in (1, 2, 3):
        site.add(f"n{number:03d}", str(number).encode())
    stream = io.StringIO()
    with pytest.raises(UserError, match=r"metadata/gone.uri: 127.0.0.1 has no such file"):
        fetching.fetch_parts(parts, tmp_path, Progress(stream), patience=EAGER)
    got = {"g/x": b"x", "g/deep/y": b"deep/y", "m/1": b"1", "m/2": b"2", "m/3": b"3", "o": b"1"}
    assert content(tmp_path) == got
    assert fetching.fetch_parts(parts[1:], tmp_path, Progress(stream), patience=EAGER) == 0


def test_the_journal_is_readable_and_named_as_hidden(site, get):
    get(site.file("a", b"good"))
    kept = json.loads((get.folder / journal.NAME).read_text())
    assert kept["whole"]["a"][0] == 4 and kept["begun"] == {}
    assert sorted(os.listdir(get.folder)) == [journal.NAME, "a"], "no lock is left"


def test_answers_of_the_wrong_part(site):
    address = site.add("a", CONTENT)
    with web.session(1) as session:
        answer = web.ask(session, address, begin=10, validator='"one"')
        assert (answer.begins, answer.size, answer.validator) == (10, len(CONTENT), '"one"')
        assert b"".join(answer.blocks()) == CONTENT[10:]
        with pytest.raises(web.Beyond) as beyond:
            web.ask(session, address, begin=len(CONTENT), validator='"one"')
        assert beyond.value.size == len(CONTENT)
        site.files["a"].etag = 'W/"weak"'
        assert web.ask(session, address).validator == "", "a weak one tells no bytes apart"
        assert web.size(session, site.add("e", b"", statuses=[405])) == 0
        with pytest.raises(web.Refused, match="longer than the 5 bytes"):
            web.text(session, address, 5)
        with pytest.raises(web.Refused, match="is no text"):
            web.text(session, site.add("t", b"\xff\xfe"), 5)


def test_no_test_leaves_this_machine():
    """All addresses that are asked for here are of the loopback device."""
    found = re.findall(r'"(http://[^/"]+)', pathlib.Path(__file__).read_text())
    assert set(found) <= {"http://127.0.0.1:9"}
