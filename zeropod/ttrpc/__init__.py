"""ttrpc, containerd's small RPC: sans-IO frames and streams, an asyncio server and client."""

from zeropod.ttrpc.client import Client, RemoteError
from zeropod.ttrpc.server import Handler, Method, Server

__all__ = ["Client", "Handler", "Method", "RemoteError", "Server"]
