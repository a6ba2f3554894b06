"""What an app sees of itself and of its surroundings is the same after a sleep, to the letter.

Read by the app itself, by an exec of the app (/proc/1) and of itself, and from the host (the
limits of the container's cgroup). What is new after a restore, by design:

- the mount and the pid namespace, and on cgroup2 that of cgroups: they exist only while the
  container has processes. Their content is compared instead: the mounts, that the app is process 1,
  and its cgroup
- the app's time namespace: CRIU makes one in which the monotonic clock has stood still during the
  sleep, so that no timer fires for the time slept
- the device that masks files (/proc/keys): not the container's own /dev/null, and never the host's
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from lab import cgroups
from lab.pods import Container, Pod

from .conftest import MakePod
from .test_sleep import LONG

_OWN = ("ns/mnt", "ns/pid", "ns/pid_for_children")
_CLOCKS = ("ns/time", "ns/time_for_children")
_KEPT = ("ns/cgroup", "ns/ipc", "ns/net", "ns/user", "ns/uts")
_FILES = (
    *("attr/current", "cgroup", "coredump_filter", "cwd", "environ", "exe", "limits", "mountinfo"),
    *("oom_score_adj", "personality", "root", "status", "timerslack_ns"),
    *(*_KEPT, *_CLOCKS, *_OWN),
)
_STATUS = (
    *("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"),
    *("Seccomp_filters", "Uid", "Gid", "Groups", "Umask", "SigIgn", "SigCgt", "SigBlk"),
    *("Cpus_allowed_list", "Mems_allowed_list", "Speculation_Store_Bypass", "NStgid"),
)
_LIMITS = re.compile(
    r"memory\.(limit_in_bytes|soft_limit_in_bytes|memsw\.limit_in_bytes|oom_control|swappiness"
    r"|max|min|low|high|swap\.max|oom\.group)|cpu\.(shares|weight|max|cfs_\w+_us|idle)"
    r"|pids\.max|devices\.list|cpuset\.(cpus|mems)|hugetlb\..*(limit_in_bytes|max)"
)
_READ_ALL = """
for file in "$@"; do
    printf '\\1%s\\2' "${file#/proc/*/}"
    if [ -L "$file" ]; then readlink "$file"; else cat "$file" 2>&1; fi
done
true
"""

_ENV = {"QUOTED": "a b=c\n\"d\"'e'", "EMPTY": ""}

View = dict[str, Any]


def _views(pod: Pod) -> dict[str, View]:
    (app,) = pod.containers
    return {
        "app": _by_app(pod),
        "host": _by_host(app),
        "exec of the app": _by_exec(app, "1"),
        "exec of itself": _by_exec(app, "self"),
    }


def _by_app(pod: Pod) -> View:
    return _view({name: str(pod.get(f"/read?path=/proc/self/{name}")["text"]) for name in _FILES})


def _by_exec(container: Container, process: str) -> View:
    files = [f"/proc/{process}/{name}" for name in _FILES]
    said = container.exec("sh", "-c", _READ_ALL, "sh", *files)
    assert said.exit_code == 0, said.stderr
    pairs = (part.split("\2") for part in said.stdout.decode().split("\1")[1:])
    view = _view(dict(pairs))
    if process == "self":
        for name in ("NStgid", "exe"):  # of cat or readlink
            view.pop(name)
    return view


def _view(files: dict[str, str]) -> View:
    found: View = {name: text.strip() for name, text in files.items()}
    found["environ"] = sorted(files["environ"].strip("\0").split("\0"))
    found["mountinfo"] = sorted(map(_mount, files["mountinfo"].splitlines()))
    lines = dict(line.split(":", 1) for line in files["status"].splitlines())
    del found["status"]
    return found | {key: lines[key].split() for key in _STATUS}


def _mount(line: str) -> str:
    """A line of mountinfo, mount point first, without numbers of mounts, devices, peer groups."""
    mount, kind = line.split(" - ")
    _, _, _, root, point, options, *tags = mount.split()
    if root.endswith("/null"):
        return f"{point} is masked"
    return " ".join([point, root, options, *(tag.split(":")[0] for tag in tags), "-", kind])


def _by_host(container: Container) -> View:
    """Every limit of the container's cgroup, in every hierarchy."""
    found: View = {}
    for folder in container.cgroups():
        for file in folder.iterdir():
            if _LIMITS.fullmatch(file.name):
                found[str(file)] = file.read_text()
    return found


