/* The optional compiled part: the plain case of what every packet takes. Python stays the reference:
 * both do the same to the same input, which the tests hold (docs/design/data-path.md).
 *
 * checksum.c     the CRC-32 of a body                    core/checksum.py
 * framing.c      bytes into packets and back             core/framing.py
 * handlers.c     packets to handlers, and their replies  net/dispatch.py, net/jobs.py
 * threads.c      packets to the pool's threads and back  net/pool.py, net/jobs.py, net/lane.py
 * turn.c         a turn of the reactor                   net/reactor.py, net/transport.py, net/lane.py
 * sending.c      what a turn sends                       net/reactor.py, net/transport.py
 * connections.c  a connection's beginning                net/intake.py, core/copying.py
 * slots.h        the attributes of all these
 * module.c       what Python can call
 *
 * All is called with the interpreter lock, and gives it up for sleep alone: recv and send do not block,
 * and giving it up for them costs more than they take. A CRC-32 in Python may, for long bodies: what
 * another thread could change meanwhile, as the longest packet, is read before the first one. */
#ifndef CCSERVER_H
#define CCSERVER_H
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <time.h>
#include "slots.h"

enum { HEADER = 8, LONGEST = 0xFFFF, CHUNK = 65536, LONG_READ = 4 * CHUNK, LONG = 256,
       SMALL = 256, WHOLE = 1024, MARK = 65536, LONG_MARK = 5 * MARK,
       EVENTS = 128, PART = 4, LARGE = 4096, COPIED = 8192, PIECES = 128, STRIDE = 8 };

extern PyObject *no_bytes, *no_list; /* never appended to */

static const uint64_t one = 1; /* what wakes an eventfd */

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* module.c */
PyObject *imported(const char *module_name, const char *name);
PyObject *raised(void);

/* checksum.c */
int prepare_checksum(PyObject *module);
int crc_of(PyObject *body, uint32_t *crc);

/* framing.c */
int prepare_framing(void);
Py_ssize_t append(PyObject *out, PyObject *code, PyObject *body);
PyObject *receive(int fd, PyObject *decoder, Py_ssize_t most);
PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *header(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *feed_from(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* handlers.c */
struct rest {
    PyObject *of;    /* a list of packets, or an iterator */
    Py_ssize_t next; /* of the list: which one is */
};
PyObject *answer_rest(PyObject *const *args, struct rest *rest);
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

/* sending.c */
int flush_transport(PyObject *transport);
int flush(PyObject *flushables, PyTypeObject *kind);
PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *flush_all(PyObject *module, PyObject *const *args, Py_ssize_t count);

/* turn.c */
int prepare_turn(void);
PyObject *turn(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
