"""An app whose memory matters: whoever restores it wrongly is found out.

Port 8080 speaks HTTP. Every request but /peek adds one to a counter and writes one numbered line
to stdout; replies are JSON and name the boot id, which is drawn once per start of the process.

  GET /                  {boot_id, count, client}
  GET /peek              the same, without counting or logging
  GET /slow?seconds=8    the same, after that time
  GET /allocate?mb=64    keeps that much random memory from now on; 0 gives it back
  GET /token?name=x      creates the file x, once for ever, in $TOKENS: 201, or 409 if it is there
  GET /exit?code=3       ends the process
  GET /read?path=/proc/self/status
                         {…, text}: the file, the target of the link, or why it cannot be read;
                         neither counts nor logs
  POST, PUT anything     {…, size, sha256} of the body

Port 8081 speaks first: ``stateful <boot id>``, then echoes. Port 8082 reads to the end of the
stream, then answers with size and sha256 as JSON and closes.

With $UDP set to a port, each datagram there is answered as GET / is.

With $TICKS set to a directory, a thread creates the files 0, 1, 2, … exclusively in <boot id>
there, one every 2 ms. A file that exists already means that the same instructions ran twice, from
the same images: ``doubled`` beside the folders says so, for ever.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import socketserver
import sys
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BOOT_ID = secrets.token_hex(8)
BACKLOG = 4096


class State:
    """The memory that has to survive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0
        self.ballast = b""

    def add(self, line: str) -> int:
        with self._lock:
            self.count += 1
            sys.stdout.write(f"request {self.count} {line}\n")
            sys.stdout.flush()
            return self.count


STATE = State()


def _summary(digest: hashlib._Hash, size: int) -> dict[str, object]:
    return {"size": size, "sha256": digest.hexdigest()}


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # the whole reply in one segment
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path == "/peek":
            self._reply(200, STATE.count)
            return
        if url.path == "/read":
            self._reply(200, STATE.count, text=_read(Path(query["path"])))
            return
        count = STATE.add(f"GET {self.path} from {self._client()}")
        status = 200
        if url.path == "/slow":
            threading.Event().wait(float(query["seconds"]))
        elif url.path == "/allocate":
            STATE.ballast = b""
            STATE.ballast = os.urandom(int(query["mb"]) << 20)
        elif url.path == "/token":
            status = 201 if _create(Path(os.environ["TOKENS"]) / query["name"]) else 409
        elif url.path == "/exit":
            os._exit(int(query["code"]))
        elif url.path != "/":
            status = 404
        self._reply(status, count)

    def do_POST(self) -> None:
        left = int(self.headers.get("Content-Length", "0"))
        digest, size = hashlib.sha256(), 0
        while left and (data := self.rfile.read(min(left, 1 << 16))):
            digest.update(data)
            size += len(data)
            left -= len(data)
        count = STATE.add(f"{self.command} {self.path} {size} bytes from {self._client()}")
        self._reply(200, count, **_summary(digest, size))

    do_PUT = do_POST

    def _client(self) -> str:
        return str(self.client_address[0]).removeprefix("::ffff:")

    def _reply(self, status: int, count: int, **more: object) -> None:
        reply = {"boot_id": BOOT_ID, "count": count, "client": self._client(), **more}
        body = json.dumps(reply).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the counted line is the log."""


class SpeaksFirst(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(f"stateful {BOOT_ID}\n".encode())
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class ReadsToEnd(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        digest, size = hashlib.sha256(), 0
        while data := self.request.recv(1 << 16):
            digest.update(data)
            size += len(data)
        reply = {"boot_id": BOOT_ID, **_summary(digest, size)}
        self.request.sendall(json.dumps(reply).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    """One listener for both address families."""

    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = BACKLOG

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is none of our business; a bug is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _read(path: Path) -> str:
    try:
        return str(path.readlink()) if path.is_symlink() else path.read_text()
    except OSError as error:
        return str(error.strerror)


def _create(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    except FileExistsError:
        return False
    return True


def _tick(folder: Path) -> None:
    number, pause = 0, threading.Event()
    (folder / BOOT_ID).mkdir()
    while True:
        if not _create(folder / BOOT_ID / str(number)):
            _create(folder / "doubled")
        number += 1
        pause.wait(0.002)


def _datagrams(port: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as made:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind(("::", port))
        while True:
            data, client = made.recvfrom(1 << 16)
            address = client[0].removeprefix("::ffff:")
            count = STATE.add(f"{len(data)} bytes from {address}")
            reply = {"boot_id": BOOT_ID, "count": count, "client": address}
            made.sendto(json.dumps(reply).encode(), client)


def _terminate(signo: int, frame: object) -> None:
    os.write(1, f"terminated at {STATE.count}\n".encode())
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    threading.stack_size(256 << 10)
    sys.stdout.write(f"boot {BOOT_ID}\n")
    sys.stdout.flush()
    for port, handler in ((8080, Http), (8081, SpeaksFirst), (8082, ReadsToEnd)):
        server = Server(("::", port), handler)
        threading.Thread(target=server.serve_forever, args=(3600,), daemon=True).start()
    if udp := os.environ.get("UDP"):
        threading.Thread(target=_datagrams, args=(int(udp),), daemon=True).start()
    if folder := os.environ.get("TICKS"):
        threading.Thread(target=_tick, args=(Path(folder),), daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