def _differences(before: View, after: View, new: set[str]) -> list[str]:
    """Readable lines; list values are compared item by item. ``new``: what need not be the same."""
    lines = []
    for name in sorted({*before, *after} - new):
        was, is_ = (_items(view.get(name)) for view in (before, after))
        lines += [f"{name}: was {item}" for item in was if item not in is_]
        lines += [f"{name}: is now {item}" for item in is_ if item not in was]
    return lines


def _is_own(views: dict[str, View], name: str) -> bool:
    """Whether a namespace is the container's own."""
    return bool(views["app"][name] != str(Path(f"/proc/self/{name}").readlink()))


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _mask_is_its_own(container: Container) -> None:
    """A file that is masked is a null device, and not the host's: its mode can be changed."""
    said = container.exec("stat", "-c", "%d:%i %F %t:%T", "/proc/keys").stdout.decode().strip()
    host = Path("/dev/null").stat()
    assert said.endswith(" character special file 1:3")
    assert not said.startswith(f"{host.st_dev}:{host.st_ino} ")


def _clock_stood_still(pod: Pod) -> None:
    offsets = str(pod.get("/read?path=/proc/self/timens_offsets")["text"])
    seconds, nanoseconds = map(int, re.findall(r"monotonic +(-?\d+) +(\d+)", offsets)[0])
    assert seconds * 1_000_000_000 + nanoseconds < 0, offsets


def _check_that_it_is_confined(views: dict[str, View]) -> None:
    """What is compared afterwards must not be the defaults of anything."""
    for view in (views["app"], views["exec of the app"], views["exec of itself"]):
        assert (view["NoNewPrivs"], view["Seccomp"]) == (["1"], ["2"])
        assert view["oom_score_adj"] == "700"
        (bounding,) = (int(digits, 16) for digits in view["CapBnd"])
        assert bounding and not bounding & (1 << 13 | 1 << 27)
        assert {f"{key}={value}" for key, value in _ENV.items()} <= set(view["environ"])
        points = {line.split()[0] for line in view["mountinfo"]}
        assert {"/proc/sys", "/proc/timer_list"} <= points  # read-only and masked
    if cgroups.has_controllers():
        assert {f"{300 << 20}\n", "150000\n"} <= set(views["host"].values())


@pytest.mark.parametrize("handler", ["zeropod", "zeropod-by-path"])
def test_the_inside_is_the_same_after_a_sleep(make_pod: MakePod, handler: str) -> None:
    pod = make_pod(
        "stateful",
        LONG,
        handler=handler,
        env=_ENV,
        memory_limit=300 << 20,
        cpu_quota_us=150_000,
        oom_score_adj=700,
        no_new_privs=True,
        drop_capabilities=["NET_RAW", "MKNOD"],
    )
    (app,) = pod.containers
    boot_id = pod.get()["boot_id"]
    before = _views(pod)
    _check_that_it_is_confined(before)
    own = [*_OWN, *(["ns/cgroup"] if _is_own(before, "ns/cgroup") else [])]
    for _ in range(2):
        app.wait_asleep()
        assert pod.get()["boot_id"] == boot_id
        after = _views(pod)
        for name, view in after.items():
            differences = _differences(before[name], view, {*own, *_CLOCKS})
            assert not differences, "\n".join([name, *differences])
        for name in own:
            inode = after["app"][name]
            assert inode == after["exec of the app"][name] == after["exec of itself"][name]
            assert _is_own(after, name), "the host's"
        for name in _CLOCKS:
            inode = after["app"][name]
            assert inode == after["exec of the app"][name] == after["exec of itself"][name]
        _clock_stood_still(pod)
        assert after["app"]["NStgid"] == ["1"]
        _mask_is_its_own(app)
