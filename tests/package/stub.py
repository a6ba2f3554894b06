"""In place of zeropod.shim.assemble: a shim without containers, which accepts and hangs up."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any


def serve(shim: Any, ready: Callable[[], None]) -> None:
    """Serve until a connection says quit.

    STUB=fail: break before that; STUB=environ: and say what a runtime would find in its
    environment; STUB=hang: never answer.
    """
    mode = os.environ.get("STUB", "")
    if mode == "fail":
        raise RuntimeError("it does not work")
    if mode == "environ":
        found = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        raise RuntimeError(" ".join(found.splitlines()))
    if mode != "hang":
        ready()
    while True:
        connection, _ = shim.socket.listening.accept()
        with connection:
            if connection.recv(16) == b"quit":
                return


stub = types.ModuleType("zeropod.shim.assemble")
stub.serve = serve  # type: ignore[attr-defined]
sys.modules[stub.__name__] = stub
