"""An app that keeps its connections: each line is answered with "<boot id> <count>\\n"."""

import secrets
import selectors
import socket

BOOT = secrets.token_hex(8)
count = 0
poll = selectors.DefaultSelector()
listener = socket.create_server(("", 8080), backlog=4096)
poll.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in poll.select():
        if key.fileobj is listener:
            poll.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        made = key.fileobj
        try:
            data = made.recv(4096)
            if data:
                count += 1
                made.sendall(f"{BOOT} {count}\n".encode())
                continue
        except OSError:
            pass
        poll.unregister(made)
        made.close()
