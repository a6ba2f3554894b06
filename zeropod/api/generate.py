"""Generates the modules of this package from proto/zeropod/api/*.proto.

`python -m zeropod.api.generate` writes beside itself; with a folder as its argument it writes
there, which is how the tests compare. Needs grpcio-tools and mypy-protobuf (requirements-dev.txt).
"""

from __future__ import annotations

import sys
from importlib import import_module, resources
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def generate(target: Path) -> None:
    """Write <target>/zeropod/api/*_pb2.py and .pyi. Raises SystemExit with protoc's status."""
    protoc = import_module("grpc_tools.protoc")
    sources = sorted(str(path) for path in (_ROOT / "proto/zeropod/api").glob("*.proto"))
    plugin = Path(sys.executable).with_name("protoc-gen-mypy")
    with resources.as_file(resources.files("grpc_tools") / "_proto") as well_known:
        status = protoc.main(
            [
                "protoc",
                f"-I{_ROOT / 'proto'}",
                f"-I{well_known}",
                f"--plugin=protoc-gen-mypy={plugin}",
                f"--python_out={target}",
                f"--mypy_out=quiet:{target}",
                *sources,
            ]
        )
    if status:
        sys.exit(status)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else _ROOT)
