"""The apps of several users, which need CAP_SYS_RESOURCE to be dumped."""

from __future__ import annotations

from lab.container_images import Image
from lab.oci import Config

WWW = Image(
    "www",
    Config(["/usr/sbin/nginx", "-c", "/etc/nginx/lab.conf"], stop_signal="SIGQUIT"),
    ("nginx-light", "dash", "coreutils"),
    {"etc/nginx/lab.conf": "www.conf"},
    {"www-data": 33},
)
POSTGRES = Image(
    "postgres",
    Config(["/bin/sh", "/app/postgres.sh"], stop_signal="SIGINT", user="999:999"),
    ("postgresql-15", "dash", "coreutils"),
    {"app/postgres.sh": "postgres.sh", "app/hba.conf": "hba.conf"},
    {"postgres": 999},
    # For its just-in-time compiler, its scripts, and locales that are not made.
    (
        *("usr/lib/x86_64-linux-gnu/libLLVM", "usr/lib/x86_64-linux-gnu/libz3", "usr/lib/llvm"),
        *("usr/lib/postgresql/15/lib/bitcode/", "usr/lib/x86_64-linux-gnu/perl"),
        *("usr/share/perl", "usr/share/i18n/"),
    ),
)
IMAGES = (WWW, POSTGRES)
