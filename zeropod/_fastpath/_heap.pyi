def immortalize(roots: list[object]) -> int:
    """Make these objects and all that they refer to immortal: never counted, never freed.

    The list itself is left out.

    Returns:
        How many objects became immortal; 0 on Python 3.11, which has no such thing.

    Raises:
        MemoryError: some of them may be immortal by then, which harms nothing.
    """

def fill() -> None:
    """Fill the holes of the heap for ever, so that what is made next lies on pages of its own."""

def forget_names() -> None:
    """Empty the interpreter's cache of looked-up attributes, which owns the names in it."""

def release(large: object) -> None:
    """Give back what is held and not needed, before a long sleep: a millisecond at most.

    ``large``: an object that was made of zeros, most of which were never used; its zero pages are
    given back too. No other thread may write to it meanwhile.
    """
