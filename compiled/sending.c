/* What a turn of the reactor sends: see net/transport.py and net/reactor.py. */
#include "ccserver.h"
#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

static _Thread_local char outgoing[COPIED]; /* of what is sent in one piece */

/* Send the chunks as one: what the kernel did not take, which is all after an error; or NULL. */
static PyObject *send_chunks(int fd, PyObject *chunks) {
    struct iovec pieces[PIECES];
    PyObject *joined = NULL;
    Py_ssize_t total = 0, count = PyList_GET_SIZE(chunks);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *chunk = PyList_GET_ITEM(chunks, i);
        if (count > PIECES || !PyBytes_Check(chunk)) {
            joined = PyObject_CallMethod(no_bytes, "join", "O", chunks); /* knows what is bytes-like */
            if (joined == NULL)
                return NULL;
            chunk = joined;
            total = i = 0, count = 1;
        }
        pieces[i] = (struct iovec){PyBytes_AS_STRING(chunk), (size_t)PyBytes_GET_SIZE(chunk)};
        total += PyBytes_GET_SIZE(chunk);
    }
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    if (total <= COPIED && count > 1) {
        char *end = outgoing;
        for (Py_ssize_t i = 0; i < count; end += pieces[i++].iov_len)
            memcpy(end, pieces[i].iov_base, pieces[i].iov_len);
        pieces[0] = (struct iovec){outgoing, (size_t)total};
        count = 1;
    }
    ssize_t sent;
    do {
        sent = count == 1 ? send(fd, pieces[0].iov_base, pieces[0].iov_len, MSG_DONTWAIT | MSG_NOSIGNAL)
                          : sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0)
        sent = 0; /* EAGAIN, or an error that the next send will meet again */
    PyObject *left = sent == total ? Py_NewRef(no_bytes) : PyBytes_FromStringAndSize(NULL, total - sent);
    if (left != NULL && sent < total) {
        char *end = PyBytes_AS_STRING(left);
        for (Py_ssize_t i = 0; i < count; i++) {
            size_t skipped = (size_t)sent < pieces[i].iov_len ? (size_t)sent : pieces[i].iov_len;
            memcpy(end, (char *)pieces[i].iov_base + skipped, pieces[i].iov_len - skipped);
            end += pieces[i].iov_len - skipped;
            sent -= (ssize_t)skipped;
        }
    }
    Py_XDECREF(joined);
    return left;
}

/* transmit(socket, chunks) -> bytes: what the kernel did not take */
PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "transmit(socket, chunks: list)");
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(args[0]);
    return fd < 0 ? NULL : send_chunks(fd, args[1]);
}

/* Send what is corked, as DirectServer.flush does. 1: done; 0: flush has something left to do;
 * -1: failed, with an exception set. */
int flush_transport(PyObject *transport) {
    PyObject *chunks = get(&transport_corked, transport);
    if (chunks == NULL)
        return -1;
    int done = -1;
    if (chunks == Py_None)
        done = 1;
    else if (!PyList_CheckExact(chunks) || holds(&transport_held_back, transport)
             || !truth(&transport_connected, transport) || truth(&transport_behind, transport)
             || truth(&transport_data_buffer, transport)
             || (has(&transport_producer, transport) && !truth(&transport_streaming, transport)))
        done = PyErr_Occurred() ? -1 : 0;
    else {
        PyObject *left = send_chunks((int)number(&transport_fd, transport), chunks);
        Py_ssize_t sent = PyList_GET_SIZE(chunks);
        if (left != NULL && PyBytes_GET_SIZE(left) == 0)
            done = set(&transport_corked, transport, Py_NewRef(Py_None)) < 0 ? -1 : 1;
        else if (left != NULL && PyList_SetSlice(chunks, 1, sent, NULL) == 0)
            /* the next send meets what has stopped this one; no new list, for that may have garbage
             * collected, whose finalizer may have something corked, too */
            done = PyList_SetItem(chunks, 0, Py_NewRef(left)) < 0 ? -1 : 0;
        Py_XDECREF(left);
    }
    Py_DECREF(chunks);
    return done;
}

/* Keep item i of the list as its item *kept; 0, or -1. */
static int keep(PyObject *list, Py_ssize_t i, Py_ssize_t *kept) {
    Py_ssize_t place = (*kept)++;
    return i == place ? 0 : PyList_SetItem(list, place, Py_NewRef(PyList_GET_ITEM(list, i)));
}

/* Report the exception that is set, as DirectReactor._flush does; 0, or -1. */
static int flush_failed(PyObject *transport) {
    PyObject *error = raised(), *report = imported("ccserver.net.reactor", "flush_failed");
    PyObject *told = report == NULL ? NULL : PyObject_CallFunction(report, "OO", transport, error);
    Py_DECREF(error);
    Py_XDECREF(report);
    Py_XDECREF(told);
    return told == NULL ? -1 : 0;
}

/* Take away those, transports of that class, that have nothing left to flush; 0, or -1. */
int flush(PyObject *flushables, PyTypeObject *kind) {
    Py_ssize_t kept = 0, given = PyList_GET_SIZE(flushables);
    for (Py_ssize_t i = 0; i < given; i++) {
        PyObject *flushable = PyList_GET_ITEM(flushables, i);
        int done = PyObject_TypeCheck(flushable, kind) ? flush_transport(flushable) : 0;
        if (done == 0 && keep(flushables, i, &kept) < 0)
            return -1;
        if (done < 0) { /* no memory; what is behind it is flushed all the same */
            Py_INCREF(flushable);
            int lost = PyList_SetSlice(flushables, kept, i + 1, NULL) < 0 || flush_failed(flushable) < 0;
            Py_DECREF(flushable);
            if (lost)
                return -1;
            /* who hears of it may let the reactor go on, which changes the list */
            i = -1, kept = 0, given = PyList_GET_SIZE(flushables);
        }
    }
    return PyList_SetSlice(flushables, kept, given, NULL);
}

/* flush(flushables, kind) */
PyObject *flush_all(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[0]) || !PyType_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "flush(flushables: list, kind: type)");
        return NULL;
    }
    return flush(args[0], (PyTypeObject *)args[1]) < 0 ? NULL : Py_NewRef(Py_None);
}
