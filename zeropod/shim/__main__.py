"""What the launcher executes: ``zygote <socket>``, or ``invoke``: one request on descriptor 3."""

import socket
import sys
from pathlib import Path

from zeropod.shim import main, process, zygote
from zeropod.shim.assemble import serve


def _run() -> int:
    process.prepare()
    if sys.argv[1:2] == ["zygote"]:
        zygote.main(Path(sys.argv[2]), serve)
        return 0
    if sys.argv[1:2] == ["invoke"]:
        return main.run(socket.socket(fileno=3), serve)
    print("the launcher containerd-shim-zeropod-v2 runs this", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(_run())
