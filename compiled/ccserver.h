/* The optional compiled part: the plain case of what every packet takes. Python stays the reference:
 * both do the same to the same input, which the tests hold (docs/design/data-path.md).
 *
 * framing.c      bytes into packets and back             core/framing.py
 * handlers.c     packets to handlers, and their replies  net/dispatch.py, net/jobs.py
 * threads.c      packets to the pool's threads and back  net/pool.py, net/jobs.py, net/lane.py
 * turn.c         a turn of the reactor                   net/reactor.py, net/transport.py, net/lane.py
 * connections.c  a connection's beginning                net/intake.py, core/copying.py
 * module.c       what Python can call
 *
 * All is called with the interpreter lock, and gives it up for sleep alone: recv and send do not block,
 * and giving it up for them costs more than they take. zlib gives it up for bodies above 5 KiB: what
 * another thread could change meanwhile, as the longest packet, is read before the first CRC. */
#ifndef CCSERVER_H
#define CCSERVER_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

enum { HEADER = 8, LONGEST = 0xFFFF, CHUNK = 65536, SMALL = 256, WHOLE = 1024, MARK = 65536,
       EVENTS = 128, LARGE = 4096, COPIED = 8192, PIECES = 128 };

extern PyObject *no_bytes, *no_list; /* never appended to */

static const uint64_t one = 1; /* what wakes an eventfd */

/* An attribute that a class keeps in a slot, whose place is looked up once. */
struct slot {
    const char *name;
    PyTypeObject *type;
    Py_ssize_t offset;
};

/* Look up where objects of that class keep the attribute; 0: not in a slot. */
static inline int find(struct slot *slot, PyTypeObject *type) {
    PyObject *found = PyObject_GetAttrString((PyObject *)type, slot->name);
    if (found == NULL || !Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        Py_XDECREF(found);
        PyErr_Clear();
        return 0;
    }
    slot->offset = ((PyMemberDescrObject *)found)->d_member->offset;
    Py_DECREF(found);
    Py_INCREF(type); /* so that no other one gets its address */
    Py_XSETREF(slot->type, type);
    return 1;
}

/* Where the object keeps the attribute; NULL, with no exception set: not in a slot of its class. */
static inline PyObject **place_of(struct slot *slot, PyObject *object) {
    if (Py_TYPE(object) != slot->type && !find(slot, Py_TYPE(object)))
        return NULL;
    return (PyObject **)((char *)object + slot->offset);
}

static inline PyObject *get(struct slot *slot, PyObject *object) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place != NULL ? Py_NewRef(*place)
                                           : PyObject_GetAttrString(object, slot->name);
}

/* Set the attribute to value, which is NULL where it could not be made; 0, or -1. */
static inline int set(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    if (value != NULL && place != NULL) {
        Py_XSETREF(*place, value);
        return 0;
    }
    int failed = value == NULL || PyObject_SetAttrString(object, slot->name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* The number that the attribute is; -1, perhaps with an exception set, if it is none. */
static inline Py_ssize_t number(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_ssize_t n = value == NULL ? -1 : PyLong_AsSsize_t(value);
    Py_XDECREF(value);
    return n;
}

/* Add to the number that the attribute is, also to one below 0; 0, or -1 with an exception set. */
static inline int add(struct slot *slot, PyObject *object, Py_ssize_t n) {
    Py_ssize_t before = number(slot, object);
    return before == -1 && PyErr_Occurred() ? -1 : set(slot, object, PyLong_FromSsize_t(before + n));
}

/* Whether the attribute is this very value, in a slot. */
static inline int is(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place == value;
}

/* The seconds that the attribute is; -1 with an exception set if it is none. */
static inline double time_of(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    double time = value == NULL ? -1 : PyFloat_AsDouble(value);
    Py_XDECREF(value);
    return time;
}

/* Whether the attribute is True; also if it cannot be said, with an exception set. */
static inline int holds(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_XDECREF(value);
    return value == NULL || value == Py_True;
}

/* Whether the attribute is not None; also if it cannot be said, with an exception set. */
static inline int has(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_XDECREF(value);
    return value != Py_None;
}

/* Whether the attribute is true; also if it cannot be said, with an exception set. */
static inline int truth(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    int answer = value == NULL ? 1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return answer != 0;
}

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* module.c */
PyObject *imported(const char *module_name, const char *name);
PyObject *raised(void);

/* framing.c */
int prepare_framing(void);
Py_ssize_t append(PyObject *out, PyObject *code, PyObject *body);
PyObject *receive(int fd, PyObject *decoder);
PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *header(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *feed_from(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* handlers.c */
PyObject *answer(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* threads.c */
int prepare_threads(PyObject *module);
PyObject *do_jobs(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *call_done(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *submit(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *sleep_until_woken(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* connections.c */
PyObject *accept_one(PyObject *module, PyObject *listening);
PyObject *another(PyObject *module, PyObject *object);

/* turn.c */
PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *flush_all(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *poll_events(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
