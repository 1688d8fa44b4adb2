"""Fetching from servers that fail, and the errors when they do not recover."""

import hashlib
import os
import pickle

import pytest
from hostile_http import FAULTS, serve

from counterpoint.data.shards.transport import FetchError, NotThere, Transport, brief


def hasty(**changes) -> Transport:
    """For a server that stalls. A slow machine may look like one, hence the many attempts."""
    settings = {"num_attempts": 30, "stall_timeout": 1.0, "first_delay": 0.01} | changes
    return Transport(**settings)


def patient(**changes) -> Transport:
    """For a server that does not, where requests or attempts are counted."""
    settings = {"num_attempts": 8, "stall_timeout": 900.0, "first_delay": 0.01} | changes
    return Transport(**settings)


@pytest.fixture
def source(tmp_path, make_tar, make_pairs):
    """A folder with one tar of some 100 kB."""
    folder = tmp_path / "source"
    folder.mkdir()
    make_tar(folder / "0.tar", make_pairs(0, 40))
    return folder


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("known", [True, False])
def test_each_fault_costs_an_attempt_and_nothing_else(source, tmp_path, fault, known, monkeypatch):
    monkeypatch.setattr("hostile_http.FAULTS", (fault,))
    content = (source / "0.tar").read_bytes()
    with serve(source, num_faults=2) as server:
        url, out = f"{server.url}/0.tar", tmp_path / "out.tar"
        transport = hasty() if fault == "stall" else patient()
        size = {"num_bytes": len(content)} if known else {"max_bytes": 4 * len(content)}
        transport.download(url, out, **size)
        assert server.served[fault] == 2
        if fault != "stall":
            assert server.asked["/0.tar"] == 3
    assert out.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["out.tar", "source"]


def test_a_server_that_never_goes_on_is_given_up(source, tmp_path, monkeypatch):
    monkeypatch.setattr("hostile_http.FAULTS", ("stall",))
    with serve(source, num_faults=99) as server:
        # The server waits for half an hour: that this ends is the client's doing.
        with pytest.raises(FetchError, match=r"/0.tar' could not be read in 2 attempts: \w+"):
            hasty(num_attempts=2).download(f"{server.url}/0.tar", tmp_path / "out.tar", 5)
        assert server.asked["/0.tar"] == 2
    assert os.listdir(tmp_path) == ["source"]


def test_what_does_not_exist_is_not_tried_again(source, tmp_path):
    transport = patient()
    with serve(source) as server:
        url = f"{server.url}/none.tar?signature=secret"
        for call in (
            lambda: transport.download(url, tmp_path / "out.tar"),
            lambda: transport.content(url),
            lambda: transport.num_bytes(url),
        ):
            with pytest.raises(NotThere, match=r"/none.tar' does not exist") as caught:
                call()
            assert "secret" not in str(caught.value)
        assert server.asked["/none.tar"] <= 4  # a size is requested in two ways
        assert transport.num_bytes(f"{server.url}/0.tar") == (source / "0.tar").stat().st_size


def test_a_file_with_another_checksum_is_refused(source, tmp_path):
    digest = hashlib.sha256((source / "0.tar").read_bytes()).hexdigest()
    with serve(source) as server:
        url = f"{server.url}/0.tar"
        patient().download(url, tmp_path / "out.tar", sha256=digest)
        with pytest.raises(FetchError, match="SHA-256 is not the one in the manifest"):
            patient(num_attempts=2).download(url, tmp_path / "other.tar", sha256="0" * 64)


def test_a_driver_survives_a_fork(source, tmp_path):
    """The parent's event loop does not run in a loader worker."""
    transport = patient()
    with serve(source) as server:
        transport.download(f"{server.url}/0.tar", tmp_path / "parent.tar")
        child = os.fork()
        if not child:
            status = 1
            try:
                transport.download(f"{server.url}/0.tar", tmp_path / "child.tar")
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        transport.download(f"{server.url}/0.tar", tmp_path / "again.tar")
    names = ("parent.tar", "child.tar", "again.tar")
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1
    assert pickle.loads(pickle.dumps(transport)).stall_timeout == 900.0


def test_missing_drivers_are_named():
    with pytest.raises(ValueError, match=r"'s3://b/0.tar' needs the Python package s3fs; install"):
        Transport().require("s3://b/0.tar")
    # The last four are drivers of fsspec that fetch nothing from a server, or cannot list one.
    for protocol in ("no", "local", "reference", "dir", "zip"):
        url = f"{protocol}://b/0.tar"
        with pytest.raises(ValueError, match=f"'{url}' cannot be fetched: {protocol}:// names no"):
            Transport().require(url)
    with pytest.raises(ValueError, match=r"'no://b/0.tar' cannot be fetched: Protocol not known"):
        Transport(options={"no": {}}).require("no://b/0.tar")
    Transport(options={"local": {}}).require("local:///b/0.tar")


def test_no_message_holds_a_password(source, tmp_path):
    transport = hasty(num_attempts=1, allow_pipe=True)
    bad = "u:secret@127.0.0.1:9/0.tar?sig=secret"
    for call in (
        lambda: Transport().require(f"s3://{bad}"),
        lambda: Transport().require(f"no://{bad}"),
        lambda: Transport().require(f"pipe:curl https://{bad}"),
        lambda: transport.download(f"http://{bad}", tmp_path / "out.tar"),
        lambda: transport.download(f"pipe:exit 3; curl http://{bad}", tmp_path / "out.tar"),
        lambda: transport.listing(f"http://{bad}/*.tar"),
    ):
        with pytest.raises((ValueError, FetchError), match=r"127.0.0.1:9/0.tar") as caught:
            call()
        assert "secret" not in str(caught.value)
    # A library's message may hold the address, too.
    assert brief(OSError("https://u:secret@h/0?sig=secret failed")) == "OSError: https://h/0 failed"


def test_commands_run_only_when_enabled(source, tmp_path):
    url, out = f"pipe:cat {source}/0.tar | cat", tmp_path / "out.tar"
    with pytest.raises(ValueError, match=r"is a command, and running commands .* is not allowed"):
        hasty().download(url, out)
    transport = patient(allow_pipe=True, num_attempts=2)
    transport.download(url, out)
    assert out.read_bytes() == (source / "0.tar").read_bytes()
    for command in (
        "exit 3",
        f"cat {source}/0.tar; exit 3",
        f"head -c 700000 {source}/0.tar; exit 3",
    ):
        with pytest.raises(FetchError, match="the command ended with status 3"):
            transport.download(f"pipe:{command}", tmp_path / "x.tar")
    with pytest.raises(FetchError, match="do not end like a tar"):
        transport.download(f"pipe:head -c 1100 {source}/0.tar", tmp_path / "x.tar")
    with pytest.raises(FetchError, match=r"nothing arrived in 0.4 s"):
        transport = hasty(allow_pipe=True, num_attempts=1, stall_timeout=0.4)
        transport.download("pipe:sleep 3600 | cat", tmp_path / "x.tar")
    assert [path.name for path in tmp_path.glob("*.tar*")] == ["out.tar"]


@pytest.mark.parametrize("wrong", [{"num_attempts": 0}, {"stall_timeout": 0}, {"first_delay": -1}])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ValueError, match="give at least 1 attempt"):
        Transport(**wrong)
