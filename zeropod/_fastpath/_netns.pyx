import os

cdef extern from "netns.h":
    int zp_netns_socket(int netns_fd, int family, int type, int protocol, int *ret_fd) nogil


def socket_in(int netns_fd, int family, int type, int proto=0):
    cdef int fd = -1
    cdef int r
    with nogil:
        r = zp_netns_socket(netns_fd, family, type, proto, &fd)
    if r < 0:
        raise OSError(-r, os.strerror(-r))
    return fd
