cdef extern from "spawn.h":
    cdef struct zp_command:
        char **argv
        char **envp
        const char *cwd
        int stdio[3]
        const int *setns
        size_t setns_count
        unsigned long open_files
    int zp_spawn(const zp_command *command, int *ret_pid) nogil

cdef class Command:
    cdef zp_command c
    cdef list _keep
    cdef int _setns[8]
    cdef char **_strings(self, items) except NULL
