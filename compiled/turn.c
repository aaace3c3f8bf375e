/* A turn of the reactor: see net/reactor.py, net/transport.py and net/lane.py. */
#include "ccserver.h"
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

static PyObject *connection_done, *connection_lost;

/* Let the handlers of a lane at leisure answer packets, as Lane.take does: the replies, or NULL. */
static PyObject *take(PyObject *lane, PyObject *session, PyObject *handlers, PyObject *packets) {
    PyObject *out = PyList_New(0), *rest = PyObject_GetIter(packets), *zero = PyFloat_FromDouble(0.0);
    PyObject *end = NULL;
    if (out != NULL && rest != NULL && zero != NULL && set(&lane_out, lane, Py_NewRef(out)) == 0
        && set(&lane_running, lane, Py_NewRef(Py_True)) == 0) {
        PyObject *arguments[] = {lane, session, handlers, rest, out, Py_None, zero, zero};
        end = answer(NULL, arguments, 8);
    }
    if (end != NULL && !PyLong_CheckExact(end))
        Py_XSETREF(out, PyObject_CallMethod(lane, "go_on", "OOOOOO", out, rest, PyTuple_GET_ITEM(end, 0),
                                            PyTuple_GET_ITEM(end, 1), PyTuple_GET_ITEM(end, 2),
                                            PyTuple_GET_ITEM(end, 3)));
    else if (end == NULL) {
        PyObject *error = raised(), *done = PyObject_CallMethod(lane, "returned", NULL);
        Py_XDECREF(done);
        PyErr_Clear();
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        Py_CLEAR(out);
    } else if (set(&lane_running, lane, Py_NewRef(Py_False)) < 0
               || set(&lane_out, lane, Py_NewRef(no_list)) < 0)
        Py_CLEAR(out);
    else if (has(&lane_pending, lane) || holds(&lane_ending, lane))
        Py_XSETREF(out, PyErr_Occurred() ? NULL : PyObject_CallMethod(lane, "answered", "O", out));
    Py_XDECREF(end);
    Py_XDECREF(rest);
    Py_XDECREF(zero);
    return out;
}

/* Whether nothing is being handled, and nothing waits. */
static int at_leisure(PyObject *lane) {
    return !(holds(&lane_busy, lane) || has(&lane_outbox, lane) || holds(&lane_running, lane)
             || holds(&lane_halted, lane) || has(&lane_pending, lane) || holds(&lane_ending, lane));
}

/* The replies of a lane at leisure to the packets, here and now, none where they went to the pool; or
 * NULL: with an exception set, or with none, and that takes Lane.take. */
static PyObject *reply(PyObject *lane, PyObject *session, PyObject *handlers, PyObject *packets) {
    PyObject *code = PyTuple_GET_ITEM(PyList_GET_ITEM(packets, 0), 0);
    PyObject *handler = PyDict_CheckExact(handlers) ? PyDict_GetItemWithError(handlers, code) : NULL;
    if (handler == NULL)
        return NULL;
    if (!holds(&handler_in_thread, handler))
        return take(lane, session, handlers, packets);
    PyObject *arguments[] = {lane, packets}, *submitted = submit(NULL, arguments, 2);
    Py_XDECREF(submitted);
    return submitted == Py_True ? Py_NewRef(no_list) : NULL;
}

/* What protocol.receive returns for the packets, or NULL. */
static PyObject *handle(PyObject *transport, PyObject *protocol, PyObject *lane, PyObject *decoder,
                        PyObject *packets) {
    const char *method = "receive";
    PyObject *out = NULL, *dispatch = NULL, *handlers = NULL, *session = NULL;
    Py_INCREF(packets);
    if (lane == Py_None || PyList_GET_SIZE(packets) == 0)
        goto other;
    session = get(&lane_session, lane);
    dispatch = get(&lane_dispatch, lane);
    handlers = dispatch == NULL ? NULL : get(&dispatch_handlers, dispatch);
    if (session == NULL || handlers == NULL)
        goto done;
    if (holds(&transport_limited, transport)) {
        PyObject *admitted = PyObject_CallMethod(session, "admit", "Od", packets, seconds());
        if (admitted == NULL)
            goto done;
        Py_SETREF(packets, admitted);
        method = "admitted";
        if (!PyList_CheckExact(packets) || PyList_GET_SIZE(packets) == 0 || has(&session_excess, session)
            || has(&session_close_reason, session))
            goto other;
    }
    out = at_leisure(lane) ? reply(lane, session, handlers, packets) : NULL;
    if (out != NULL) {
        if (holds(&decoder_noted, decoder) || has(&session_close_reason, session))
            Py_XSETREF(out, PyErr_Occurred() ? NULL : PyObject_CallMethod(protocol, "answered", "O", out));
        goto done;
    }
other:
    if (!PyErr_Occurred())
        out = PyObject_CallMethod(protocol, method, "O", packets);
done:
    Py_DECREF(packets);
    Py_XDECREF(dispatch);
    Py_XDECREF(handlers);
    Py_XDECREF(session);
    return out;
}

/* Keep the replies back to the end of the turn, as DirectServer.doRead does; 0, or -1. */
static int cork(PyObject *transport, PyObject *out, PyObject *unflushed) {
    Py_ssize_t count = PyList_GET_SIZE(out);
    if (count == 0)
        return 0;
    PyObject *before = get(&transport_corked, transport);
    if (before == NULL)
        return -1;
    int failed;
    if (before != Py_None)
        failed = PyList_SetSlice(before, PyList_GET_SIZE(before), PyList_GET_SIZE(before), out);
    else {
        int large = PyObject_Size(PyList_GET_ITEM(out, count - 1)) > LARGE;
        failed = set(&transport_corked, transport, Py_NewRef(out));
        int done = failed || !large ? 0 : flush_transport(transport);
        if (!failed && done <= 0)
            failed = done < 0 || PyList_Append(unflushed, transport) < 0 ? -1 : 0;
    }
    Py_DECREF(before);
    return failed;
}

