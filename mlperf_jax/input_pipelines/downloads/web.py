"""Requests, and what goes wrong with them in one sentence each."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse
from collections.abc import Iterator

import requests
import requests.adapters
import urllib3.exceptions

from mlperf_jax.errors import UserError

PATIENCE = (10.0, 30.0)  # seconds: to be connected, and to be sent the next byte
BLOCK = 1 << 20  # bytes read at once
_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_SAID = {
    401: "asks for a login",
    403: "does not hand it out",
    404: "has no such file",
    410: "has it no longer",
    451: "may not hand it out",
}


class Unreachable(UserError):
    """No answer came, or it broke off: another try may go better, and none does without a network."""


class Busy(UserError):
    """The server has its troubles with this file: another try may go better."""


class Refused(UserError):
    """The server answered, and not with the file: another try goes no better."""


class Beyond(Refused):
    """Asked for from a byte on that the file has not: `size` is what it has, where the server says so."""

    def __init__(self, message: str, size: int | None) -> None:
        super().__init__(message)
        self.size = size


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a server says of a file before it sends it.

    Attributes:
        begins: the first byte that it sends; 0 where it sends all.
        size: bytes of the whole file, where it says so.
        validator: an ETag or a date that changes with the file, for `If-Range`; empty if there is none.
        response: the body still to be read.
    """

    begins: int
    size: int | None
    validator: str
    response: requests.Response

    def blocks(self) -> Iterator[bytes]:
        """The body as it arrives.

        Raises:
            Unreachable: it broke off.
        """
        try:
            yield from self.response.raw.stream(BLOCK, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            at = urllib.parse.urlsplit(self.response.url)
            name = at.path.rpartition("/")[2]
            raise Unreachable(
                f"the connection to {at.hostname} broke off in {name} ({_short(error)})"
            ) from error


def session(connections: int) -> requests.Session:
    """A session whose connections are kept, so many for each server."""
    made = requests.Session()
    for scheme in ("https://", "http://"):
        made.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=connections))
    made.headers["Accept-Encoding"] = "identity"  # the bytes as they lie there, whose sum is stated
    return made


def ask(
    session: requests.Session,
    address: str,
    *,
    begin: int = 0,
    end: int | None = None,
    validator: str = "",
    patience: tuple[float, float] = PATIENCE,
) -> Answer:
    """Asks for a file from its byte `begin` on, or for all if it is another than `validator` says.

    Args:
        session: of `session`.
        address: the file's.
        begin: bytes that are there already.
        end: the last byte wanted; all by default.
        validator: of the file whose bytes are there.
        patience: seconds to be connected, and to be sent the next byte.

    Raises:
        Unreachable: no answer.
        Busy: an answer that says to try again.
        Beyond: it has no such byte.
        Refused: any other answer that is not the file.
    """
    headers = {}
    if begin or end is not None:
        headers["Range"] = f"bytes={begin}-{'' if end is None else end}"
    if begin and validator:
        headers["If-Range"] = validator
    response = _sent(session, "GET", address, headers, patience)
    try:
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        whole = int(found[2]) if found and found[2] != "*" else None
        if response.status_code == 416:
            raise Beyond(f"{address} has no byte {begin:,}", whole)
        if response.status_code == 206 and found and found[1] == str(begin):
            return Answer(begin, whole, _validator(response), response)
        if response.status_code == 206:
            raise Refused(f"{address} was asked for from byte {begin:,} on and sends another part")
        return Answer(0, _length(response), _validator(response), response)
    except BaseException:
        response.close()
        raise


def size(
    session: requests.Session, address: str, patience: tuple[float, float] = PATIENCE
) -> int | None:
    """How many bytes a file has, where its server says so: by HEAD, or by asking for its first byte.

    Raises:
        Unreachable: no answer.
        Busy: an answer that says to try again.
        Refused: any other answer that is not the file.
    """
    try:
        with _sent(session, "HEAD", address, {}, patience) as response:
            found = _length(response)
        if found is not None:
            return found
    except Refused:
        pass  # some servers know no HEAD, or refuse it where GET is signed
    try:
        answer = ask(session, address, end=0, patience=patience)
    except Beyond as empty:
        return empty.size
    answer.response.close()
    return answer.size


def text(session: requests.Session, address: str, longest: int) -> str:
    """A small text.

    Raises:
        Unreachable: no answer.
        Busy: an answer that says to try again.
        Refused: it is not there, too long, or no text.
    """
    answer = ask(session, address)
    content = b""
    with answer.response:
        for block in answer.blocks():
            content += block
            if len(content) > longest:
                raise Refused(f"{address} is longer than the {longest:,} bytes of a list")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{address} is no text") from None


def _sent(
    session: requests.Session,
    method: str,
    address: str,
    headers: dict[str, str],
    patience: tuple[float, float],
) -> requests.Response:
    """The answer, after redirects, if it is one of success or of 416."""
    host = urllib.parse.urlsplit(address).hostname
    try:
        response = session.request(
            method, address, headers=headers, stream=True, timeout=patience, allow_redirects=True
        )
    except requests.exceptions.Timeout:
        raise Unreachable(f"{host} does not answer: look whether this machine reaches it") from None
    except requests.exceptions.SSLError as error:
        raise Refused(
            f"{host} has no certificate that is trusted here ({_short(error)})"
        ) from error
    except requests.exceptions.ConnectionError as error:
        raise Unreachable(f"{host} cannot be reached ({_short(error)})") from error
    except requests.exceptions.RequestException as error:
        raise Refused(f"{address} cannot be asked for ({_short(error)})") from error
    code = response.status_code
    if code in (200, 206, 416) and not _login(response, address):
        return response
    response.close()
    if code in (200, 206):
        raise Refused(f"{address} asks for a login: it is not handed out freely any more")
    said = _SAID.get(code, f"answers {code} {response.reason}")
    kind = Busy if code in _AGAIN else Refused
    raise kind(f"{address}: {host} {said} (status {code})")


def _login(response: requests.Response, address: str) -> bool:
    """Whether one was led to a page in place of a file."""
    there = urllib.parse.urlsplit(response.url)
    led = response.url != address and (
        (there.hostname or "").endswith(".cloudflareaccess.com") or "/login" in there.path
    )
    return led and "html" in response.headers.get("Content-Type", "")


def _length(response: requests.Response) -> int | None:
    said = response.headers.get("Content-Length", "")
    return int(said) if said.isdigit() and "Content-Encoding" not in response.headers else None


def _validator(response: requests.Response) -> str:
    etag = response.headers.get("ETag", "")
    strong = etag if etag.startswith('"') else ""
    return strong or response.headers.get("Last-Modified", "")


def _short(error: BaseException) -> str:
    """The innermost reason, without addresses in memory."""
    while inner := getattr(error, "reason", None) or error.__cause__ or error.__context__:
        if not isinstance(inner, BaseException):
            break
        error = inner
    said = re.sub(r"<[^>]*>:? ?", "", str(error)).strip(" .'\"")
    return said or type(error).__name__
