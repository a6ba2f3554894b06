cdef extern from "heap.h":
    Py_ssize_t zp_heap_immortalize(object roots) except -1
    void zp_heap_fill_arenas()
    void zp_heap_fill_malloc()

cdef extern from "Python.h":
    unsigned int PyType_ClearCache()

cdef extern from "rest.h":
    void zp_rest_release(object large)


def immortalize(list roots not None):
    return zp_heap_immortalize(roots)


def fill():
    zp_heap_fill_arenas()
    zp_heap_fill_malloc()


def forget_names():
    PyType_ClearCache()


def release(large not None):
    zp_rest_release(large)
