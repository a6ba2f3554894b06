"""Every exception that zeropod raises on purpose, and the status code each one has on the wire.

One table for the whole product: a layer raises the type that says what happened, the task service
turns it into a ttrpc status by its ``code`` and never by its text. The codes are gRPC's
(google.rpc.Code), which is what containerd's errdefs compares.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class Code(IntEnum):
    """google.rpc.Code."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ZeropodError(Exception):
    """Base of all. The text is shown to users: it names the thing, the cause and the remedy."""

    code: ClassVar[Code] = Code.UNKNOWN


class InvalidArgument(ZeropodError):
    """A value from outside that cannot be right, whatever the state."""

    code = Code.INVALID_ARGUMENT


class AnnotationError(InvalidArgument):
    """A malformed annotation: names the annotation, its value and the expected form."""

    def __init__(self, key: str, value: str, expected: str) -> None:
        super().__init__(f"annotation {key}: {value!r} is not valid, expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


class NotFound(ZeropodError):
    """A container, exec or process that does not exist, or does no longer."""

    code = Code.NOT_FOUND


class AlreadyExists(ZeropodError):
    """An id that is taken."""

    code = Code.ALREADY_EXISTS


class FailedPrecondition(ZeropodError):
    """Right in itself, but not in the present state."""

    code = Code.FAILED_PRECONDITION


class IllegalTransition(FailedPrecondition):
    """A verb that the state table has no move for: "cannot exec in a stopped container <id>"."""


class DeadlineExceeded(ZeropodError):
    """Something did not end within its bound, and what it left was cleaned up."""

    code = Code.DEADLINE_EXCEEDED


class Unavailable(ZeropodError):
    """The peer is gone or going; trying again may help."""

    code = Code.UNAVAILABLE


class Unimplemented(ZeropodError):
    """A verb that this version does not have."""

    code = Code.UNIMPLEMENTED


class ResourceExhausted(ZeropodError):
    """A bound was reached that protects the shim."""

    code = Code.RESOURCE_EXHAUSTED


class Internal(ZeropodError):
    """An invariant of our own is broken."""

    code = Code.INTERNAL


class RuntimeFailed(ZeropodError):
    """The OCI runtime said no: "runc create <id>: <its last message>"."""


class ActivatorError(ZeropodError):
    """The native activator or its BPF object cannot be set up here; the container runs unscaled."""


class CheckpointFailed(ZeropodError):
    """A scale-down that did not happen. The app runs on unharmed.

    ``log_tail`` holds the last lines of CRIU's log, oldest first, at most 20.
    """

    def __init__(self, message: str, log_tail: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log_tail = log_tail


class ImageCorrupt(ZeropodError):
    """Checkpoint images that do not match their manifest: they are not restored."""


class RestoreFailed(ZeropodError):
    """A wake-up that failed.

    ``retryable`` is true only where it is proved that no instruction of the app ran: then, and only
    then, the same images may be tried once more.
    """

    def __init__(
        self, message: str, *, retryable: bool = False, log_tail: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.log_tail = log_tail


def with_log(error: Exception) -> str:
    """Its text, and below it the last lines of CRIU's log where it has them."""
    tail = getattr(error, "log_tail", ())
    return f"{error}" + "".join(f"\n  criu: {line}" for line in tail)
