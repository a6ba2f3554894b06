"""The app that a fake restore brings: app.py MODE PORTS BACKLOG READY STARTS.

It appends a byte to STARTS, listens on all ports, creates READY and serves one connection after
another, or (sink, banner, smtp, mysql) each in a thread of its own:

http     answers a request with the client's address and the length of the body
sink     reads to end of file, answers with length and hash
banner   speaks first, then echoes a line
smtp     greets, takes one mail, answers with its size
mysql    greets, takes a login and a query, answers with the query
reset    reads a byte, then resets
late     http, but listens half a second after READY
udp      sends each datagram back, from the address that it came to
"""

import hashlib
import os
import socket
import struct
import sys
import threading

MODE, PORTS, BACKLOG, READY, STARTS = sys.argv[1:]


def http(made, peer):
    request = made.makefile("rb")
    length = 0
    while (line := request.readline()) not in (b"\r\n", b""):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body = request.read(length)
    text = f"{peer[0]} {len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    made.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))


def sink(made, peer):
    digest, length = hashlib.sha256(), 0
    while piece := made.recv(1 << 16):
        digest.update(piece)
        length += len(piece)
    made.sendall(f"{length} {digest.hexdigest()}".encode())


def banner(made, peer):
    made.sendall(b"220 ready\r\n")
    made.sendall(made.makefile("rb").readline())


def smtp(made, peer):
    lines = made.makefile("rb")
    made.sendall(b"220 app ESMTP\r\n")
    while line := lines.readline():
        verb = line[:4].upper()
        if verb == b"DATA":
            made.sendall(b"354 go on\r\n")
            mail = b"".join(iter(lines.readline, b".\r\n"))
            made.sendall(b"250 %d bytes\r\n" % len(mail))
        elif verb == b"EHLO":
            made.sendall(b"250-app\r\n250 8BITMIME\r\n")
        elif verb == b"QUIT":
            made.sendall(b"221 bye\r\n")
            return
        else:
            made.sendall(b"250 ok\r\n")


def mysql(made, peer):
    stream = made.makefile("rb")

    def write(number, data):
        made.sendall(len(data).to_bytes(3, "little") + bytes([number]) + data)

    def read():
        head = stream.read(4)
        return stream.read(int.from_bytes(head[:3], "little"))

    write(0, b"\x0a8.0.0-app\0" + bytes(32))
    read()
    write(2, bytes(7))
    write(1, read())


def reset(made, peer):
    made.recv(1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def echo(port):
    made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    made.bind(("::", port))
    touch(READY)
    while True:
        data, control, _, peer = made.recvmsg(65536, 256)
        info = [part for part in control if part[1] == socket.IPV6_PKTINFO]
        made.sendmsg([data], info, 0, peer)


SERVE = {
    "http": http,
    "late": http,
    "sink": sink,
    "banner": banner,
    "smtp": smtp,
    "mysql": mysql,
    "reset": reset,
}.get(MODE)


def serve(made, peer):
    with made:
        SERVE(made, peer)


def accept(listener):
    while True:
        made, peer = listener.accept()
        if MODE in ("http", "late"):
            serve(made, peer)
        else:
            threading.Thread(target=serve, args=(made, peer), daemon=True).start()


def listen(port):
    made = socket.socket(socket.AF_INET6)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    made.bind(("::", port))
    made.listen(int(BACKLOG))
    return made


def touch(path):
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


with open(STARTS, "ab") as starts:  # noqa: PTH123 - it starts faster without pathlib
    starts.write(b".")
if MODE == "udp":
    echo(int(PORTS))
if MODE == "late":
    touch(READY)
    threading.Event().wait(0.5)
listeners = [listen(int(port)) for port in PORTS.split(",")]
touch(READY)
for listener in listeners[1:]:
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
accept(listeners[0])
