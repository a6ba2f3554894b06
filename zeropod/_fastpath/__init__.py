"""Cython types over the C library in csrc/: they convert, call and convert back, no more."""
