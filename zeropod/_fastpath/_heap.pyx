cdef extern from "heap.h":
    Py_ssize_t zp_heap_immortalize(object roots) except -1
    void zp_heap_fill_arenas()
    void zp_heap_fill_malloc()


def immortalize(list roots not None):
    return zp_heap_immortalize(roots)


def fill():
    zp_heap_fill_arenas()
    zp_heap_fill_malloc()
