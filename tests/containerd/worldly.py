"""An app that does what it is told, in one memory: for tests of what a sleep does to that."""

from __future__ import annotations

import ast
import asyncio
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab import waiting
from lab.pods import Container, Pod
from zeropod.api import shim_pb2 as pb
from zeropod.task.status import SERVICE, SOCKET_ROOT
from zeropod.ttrpc import Client

from .conftest import MakePod

IDLE = {"scaledown-duration": "3s"}
"""Long enough for an answer on a busy machine."""

# POST /: runs the body, and answers with what its last expression was. Everything is kept.
SOURCE = """
import ast, sys, traceback
sys.path.insert(0, "/app")
import stateful
MEMORY = {"__name__": "told"}
def run(code):
    *rest, last = ast.parse(code).body
    if not isinstance(last, ast.Expr):
        rest, last = [*rest, last], ast.parse("None").body[0]
    exec(compile(ast.Module(rest, []), "told", "exec"), MEMORY)
    return eval(compile(ast.Expression(last.value), "told", "eval"), MEMORY)
class Http(stateful.Http):
    def do_POST(self):
        code = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            more = {"value": repr(run(code))}
        except Exception:
            more = {"error": traceback.format_exc()}
        self._reply(200, stateful.STATE.add("told"), **more)
stateful.Http = Http
stateful.main()
"""


class Told:
    """The app and its oracle: every answer comes from the same memory, one count further."""

    def __init__(
        self,
        make_pod: MakePod,
        mounts: Mapping[str, Path] | None = None,
        annotations: Mapping[str, str] = IDLE,
        **spec: Any,
    ) -> None:
        command = ["/usr/bin/python3", "-u", "-c", SOURCE]
        self.pod: Pod = make_pod(
            "stateful", annotations, command=command, mounts=mounts or {}, **spec
        )
        (self.container,) = self.pod.containers
        first = self.pod.get()
        self.boot_id, self.count = first["boot_id"], int(str(first["count"]))

    def do(self, code: str) -> Any:
        """Run ``code``. Returns the value of its last expression, a literal."""
        body = textwrap.dedent(code).encode()
        reply = self.pod.request(method="POST", body=body, timeout=60)
        assert reply.status == 200, reply
        found = reply.json()
        self.count += 1
        assert "error" not in found, found["error"]
        assert (found["boot_id"], found["count"]) == (self.boot_id, self.count), found
        return ast.literal_eval(str(found["value"]))

    def sleep(self) -> Container:
        """Returns when it sleeps and its images are sealed."""
        self.container.wait_asleep()
        self.container.images()
        return self.container

    def wait_until_awake_because(self, words: str) -> None:
        """Returns when its status says that it does not sleep because of that."""
        waiting.until(words, lambda: words in asyncio.run(self._status()).reason, 120)

    async def _status(self) -> pb.ContainerStatus:
        (path,) = self.pod.node.path(SOCKET_ROOT).iterdir()
        client = await Client.connect(str(path))
        try:
            request = pb.ContainerRequest(id=self.container.id)
            return await client.call(SERVICE, "GetStatus", request, pb.ContainerStatus)
        finally:
            client.close()
