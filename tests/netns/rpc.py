"""A real gRPC server that counts in its memory, and a real client.

rpc.py serve PORT READY STARTS   /test.Counter/Next answers "<boot id> <count> <the client>",
                                 /grpc.health.v1.Health/Check SERVING, and counts, too
rpc.py call HOST PORT PATH...    calls them one after another over one connection, prints what each
                                 answers in hex, or its status; ends with 1 when one has failed
"""

import os
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

BOOT = uuid.uuid4().hex
COUNT = 0


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        answers = {"/test.Counter/Next": next_, "/grpc.health.v1.Health/Check": check}
        if answer := answers.get(details.method):
            return grpc.unary_unary_rpc_method_handler(answer)
        return None


def next_(request, context):
    global COUNT
    COUNT += 1
    return f"{BOOT} {COUNT} {context.peer()}".encode()


def check(request, context):
    global COUNT
    COUNT += 1
    return b"\x08\x01"


def serve(port, ready, starts):
    with Path(starts).open("ab") as file:
        file.write(b".")
    server = grpc.server(ThreadPoolExecutor(2), handlers=[Service()])
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    os.close(os.open(ready, os.O_WRONLY | os.O_CREAT))
    server.wait_for_termination()


def call(host, port, *paths):
    """By address: nothing is looked up. A call that fails is not tried again."""
    target = f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
    with grpc.insecure_channel(target, [("grpc.enable_retries", 0)]) as channel:
        for path in paths:
            try:
                print(channel.unary_unary(path)(b"", timeout=60).hex(), flush=True)
            except grpc.RpcError as error:
                sys.exit(f"{path}: {error.code()}: {error.details()}")


{"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
