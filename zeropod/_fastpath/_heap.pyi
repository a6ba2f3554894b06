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
