"""An app that does what it is told, in one memory: for tests of what a sleep does to that."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.pods import Container, Pod

from .conftest import MakePod

IDLE = {"scaledown-duration": "3s"}
"""Long enough for an answer on a busy machine."""

# POST /: runs the body, and answers with what its last expression was. Everything is kept.
SOURCE = """
import ast, sys
sys.path.insert(0, "/app")
import stateful
MEMORY = {"__name__": "told"}
class Http(stateful.Http):
    def do_POST(self):
        told = ast.parse(self.rfile.read(int(self.headers["Content-Length"])))
        *rest, last = told.body
        exec(compile(ast.Module(rest, []), "told", "exec"), MEMORY)
        value = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "told", "eval"), MEMORY)
        else:
            exec(compile(ast.Module([last], []), "told", "exec"), MEMORY)
        self._reply(200, stateful.STATE.add("told"), value=repr(value))
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
        assert (found["boot_id"], found["count"]) == (self.boot_id, self.count), found
        return ast.literal_eval(str(found["value"]))

    def sleep(self) -> Container:
        """Returns when it sleeps and its images are sealed."""
        self.container.wait_asleep()
        self.container.images()
        return self.container
