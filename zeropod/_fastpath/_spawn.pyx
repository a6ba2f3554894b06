from zeropod._fastpath._command cimport Command, zp_spawn

import os


def spawn(argv, *, env, cwd="/", stdio=(-1, -1, -1), setns=()):
    cdef Command command = Command(argv, env, cwd, stdio, setns)
    cdef int pid = 0
    cdef int r
    with nogil:
        r = zp_spawn(&command.c, &pid)
    if r < 0:
        raise OSError(-r, os.strerror(-r), argv[0])
    return pid
