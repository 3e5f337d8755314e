"""One file over http(s): resumed where it stopped, tried again after a cut, given up where it stalls. No torch."""

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from magvit_scale.config import Refusal
from magvit_scale.progress import progress_bar

NUM_ATTEMPTS = 5
FIRST_PAUSE_S = 0.5
"""Before the second attempt; twice as long before each further one."""
STALLED_AFTER_S = 30.0
LEAST_BYTES_PER_S = 10_000
BLOCK = 1 << 20
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416
WORTH_A_RETRY = (408, 425, 429)


def download(url: str, path: Path, *, is_continued: bool) -> None:
    """Writes what is behind `url` to `path`, whose former content is the beginning of it.

    Args:
        url: http or https, and so is whatever it redirects to.
        path: a file that is kept after a failure, for the next call.
        is_continued: takes up where `path` or a cut connection ends. False starts anew each time: for files whose
            content cannot be checked afterwards, as two versions of one might be joined.

    Raises:
        Refusal: the server has no such file, or does not deliver it in several attempts.
    """
    for attempt in range(NUM_ATTEMPTS):
        if not is_continued:
            path.unlink(missing_ok=True)
        try:
            return _attempt(url, path)
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in WORTH_A_RETRY:
                raise Refusal(f"{url}: {error}; look at the address, or give mirror=URL or file=PATH") from error
            reason = str(error)
        except (urllib.error.URLError, ssl.SSLError, ConnectionError, TimeoutError, HTTPException, EOFError) as error:
            reason = f"{type(error).__name__}: {error}"
        if attempt + 1 < NUM_ATTEMPTS:
            time.sleep(FIRST_PAUSE_S * 2**attempt)
    kept = path.stat().st_size if is_continued and path.exists() else 0
    raise Refusal(
        f"{url}: {reason}, {NUM_ATTEMPTS} times; run again ({kept} bytes are kept), or give mirror=URL or file=PATH"
    )


def blocks(source: IO[bytes], stalled_after_s: float = STALLED_AFTER_S) -> Iterator[bytes]:
    """The content, as it comes in; a source that goes on trickling is given up like one that is silent.

    Raises:
        TimeoutError: it has been slower than `LEAST_BYTES_PER_S` for longer than `stalled_after_s`.
    """
    read: Callable[[int], bytes] = getattr(source, "read1", source.read)
    start, num_bytes = time.monotonic(), 0
    while block := read(BLOCK):
        num_bytes += len(block)
        if time.monotonic() - start > stalled_after_s + num_bytes / LEAST_BYTES_PER_S:
            raise TimeoutError(f"slower than {LEAST_BYTES_PER_S} bytes per second")
        yield block


def _attempt(url: str, path: Path) -> None:
    start = path.stat().st_size if path.exists() else 0
    try:
        response = _open(url, start)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it was complete
        path.unlink()
        start, response = 0, _open(url, 0)
    with closing(response):
        _receive(response, path, start if _continues(response, start) else 0)


def _continues(response: Any, start: int) -> bool:
    """Whether the server sends the rest that was asked for; one that knows no ranges sends all."""
    told = response.headers.get("Content-Range", "")
    return response.status == PARTIAL_CONTENT and told.startswith(f"bytes {start}-")


def _receive(response: Any, path: Path, start: int) -> None:
    told = response.headers.get("Content-Length")
    total = start + int(told) if told else None
    with (
        path.open("r+b" if start else "wb") as file,
        progress_bar(path.stem, total, unit="B", initial=start, is_scaled=True) as bar,
    ):
        file.seek(start)
        for block in blocks(response):
            file.write(block)
            bar.update(len(block))
        found = file.tell()
    # A closed connection looks like the end of the file.
    if total is not None and found != total:
        raise EOFError(f"ended after {found} of {total} bytes")


class _OnlyHttp(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        # The base class follows to ftp too, and refuses all else.
        if not newurl.startswith(("http://", "https://")):
            raise urllib.error.HTTPError(newurl, code, f"{msg} - redirection to {newurl} is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, start: int) -> Any:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    return urllib.request.build_opener(_OnlyHttp).open(request, timeout=STALLED_AFTER_S)
