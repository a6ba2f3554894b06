"""An OCI runtime without isolation: runc's command line, real processes, no root.

In the bundle, `fail-<verb>` holds what a verb shall fail with, and `hold-<verb>` is a FIFO that it
reads to the end before it begins, `hold-after-<verb>` one when its work is done. `calls` gets a
line per run: the verb and what follows it.
"""

import fcntl
import json
import os
import signal
import socket
import sys
import termios
from pathlib import Path

VALUES = {
    *("--root", "--log", "--log-format", "--bundle", "--pid-file", "--process"),
    *("--console-socket", "--resources", "--image-path", "--work-path", "--parent-path"),
}


def parse() -> tuple[dict[str, str], list[str]]:
    options: dict[str, str] = {}
    words: list[str] = []
    given = iter(sys.argv[1:])
    for word in given:
        if word in VALUES:
            options[word] = next(given)
        elif word.startswith("--"):
            options[word] = ""
        else:
            words.append(word)
    return options, words


OPTIONS, (VERB, ID, *REST) = parse()
BUNDLE = Path.cwd()
STATE = Path(OPTIONS["--root"]) / ID


for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):  # ignored where we run in background
    signal.signal(number, signal.SIG_DFL)


def refuse(text: str) -> None:
    Path(OPTIONS["--log"]).write_text(json.dumps({"level": "error", "msg": text}) + "\n")
    sys.exit(1)


def terminal(master: int) -> None:
    """Send the master side as runc does."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(OPTIONS["--console-socket"])
        socket.send_fds(connection, [b"/dev/ptmx"], [master])


def process(args: list[str], gate: Path | None = None) -> int:
    master, slave = os.openpty() if "--console-socket" in OPTIONS else (-1, -1)
    pid = os.fork()
    if pid:
        if master >= 0:
            terminal(master)
        Path(OPTIONS["--pid-file"]).write_text(str(pid))
        return pid
    try:
        os.setsid()
        if slave >= 0:
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(slave, fd)
            os.close(slave)
            os.close(master)
        if gate:
            gate.read_text()
        os.execvp(args[0], args)
    finally:
        os._exit(127)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def pids() -> list[int]:
    """Init's, then the others'."""
    return [int(line) for line in (STATE / "pids").read_text().split()]


def create() -> None:
    STATE.mkdir(parents=True)
    gate = None
    if VERB == "create":
        os.mkfifo(gate := STATE / "gate")
    config = json.loads((BUNDLE / "config.json").read_text())
    (STATE / "pids").write_text(f"{process(config['process']['args'], gate)}\n")


def restore() -> None:
    """The images are one file, `args`; what is in `broken` is CRIU's log."""
    images = Path(OPTIONS["--image-path"])
    if (broken := images / "broken").exists():
        (work := Path(OPTIONS["--work-path"])).mkdir(exist_ok=True)
        (work / "restore.log").write_text(broken.read_text())
        refuse("criu failed: type NOTIFY errno 0")
    STATE.mkdir(parents=True)
    (STATE / "pids").write_text(f"{process(json.loads((images / 'args').read_text()))}\n")


def start() -> None:
    (STATE / "gate").write_text("")


def exec() -> None:
    pid = process(json.loads(Path(OPTIONS["--process"]).read_text())["args"])
    with (STATE / "pids").open("a") as file:
        file.write(f"{pid}\n")


def kill() -> None:
    wanted = pids() if "--all" in OPTIONS else pids()[:1]
    living = [pid for pid in wanted if alive(pid)]
    if not living:
        refuse("container not running")
    for pid in living:
        os.kill(pid, int(REST[0]))


def pause() -> None:
    for pid in pids():
        os.kill(pid, signal.SIGSTOP)


def resume() -> None:
    for pid in pids():
        if alive(pid):
            os.kill(pid, signal.SIGCONT)


def update() -> None:
    (BUNDLE / "updates").open("a").write(Path(OPTIONS["--resources"]).read_text() + "\n")


def delete() -> None:
    for pid in pids():
        if alive(pid) and "--force" not in OPTIONS:
            refuse(f"cannot delete container {ID} that is not stopped: process {pid} lives")
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    for file in STATE.iterdir():
        file.unlink()
    STATE.rmdir()


with (BUNDLE / "calls").open("a") as calls:
    extra = sorted(OPTIONS.keys() - VALUES)
    calls.write(" ".join([VERB, *extra, *REST]) + "\n")
if (hold := BUNDLE / f"hold-{VERB}").exists():
    hold.read_text()
if (fail := BUNDLE / f"fail-{VERB}").exists():
    refuse(fail.read_text())
if VERB not in ("create", "restore") and not STATE.exists():
    refuse("container does not exist")
globals()[VERB]()
if (hold := BUNDLE / f"hold-after-{VERB}").exists():
    hold.read_text()
