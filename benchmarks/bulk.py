"""The app that `splice` measures with, in a container: bulk.py PORT.

To each connection it says its boot id and whom it sees; then it does as it is told, a letter and a
length of 8 bytes at a time: s, send so many bytes; r, read so many and answer a byte.
"""

import secrets
import socket
import struct
import sys
import threading

BOOT_ID = secrets.token_hex(8)
PIECE = memoryview(bytes(1 << 18))


def serve(made: socket.socket, peer: tuple[str, int]) -> None:
    room = bytearray(len(PIECE))
    with made:
        made.sendall(f"{BOOT_ID} {peer[0]}\n".encode())
        while command := made.recv(9, socket.MSG_WAITALL):
            left = struct.unpack(">xQ", command)[0]
            if command[:1] == b"s":
                while left:
                    left -= made.send(PIECE[:left])
                continue
            while left:
                left -= made.recv_into(room, min(left, len(room)))
            made.sendall(b".")


listener = socket.create_server(("", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=listener.accept(), daemon=True).start()
