/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The interpreter's heap, made fit to be shared by children that are forked from it.
 *
 * A page of a child stays its parent's until the child writes to it, and an interpreter writes
 * everywhere: it counts references in the objects themselves, and puts new objects into the holes
 * between old ones. So objects that the children inherit are made immortal, which ends the counting
 * (PEP 683; Python 3.12 and newer), and the holes are filled, so that new objects lie together on
 * pages of their own. What fills them is never freed: it costs the parent's memory once.
 */
#ifndef ZEROPOD_HEAP_H
#define ZEROPOD_HEAP_H

#include <Python.h>

#include <malloc.h>
#include <stdlib.h>
#include <unistd.h>

#if PY_VERSION_HEX >= 0x030E0000
#define ZP_IMMORTAL _Py_IMMORTAL_INITIAL_REFCNT
#elif PY_VERSION_HEX >= 0x030C0000
#define ZP_IMMORTAL _Py_IMMORTAL_REFCNT
#endif

#define ZP_OBJECT_MAX	512
#define ZP_OBJECT_ALIGN 16
#define ZP_CHUNK_MAX	(120 << 10) /* below glibc's threshold for mmap, which leaves no holes */
#define ZP_CHUNK_MIN	16
#define ZP_FILL_MAX                                                                                \
	(1 << 20) /* blocks of one size: an end to every loop, whatever the allocator              \
		   */

struct zp_todo {
	PyObject **items;
	size_t count, room;
};

/* A visitproc. Return: 0, or -1 without memory. */
static inline int zp_todo_push(PyObject *object, void *arg)
{
	struct zp_todo *todo = arg;

	if (!object)
		return 0;
	if (todo->count == todo->room) {
		size_t room = todo->room ? 2 * todo->room : 4096;
		PyObject **items = realloc(todo->items, room * sizeof(*items));

		if (!items)
			return -1;
		todo->items = items;
		todo->room = room;
	}
	todo->items[todo->count++] = object;
	return 0;
}

#ifdef ZP_IMMORTAL
/* What @object refers to. Code is the one container that the garbage collector does not traverse.
 */
static inline int zp_todo_push_referents(struct zp_todo *todo, PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);
	int error = zp_todo_push((PyObject *)type, todo);

	if (!error && PyCode_Check(object)) {
		PyCodeObject *code = (PyCodeObject *)object;
		PyObject *parts[] = {code->co_consts,
				     code->co_names,
				     code->co_exceptiontable,
				     code->co_localsplusnames,
				     code->co_localspluskinds,
				     code->co_filename,
				     code->co_name,
				     code->co_qualname,
				     code->co_linetable};

		for (size_t i = 0; !error && i < sizeof(parts) / sizeof(*parts); i++)
			error = zp_todo_push(parts[i], todo);
	} else if (!error && PyObject_IS_GC(object) && type->tp_traverse) {
		error = type->tp_traverse(object, zp_todo_push, todo);
	}
	return error;
}
#endif

/*
 * Make all that is reachable from the items of the list @roots immortal, but not the list.
 *
 * Return: how many objects became immortal (0 before Python 3.12); -1 with a MemoryError.
 */
static inline Py_ssize_t zp_heap_immortalize(PyObject *roots)
{
	Py_ssize_t made = 0;
#ifdef ZP_IMMORTAL
	struct zp_todo todo = {0};
	int error = 0;

	for (Py_ssize_t i = 0; !error && i < PyList_GET_SIZE(roots); i++)
		error = zp_todo_push(PyList_GET_ITEM(roots, i), &todo);
	while (!error && todo.count) {
		PyObject *object = todo.items[--todo.count];

		if (object == roots || _Py_IsImmortal(object))
			continue;
		if (PyUnicode_CheckExact(object) && PyObject_Hash(object) == -1)
			PyErr_Clear();
		Py_SET_REFCNT(object, ZP_IMMORTAL);
		made++;
		error = zp_todo_push_referents(&todo, object);
	}
	free(todo.items);
	if (error) {
		PyErr_NoMemory();
		return -1;
	}
#else
	(void)roots;
#endif
	return made;
}

/* An arena allocator that passes on to the one before it and remembers what came last. */
struct zp_arenas {
	PyObjectArenaAllocator inner;
	char *newest;
	size_t size;
};

static inline void *zp_arenas_alloc(void *ctx, size_t size)
{
	struct zp_arenas *arenas = ctx;

	arenas->newest = arenas->inner.alloc(arenas->inner.ctx, size);
	arenas->size = size;
	return arenas->newest;
}

static inline void zp_arenas_free(void *ctx, void *address, size_t size)
{
	struct zp_arenas *arenas = ctx;

	arenas->inner.free(arenas->inner.ctx, address, size);
}

/*
 * Fill Python's arenas until a new one is opened, then each size class until it has moved there.
 *
 * With another allocator than Python's own (PYTHONMALLOC) no arena is ever opened: a bounded waste.
 */
static inline void zp_heap_fill_arenas(void)
{
	struct zp_arenas arenas = {0};
	PyObjectArenaAllocator outer = {&arenas, zp_arenas_alloc, zp_arenas_free};
	char *block = "";

	PyObject_GetArenaAllocator(&arenas.inner);
	PyObject_SetArenaAllocator(&outer);
	for (int i = 0; block && !arenas.newest && i < ZP_FILL_MAX; i++)
		block = PyObject_Malloc(ZP_OBJECT_MAX);
	for (size_t size = ZP_OBJECT_ALIGN; arenas.newest && size <= ZP_OBJECT_MAX;
	     size += ZP_OBJECT_ALIGN) {
		for (int i = 0; i < ZP_FILL_MAX; i++) {
			block = PyObject_Malloc(size);
			if (!block ||
			    (block >= arenas.newest && block < arenas.newest + arenas.size))
				break;
		}
	}
	PyObject_SetArenaAllocator(&arenas.inner);
}

/* Fill the holes of malloc, the largest first, until every size is taken from the top. */
static inline void zp_heap_fill_malloc(void)
{
	char *top;

	malloc_trim(0);
	top = (char *)sbrk(0) - mallinfo2().keepcost;
	for (size_t size = ZP_CHUNK_MAX; size >= ZP_CHUNK_MIN; size -= ZP_CHUNK_MIN) {
		for (int i = 0; i < ZP_FILL_MAX; i++) {
			char *chunk = malloc(size);

			if (!chunk || chunk >= top) {
				free(chunk);
				break;
			}
		}
	}
}

#endif
