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
    # For its just-in-time compiler and its scripts.
    ("usr/lib/x86_64-linux-gnu/libLLVM", "usr/lib/llvm", "usr/lib/x86_64-linux-gnu/perl"),
)
IMAGES = (WWW, POSTGRES)
