def socket_in(netns_fd: int, family: int, type: int, proto: int = 0) -> int:
    """A socket of another network namespace: its descriptor. The caller stays where it is.

    Raises:
        OSError: the namespace cannot be entered, or the socket not be made.
    """
