"""A zp_command whose strings live as long as it does."""

from libc.stdlib cimport calloc, free

import os

cdef unsigned long _open_files = 0


def set_open_files(unsigned long soft_limit):
    global _open_files
    _open_files = soft_limit


cdef class Command:
    def __cinit__(self, argv, env, cwd, stdio, setns):
        if not argv:
            raise ValueError("argv is empty")
        if len(setns) > 8:
            raise ValueError("more than 8 namespaces")
        self._keep = []
        self.c.argv = self._strings(argv)
        self.c.envp = self._strings([f"{key}={value}" for key, value in env.items()])
        directory = os.fsencode(cwd)
        self._keep.append(directory)
        self.c.cwd = directory
        for i in range(3):
            self.c.stdio[i] = stdio[i]
        for i, fd in enumerate(setns):
            self._setns[i] = fd
        self.c.setns = self._setns
        self.c.setns_count = len(setns)
        self.c.open_files = _open_files

    def __dealloc__(self):
        free(<void *>self.c.argv)
        free(<void *>self.c.envp)

    cdef char **_strings(self, items) except NULL:
        cdef char **strings = <char **>calloc(len(items) + 1, sizeof(char *))
        if strings == NULL:
            raise MemoryError
        for i, item in enumerate(items):
            encoded = os.fsencode(item)
            if b"\0" in encoded:
                free(strings)
                raise ValueError("embedded null byte")
            self._keep.append(encoded)
            strings[i] = encoded
        return strings
