"""A web server on this machine that serves a folder, badly.

In: a folder and how many of the first requests for each file go wrong. Out: its address, and what
it was asked for.
"""

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("drop", "stall", "short", "endless", "flood", "503", "416", "html")
STALL_SECONDS = 1800.0  # beyond every time-out of a client: it must have one


class HostileServer(ThreadingHTTPServer):
    """Serves `folder`; of each path the first requests (at most `num_faults`) may fail.

    Attributes:
        asked: number of requests by path.
        whole: number of GET requests by path that were answered in full.
        served: number of faults by kind.
        refusals: status of the only answer, by path.
    """

    daemon_threads = True

    def __init__(self, folder: Path, seed: int, num_faults: int):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.chance = random.Random(seed)
        self.num_faults = num_faults
        self.asked: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.refusals: dict[str, int] = {}
        self.guard = threading.Lock()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def fault(self, path: str) -> str:
        """Decides what goes wrong with a request; "" for nothing."""
        with self.guard:
            self.asked[path] += 1
            chosen = self.chance.choice(FAULTS) if self.asked[path] <= self.num_faults else ""
            self.served[chosen] += 1
            return chosen

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is expected here."""


class Handler(BaseHTTPRequestHandler):
    server: HostileServer

    def do_HEAD(self) -> None:
        self.answer(b"", with_body=False)

    def do_GET(self) -> None:
        self.answer(b"", with_body=True)

    def answer(self, body: bytes, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        file = self.server.folder / path.lstrip("/")
        fault = self.server.fault(path)
        if fault in ("503", "416") or path in self.server.refusals:
            self.send_error(self.server.refusals.get(path) or int(fault))
            return
        if file.is_dir():
            names = sorted(child.name for child in file.iterdir())
            body = "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode()
            self.send_whole(body, "text/html", with_body)
        elif fault == "html":
            self.send_whole(b"<html>try again later</html>", "text/html", with_body)
        elif not file.is_file():
            self.send_error(404)
        elif not with_body:
            self.send_whole(file.read_bytes(), "application/x-tar", with_body)
        else:
            self.send_file(path, file.read_bytes(), fault)

    def send_whole(self, body: bytes, kind: str, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def send_file(self, path: str, content: bytes, fault: str) -> None:
        half = content[: len(content) // 2]
        self.send_response(200)
        # "short" says that half is all; without a length ("endless", "flood") only closing ends the
        # answer.
        length = len(half) if fault == "short" else len(content)
        if fault not in ("endless", "flood"):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(half if fault else content)
        self.wfile.flush()
        while fault == "flood" and not self.server.closing.is_set():
            self.wfile.write(content)
        if fault == "stall":
            self.server.closing.wait(STALL_SECONDS)
        if not fault:
            with self.server.guard:
                self.server.whole[path] += 1

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path, seed: int = 0, num_faults: int = 0) -> Iterator[HostileServer]:
    """Runs a server; without faults it is an honest one."""
    server = HostileServer(folder, seed, num_faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
