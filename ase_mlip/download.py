"""Download published models into the user's cache: resumable, checked, and usable by several processes at once."""

from __future__ import annotations

import http.client
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ase_mlip.cache import cache_folder
from ase_mlip.model_file import file_sha256
from ase_mlip.registry import PUBLISHED, PublishedModel, unknown_name

TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 18  # bytes


class DownloadError(OSError):
    """A published model that could not be fetched, or is not what was published; the message says what to do."""


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def fetch_model(name: str, *, log: Callable[[str], None] = _to_stderr) -> Path:
    """The file of a published model, downloaded into the cache on first use and checked by SHA-256 on every use.

    A download that breaks off is resumed by the next call. A file that you put at the place which the error names is
    taken like a downloaded one.

    Args:
        name: one of `PUBLISHED`.
        log: told the licence and the citation before a download.

    Raises:
        FileNotFoundError: not the name of a published model; the message lists them.
        DownloadError: offline, broken off, or not the published file.
    """
    if name not in PUBLISHED:
        raise FileNotFoundError(unknown_name(name))
    model = PUBLISHED[name]
    path = cache_folder() / model.file_name
    if path.is_file():
        _check_cached(model, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_process(path, log):
        if not path.is_file():  # else another process was faster
            size = f", {model.size / 1e6:.0f} MB" if model.size else ""
            log(f"{name} ({model.note}{size})\n  from     {model.url}\n  to       {path}")
            log(f"  licence  {model.licence}\n  cite     {model.citation}")
            _download(model, path)
    return path


def _download(model: PublishedModel, path: Path) -> None:
    """Download to `NAME.part`, check, and rename. `NAME.part.tag` says which version of the file the part is of."""
    part, tag = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.tag")
    start, version = (part.stat().st_size, tag.read_text()) if part.is_file() and tag.is_file() else (0, "")
    with _open(model, path, start, version) as response:
        if not _is_rest(response, start, version):  # the whole: another version, or a server that cannot resume
            start = 0
            tag.unlink(missing_ok=True)
            part.unlink(missing_ok=True)
            if _version(response):
                tag.write_text(_version(response))
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with open(part, "ab") as file, _progress(model.name, start, total) as advance:
            broken = _copy(response, file, advance)
    size = part.stat().st_size
    if broken or total not in (None, size):
        whole = f" of {total:,}" if total else ""
        raise DownloadError(
            f"the download of {model.name} broke off after {size:,}{whole} bytes "
            f"({broken or 'the server closed the connection'}): run the same again to "
            f"{'resume' if tag.is_file() else 'start over'}. {_by_hand(model, path)}"
        )
    digest = file_sha256(part)
    tag.unlink(missing_ok=True)
    if model.sha256 not in (None, digest):
        part.unlink()
        raise DownloadError(
            f"what {model.url} sent is not {model.name} as published: SHA-256 {digest}, expected {model.sha256}; "
            "nothing was kept. Try again; if it stays so, the file was replaced or the connection is tampered with"
        )
    _record(model, path, digest)
    os.replace(part, path)


def _open(model: PublishedModel, path: Path, start: int, version: str) -> http.client.HTTPResponse:
    """Ask for the file, or for the rest of it if it is still the same version."""
    headers = {"User-Agent": "ase_mlip"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": version}
    try:
        response: http.client.HTTPResponse = urlopen(Request(model.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if start and error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(model, path, 0, "")
        reason = f"the server answered {error.code} {error.reason}"
    except (OSError, http.client.HTTPException) as error:
        reason = f"no connection ({error.reason if isinstance(error, URLError) else error})"
    else:
        web_page = response.headers.get_content_type() == "text/html"
        wrong_part = response.status == HTTPStatus.PARTIAL_CONTENT and not _is_rest(response, start, version)
        if not web_page and not (start and wrong_part):
            return response
        response.close()
        if not web_page:
            return _open(model, path, 0, "")
        reason = "a web page came instead of the file (the login page of your network?)"
    raise DownloadError(f"cannot download {model.name}: {reason}. {_by_hand(model, path)}")


def _is_rest(response: http.client.HTTPResponse, start: int, version: str) -> bool:
    """Whether the server sends what follows the first `start` bytes of the same version."""
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    partial = response.status == HTTPStatus.PARTIAL_CONTENT
    return partial and first == str(start) and _version(response) == version


def _version(response: http.client.HTTPResponse) -> str:
    """What tells one version of the file from the next; empty if the server does not say."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _copy(response: http.client.HTTPResponse, file: BinaryIO, advance: Callable[[int], None]) -> str:
    """Append what the server sends; returns what went wrong with the connection, empty if nothing."""
    while True:
        try:
            block = response.read1(BLOCK)
        except (OSError, http.client.HTTPException) as error:
            return str(error) or type(error).__name__
        if not block:
            return ""
        file.write(block)
        advance(len(block))


@contextmanager
def _progress(title: str, done: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal's stderr, else nothing; gives the function to call with each number of bytes."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda count: bar.advance(task, count)


@contextmanager
def _one_process(path: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time download this file; the system drops the lock if the process dies."""
    try:
        import fcntl
    except ImportError:  # Windows: two downloads at once may spoil each other; the SHA-256 tells
        yield
        return
    with open(path.with_name(path.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process downloads {path.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks, as on some clusters: as on Windows
        yield


def _check_cached(model: PublishedModel, path: Path) -> None:
    """Compare the file with the published hash, else with that of its download; one put there by hand is recorded."""
    record = _record_path(path)
    expected = model.sha256
    if expected is None and record.is_file():
        expected = json.loads(record.read_text(encoding="utf-8"))["sha256"]
    digest = file_sha256(path)
    if expected is None:
        with suppress(OSError):  # a shared cache may be read-only
            _record(model, path, digest)
    elif digest != expected:
        raise DownloadError(
            f"{path} is damaged or not {model.name}: SHA-256 {digest}, expected {expected}; "
            "delete it and run the same again to download it"
        )


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record(model: PublishedModel, path: Path, digest: str) -> None:
    """Keep what was downloaded beside it, so that later damage is noticed and its origin and licence stay known."""
    date = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"name": model.name, "url": model.url, "sha256": digest, "date": date}
    record |= {"licence": model.licence, "citation": model.citation}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, _record_path(path))


def _by_hand(model: PublishedModel, path: Path) -> str:
    return f"Or download {model.url} in another way and put it at {path}"