/* A constant of twisted.internet.main, imported once. */
static PyObject *end_of_connection(PyObject **constant, const char *name) {
    if (*constant == NULL)
        *constant = imported("twisted.internet.main", name);
    return Py_XNewRef(*constant);
}

/* Read from a transport that has a decoder, and answer, as DirectServer.doRead does: a new reference
 * to what that returns, or NULL. */
static PyObject *serve_transport(PyObject *transport, PyObject *decoder, int fd, PyObject *unflushed) {
    PyObject *packets = receive(fd, decoder);
    if (packets == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_OSError))
            return NULL;
        int nothing = PyErr_ExceptionMatches(PyExc_BlockingIOError);
        PyErr_Clear();
        return nothing ? Py_NewRef(Py_None) : end_of_connection(&connection_lost, "CONNECTION_LOST");
    }
    if (packets == Py_None) {
        Py_DECREF(packets);
        return end_of_connection(&connection_done, "CONNECTION_DONE");
    }
    PyObject *protocol = get(&transport_protocol, transport), *lane = get(&transport_lane, transport);
    PyObject *out = NULL;
    if (protocol != NULL && lane != NULL)
        out = handle(transport, protocol, lane, decoder, packets);
    Py_XDECREF(protocol);
    Py_XDECREF(lane);
    Py_DECREF(packets);
    int failed = out == NULL || cork(transport, out, unflushed) < 0;
    Py_XDECREF(out);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* serve(events, selectables, kind, unflushed, reactor): takes away the events that it has served */
PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[1]) || !PyType_Check(args[2])
        || !PyList_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError,
                        "serve(events: list, selectables: dict, kind: type, unflushed: list, reactor)");
        return NULL;
    }
    Py_ssize_t kept = 0, given = PyList_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < given; i++) {
        PyObject *event = PyList_GET_ITEM(args[0], i), *decoder = NULL;
        PyObject *number = PyTuple_GET_ITEM(event, 0);
        PyObject *transport = PyDict_GetItemWithError(args[1], number);
        if (transport != NULL && PyLong_AsLong(PyTuple_GET_ITEM(event, 1)) == EPOLLIN
            && PyObject_TypeCheck(transport, (PyTypeObject *)args[2]))
            decoder = get(&transport_decoder, transport);
        if (decoder == NULL || decoder == Py_None) {
            Py_XDECREF(decoder);
            if (PyErr_Occurred() || keep(args[0], i, &kept) < 0)
                return NULL;
            continue;
        }
        Py_INCREF(transport);
        PyObject *why = serve_transport(transport, decoder, (int)PyLong_AsLong(number), args[3]);
        PyObject *fault = why == NULL ? Py_True : Py_False, *lost = Py_NewRef(Py_None);
        if (why == NULL)
            why = raised();
        if (why != Py_None)
            Py_SETREF(lost, PyObject_CallMethod(args[4], "lose", "OOO", transport, why, fault));
        Py_DECREF(why);
        Py_DECREF(decoder);
        Py_DECREF(transport);
        if (lost == NULL)
            return NULL;
        Py_DECREF(lost);
    }
    return PyList_SetSlice(args[0], kept, given, NULL) < 0 ? NULL : Py_NewRef(Py_None);
}

/* poll(epoll, seconds or None, waking) -> [(fd, events)]; a thread is woken when the lock is free */
PyObject *poll_events(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "poll(epoll, seconds: float | None, waking: int)");
        return NULL;
    }
    long waking = PyLong_AsLong(args[2]);
    int epoll = PyErr_Occurred() ? -1 : PyObject_AsFileDescriptor(args[0]);
    double timeout = epoll < 0 ? 0 : args[1] == Py_None ? -1 : PyFloat_AsDouble(args[1]) * 1000;
    ssize_t written = 0;
    if (PyErr_Occurred()) { /* nobody would wake that thread again */
        if (waking >= 0)
            written = write((int)waking, &one, sizeof one);
        return NULL;
    }
    int milliseconds = timeout < 0 ? -1 : timeout < INT_MAX ? (int)timeout : INT_MAX;
    milliseconds += milliseconds < timeout && milliseconds < INT_MAX; /* never before the time */
    struct epoll_event events[EVENTS];
    int n;
    Py_BEGIN_ALLOW_THREADS
    if (waking >= 0)
        written = write((int)waking, &one, sizeof one);
    n = epoll_wait(epoll, events, EVENTS, milliseconds);
    Py_END_ALLOW_THREADS
    if (n < 0 && errno == EINTR)
        n = PyErr_CheckSignals() ? -1 : 0;
    else if (n < 0 || written < 0)
        PyErr_SetFromErrno(PyExc_OSError), n = -1;
    PyObject *found = n < 0 ? NULL : PyList_New(n);
    for (int i = 0; found != NULL && i < n; i++) {
        PyObject *fd = PyLong_FromLong(events[i].data.fd), *what = PyLong_FromLong((long)events[i].events);
        PyObject *event = fd != NULL && what != NULL ? PyTuple_Pack(2, fd, what) : NULL;
        Py_XDECREF(fd);
        Py_XDECREF(what);
        if (event == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, i, event);
    }
    return found;
}
