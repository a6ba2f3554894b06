/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What an interpreter gives back before it sleeps.
 *
 * Three things hold memory that nobody needs: the cache of looked-up methods, which owns every name
 * it has seen; malloc, which keeps what is freed below its top; and large objects that were zeroed
 * when they were made and never used since, like the read buffer of an event loop.
 */
#ifndef ZEROPOD_REST_H
#define ZEROPOD_REST_H

#include <Python.h>

#include <malloc.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static inline int zp_rest_is_zero(const char *page, size_t size)
{
	return page[0] == 0 && memcmp(page, page + 1, size - 1) == 0;
}

/*
 * Have the kernel make the zero pages within @object anew when they are touched next.
 *
 * A page that is whole within an object has nothing in it but that object's own fields, and
 * malloc's memory is private and anonymous: it reads as zeros afterwards, as it did before. Only
 * the thread that holds the GIL may write to the object. To look at a page that was never touched
 * costs nothing, for the kernel shows its page of zeros.
 */
static inline void zp_rest_release_zeros(PyObject *object)
{
	size_t page = sysconf(_SC_PAGESIZE);
	uintptr_t at = ((uintptr_t)object + page - 1) & -page;
	uintptr_t end = (uintptr_t)object + Py_TYPE(object)->tp_basicsize;

	for (; at + page <= end; at += page)
		if (zp_rest_is_zero((const char *)at, page))
			madvise((void *)at, page, MADV_DONTNEED);
}

static inline void zp_rest_release(PyObject *object)
{
	PyType_ClearCache();
	zp_rest_release_zeros(object);
	malloc_trim(0);
}

#endif
