"""The container images of the lab, made from Debian packages and a few files of our own.

``pause`` is one static C program; the others are packages unpacked by mmdebstrap without running
their scripts, and what those scripts would have made: /etc/passwd and the folders of a root.
"""

from __future__ import annotations

import platform
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab import paths
from lab.debian import KEYRING, mirror, own_codename
from lab.oci import Config, add_file, add_folder, copy_layer, write_archive
from lab.steps import fingerprint, is_made, making, run, timed

_SOURCES = paths.SOURCES / "images"
_DROPPED = ("usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "dev/")
_FOLDERS = ("dev", "proc", "sys", "run", "var/log/nginx", "var/lib/nginx", "root")
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class Image:
    """An image: its packages, the files of ours in it (path → file in lab/images), its command.

    ``users``: with a group of the same name and number. ``dropped``: the begin of paths that it
    does without.
    """

    name: str
    config: Config
    packages: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"localhost/{self.name}:lab"

    @property
    def archive(self) -> Path:
        return paths.IMAGES / self.name / "image.tar"


PAUSE = Image("pause", Config(["/pause"]))
NGINX = Image(
    "nginx",
    Config(["/usr/sbin/nginx", "-c", "/etc/nginx/lab.conf"], stop_signal="SIGQUIT"),
    ("nginx-light", "dash", "coreutils"),
    {"etc/nginx/lab.conf": "nginx.conf"},
)
STATEFUL = Image(
    "stateful",
    Config(["/usr/bin/python3", "-u", "/app/stateful.py"]),
    ("python3", "dash", "coreutils"),
    {"app/stateful.py": "stateful.py"},
)
IMAGES = (PAUSE, NGINX, STATEFUL)


def build(images: Sequence[Image] = IMAGES) -> None:
    """Make the images that are not there or whose sources changed."""
    for image in images:
        sources = [_SOURCES / name for name in (*image.files.values(), "pause.c")]
        made_from = fingerprint([repr(image), *sources, Path(__file__), paths.SOURCES / "oci.py"])
        target = image.archive.parent
        if is_made(target, made_from):
            continue
        with timed(f"image {image.name}"), making(target, made_from) as part:
            layer = part / "layer.tar"
            if image.packages:
                _from_packages(image, part, layer)
            else:
                _pause(part, layer)
            write_archive(part / image.archive.name, image.reference, layer, image.config, _arch())
            layer.unlink()


def _pause(part: Path, layer: Path) -> None:
    run(["cc", "-Os", "-static", "-s", "-o", part / "pause", _SOURCES / "pause.c"])
    with tarfile.open(layer, "w") as tar:
        add_file(tar, "pause", (part / "pause").read_bytes(), 0o755)
    (part / "pause").unlink()


def _from_packages(image: Image, part: Path, layer: Path) -> None:
    packages = part / "packages.tar"
    source = f"deb [signed-by={KEYRING}] {mirror()} {own_codename()} main"
    run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=extract"),
            *(f"--include={','.join(image.packages)}", own_codename(), packages, source),
        ]
    )
    with tarfile.open(layer, "w") as tar:
        dropped = (*_DROPPED, *image.dropped)
        copy_layer(packages, tar, lambda name: not name.startswith(dropped))
        for folder in _FOLDERS:
            add_folder(tar, folder)
        add_folder(tar, "tmp", 0o1777)
        users = image.users.items()
        passwd = "".join(f"{name}:x:{id}:{id}::/tmp:/bin/sh\n" for name, id in users)
        add_file(tar, "etc/passwd", _PASSWD + passwd.encode())
        group = "".join(f"{name}:x:{id}:\n" for name, id in users)
        add_file(tar, "etc/group", _GROUP + group.encode())
        for path, name in image.files.items():
            add_file(tar, path, (_SOURCES / name).read_bytes())
    packages.unlink()


def _arch() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
