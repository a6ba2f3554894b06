#!/bin/sh
# Make cri_pb2.py and cri_pb2.pyi from cri.proto, with the grpcio-tools and mypy-protobuf of .venv.
set -eu
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
exec python -m grpc_tools.protoc -I . --python_out=. --mypy_out=. lab/proto/cri.proto
