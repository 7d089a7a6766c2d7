"""A web site on this machine that hands out files as badly as it is told to."""

import contextlib
import dataclasses
import hashlib
import http.server
import re
import threading

from mlperf_jax.input_pipelines.downloads import fetching, listing, manifest

EAGER = fetching.Patience(tries=3, pause=0.0, answer=(5.0, 5.0))
LICENCE = manifest.Licence("a licence", "https://example.org/licence")


@dataclasses.dataclass
class Served:
    """One file of the site.

    Attributes:
        content: its bytes.
        etag: changes with it; "" for none.
        ranges: whether it can be had from the middle on.
        break_after: of the next answers, the bytes behind which each breaks off.
        statuses: of the next answers, by GET or HEAD.
        says: the length that is told, another than there is.
        sized: whether its length is told at all.
        leads_to: another path, which one is redirected to.
        kind: its content type.
        gate: answers begin when it is set.
        hold: bytes behind which an answer waits for `gate`, instead of at its beginning.
    """

    content: bytes
    etag: str = '"one"'
    ranges: bool = True
    break_after: list = dataclasses.field(default_factory=list)
    statuses: list = dataclasses.field(default_factory=list)
    says: int | None = None
    sized: bool = True
    leads_to: str = ""
    kind: str = "application/octet-stream"
    gate: threading.Event | None = None
    hold: int = 0

    @property
    def md5(self):
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()


class Site:
    """Its address, its files by path, and what it was asked for: (method, path, headers)."""

    def __init__(self, address):
        self.address, self.files, self.asked = address, {}, []

    def add(self, path, content=b"", **how):
        """Hands out a file from now on; gives its address."""
        self.files[path] = Served(content, **how)
        return f"{self.address}/{path}"

    def file(self, path, content=b"", *, digest=True, size=None, place=None, **how):
        """The same, as what a listing says of it."""
        address = self.add(path, content, **how)
        stated = manifest.Digest("md5", self.files[path].md5) if digest else None
        return listing.File(place or path, address, size, stated)

    def set(self, name, hosted, *, sums=None, base=None, **of_part):
        """A set of the organisers' storage; gives the part of a manifest that names it."""
        lines = [f"{self.files[f'{name}/{path}'].md5}  {path}" for path in hosted]
        self.add(f"metadata/{name}.uri", f"{base or f'{self.address}/{name}'}\n".encode())
        self.add(f"metadata/{name}.md5", "\n".join(sums or lines).encode())
        return part(name, set=f"{self.address}/metadata/{name}.uri", **{"into": ".", **of_part})

    def gets(self, path, header="Range"):
        """That header of each GET of a path."""
        return [
            headers.get(header) for how, at, headers in self.asked if (how, at) == ("GET", path)
        ]


def part(key, **of_part):
    """A part of a manifest, with what every part has."""
    said = {"what": f"the {key}", "licence": LICENCE, "source": "https://example.org"}
    return manifest.Part(key=key, **{**said, **of_part})


@contextlib.contextmanager
def serving():
    """A site that is there until the block ends."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(False)

        def do_GET(self):
            self.answer(True)

        def answer(self, with_body):
            path = self.path.lstrip("/")
            site.asked.append((self.command, path, dict(self.headers)))
            served = site.files.get(path)
            if served is None:
                return self.say(404)
            if served.gate and not served.hold:
                served.gate.wait(60)
            if served.leads_to:
                return self.say(302, Location=f"{site.address}/{served.leads_to}")
            if served.statuses:
                return self.say(served.statuses.pop(0))
            begin, end, total = 0, len(served.content), len(served.content)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", served.etag) == served.etag
            part = bool(wanted and served.ranges and same)
            if part:
                begin = int(wanted[1])
                if begin >= total:
                    return self.say(416, **{"Content-Range": f"bytes */{total}"})
                end = min(end, int(wanted[2]) + 1) if wanted[2] else end
            body = served.content[begin:end]
            self.send_response(206 if part else 200)
            self.send_header("Content-Type", served.kind)
            if served.etag:
                self.send_header("ETag", served.etag)
            if part:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{total}")
            if served.sized:
                self.send_header("Content-Length", served.says or len(body))
            self.close_connection = True
            self.send_header("Connection", "close")
            self.end_headers()
            if with_body:
                cut = served.break_after.pop(0) if served.break_after else len(body)
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body[: served.hold])
                    if served.gate and served.hold:
                        served.gate.wait(60)
                    self.wfile.write(body[served.hold : cut])

        def say(self, status, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
