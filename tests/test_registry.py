"""Published models: the table, and downloads from a local server that misbehaves in every way a real one does."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ase_mlip import download
from ase_mlip.cache import cache_folder
from ase_mlip.download import DownloadError, fetch_model
from ase_mlip.registry import PUBLISHED, PublishedModel, unknown_name

CONTENT = bytes(range(256)) * 4096  # 1 MiB
NAME = "toy"


class Server(ThreadingHTTPServer):
    """Serves one file; what it does wrong is set by the test."""

    content = CONTENT
    etag: str | None = '"one"'
    ranges = True
    lie = False  # answer a range with the rest of another version
    cut: int | None = None  # close the connection after so many bytes of each answer
    status = 200
    content_type = "application/octet-stream"
    requests: list[str | None]  # the Range of each request

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


class Handler(BaseHTTPRequestHandler):
    """Enough of GET with Range and If-Range."""

    server: Server

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers["Range"]
        server.requests.append(wanted)
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and (server.lie or self.headers["If-Range"] == server.etag):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        body = server.content[start:]
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if server.cut is None else body[: server.cut])

    def log_message(self, *_: object) -> None:
        """Keep the tests quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server on this machine, reached without a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.requests = []
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own."""
    monkeypatch.setenv("ASE_MLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def publish(monkeypatch: pytest.MonkeyPatch, port: int, sha256: str | None = None) -> PublishedModel:
    """Put a model at this port into the registry."""
    url = f"http://127.0.0.1:{port}/models/toy.model"
    model = PublishedModel(NAME, url, "mace-torch", "MIT", "Nobody, 2026", "H", sha256, len(CONTENT))
    monkeypatch.setitem(PUBLISHED, NAME, model)
    return model


@pytest.fixture
def model(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """A model of the server without a published hash."""
    return publish(monkeypatch, server.server_port)


def fetch() -> Path:
    """Fetch quietly."""
    return fetch_model(NAME, log=lambda _: None)


def break_off(server: Server, after: int) -> str:
    """The error of a download that the server cuts."""
    server.cut = after
    with pytest.raises(DownloadError) as caught:
        fetch()
    server.cut = None
    return str(caught.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_table(name: str) -> None:
    entry = PUBLISHED[name]
    assert entry.name == name
    assert entry.url.startswith("https://")
    assert "." in entry.file_name
    assert entry.licence
    assert entry.citation
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)


def test_files_in_the_cache_do_not_collide() -> None:
    assert len({entry.file_name for entry in PUBLISHED.values()}) == len(PUBLISHED)
    hashes = [entry.sha256 for entry in PUBLISHED.values() if entry.sha256]
    assert len(set(hashes)) == len(hashes)


def test_whole_download(server: Server, model: PublishedModel, cache: Path) -> None:
    said: list[str] = []
    path = fetch_model(NAME, log=said.append)
    assert path == cache / "toy.model"
    assert path.read_bytes() == CONTENT
    assert server.requests == [None]
    assert all(text in " ".join(said) for text in (model.url, str(path), "MIT", "Nobody, 2026", "1 MB"))
    record = json.loads((cache / "toy.model.json").read_text())
    assert record["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    assert record["url"] == model.url
    assert {file.name for file in cache.iterdir()} == {"toy.model", "toy.model.json", "toy.model.lock"}


def test_says_it_on_stderr(
    model: PublishedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    fetch_model(NAME)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "licence  MIT" in printed.err
    assert "\x1b" not in printed.err  # no progress bar where nobody watches


def test_cached_file_needs_no_network(model: PublishedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch()
    monkeypatch.setattr(download, "urlopen", None)
    assert fetch() == path


def test_resumes_where_it_broke_off(server: Server, model: PublishedModel, cache: Path) -> None:
    message = break_off(server, 300_000)
    assert "300,000 of 1,048,576 bytes" in message
    assert "run the same again to resume" in message
    assert model.url in message
    assert not (cache / "toy.model").exists()
    assert "700,000" in break_off(server, 400_000)
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=700000-"]


def test_server_that_cannot_resume(server: Server, model: PublishedModel) -> None:
    break_off(server, 300_000)
    server.ranges = False
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("lie", [False, True])
def test_changed_file_starts_over(server: Server, model: PublishedModel, lie: bool) -> None:
    break_off(server, 300_000)
    server.content, server.etag, server.lie = CONTENT[::-1], '"two"', lie
    assert fetch().read_bytes() == CONTENT[::-1]


def test_without_versions_starts_over(server: Server, model: PublishedModel) -> None:
    server.etag = None
    assert "run the same again to start over" in break_off(server, 300_000)
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [None, None]


def test_part_that_is_too_long_starts_over(server: Server, model: PublishedModel, cache: Path) -> None:
    break_off(server, 300_000)
    (cache / "toy.model.part").write_bytes(CONTENT + CONTENT)
    assert fetch().read_bytes() == CONTENT


def test_wrong_hash_is_not_kept(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.server_port, "0" * 64)
    with pytest.raises(DownloadError, match=f"{hashlib.sha256(CONTENT).hexdigest()}, expected {'0' * 64}"):
        fetch()
    assert [file.name for file in cache.iterdir()] == ["toy.model.lock"]


def test_published_hash_is_checked(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, server.server_port, hashlib.sha256(CONTENT).hexdigest())
    break_off(server, 300_000)
    assert fetch().read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_server_refuses(server: Server, model: PublishedModel, cache: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=str(status)) as caught:
        fetch()
    assert model.url in str(caught.value)
    assert str(cache / "toy.model") in str(caught.value)


def test_login_page_is_not_a_model(server: Server, model: PublishedModel, cache: Path) -> None:
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        fetch()
    assert not (cache / "toy.model").exists()


def test_offline_says_where_to_put_the_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: refuses, and nobody else can take the port
        model = publish(monkeypatch, closed.getsockname()[1])
        with pytest.raises(DownloadError, match="no connection") as caught:
            fetch()
    assert isinstance(caught.value, OSError)
    assert f"download {model.url} in another way and put it at {cache / 'toy.model'}" in str(caught.value)
    (cache / "toy.model").write_bytes(CONTENT)
    assert fetch() == cache / "toy.model"


def test_damaged_cache_is_noticed(model: PublishedModel) -> None:
    path = fetch()
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DownloadError, match="delete it") as caught:
        fetch()
    assert str(path) in str(caught.value)
    path.unlink()
    assert fetch().read_bytes() == CONTENT


def test_damage_of_a_file_put_by_hand_is_noticed(model: PublishedModel, cache: Path) -> None:
    cache.mkdir()
    (cache / "toy.model").write_bytes(b"by hand")
    fetch()
    (cache / "toy.model").write_bytes(b"by hend")
    with pytest.raises(DownloadError, match="damaged"):
        fetch()


def test_two_at_once(server: Server, model: PublishedModel) -> None:
    """The second waits and takes what the first has downloaded."""
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert server.requests == [None]


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(FileNotFoundError, match=r"did you mean mace-mpa-0-medium.*nequix-mp-1"):
        fetch_model("MACE-MPA-0")
    message = unknown_name("defualt", ["default"])
    assert "'defualt' is neither a file nor the name of a model; did you mean default" in message
    assert "Shipped with the package: default." in message
    assert all(name in message for name in PUBLISHED)
    assert "did you mean" not in unknown_name("/somewhere/else.safetensors", ["default"])


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASE_MLIP_CACHE", "~/models")
    assert cache_folder() == Path.home() / "models"
    monkeypatch.delenv("ASE_MLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert cache_folder() == Path("/var/cache/me/ase_mlip")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "ase_mlip"


def test_progress_bar_on_a_terminal(
    model: PublishedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes stderr for a terminal
    fetch()
    assert "1.0/1.0 MB" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
