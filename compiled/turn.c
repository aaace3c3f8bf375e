/* A turn of the reactor: see net/reactor.py, net/transport.py and net/lane.py. */
#include "ccserver.h"
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

static PyObject *connection_done, *connection_lost;
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

static struct slot fd_of = {.name = "_fd"}, decoder_of = {.name = "_decoder"}, lane_of = {.name = "_lane"},
    limited = {.name = "_limited"}, protocol_of = {.name = "protocol"}, corked = {.name = "_corked"},
    held_back = {.name = "_held_back"}, connected = {.name = "connected"},
    behind = {.name = "_tempDataLen"}, data_buffer = {.name = "dataBuffer"},
    producer = {.name = "producer"}, streaming = {.name = "streamingProducer"};
static struct slot halted = {.name = "halted"}, in_thread = {.name = "in_thread"},
    session_of = {.name = "session"}, dispatch_of = {.name = "_dispatch"},
    handlers_of = {.name = "handlers"}, busy = {.name = "_busy"}, outbox = {.name = "_outbox"},
    running = {.name = "_running"}, pending = {.name = "_pending"}, ending = {.name = "_ending"},
    out_of = {.name = "out"}, noted = {.name = "noted"}, excess = {.name = "excess"},
    close_reason = {.name = "close_reason"};

/* Send what is corked, as DirectServer.flush does. 1: done; 0: flush has something left to do;
 * -1: failed, with an exception set. */
static int flush_transport(PyObject *transport) {
    PyObject *chunks = get(&corked, transport);
    if (chunks == NULL)
        return -1;
    int done = -1;
    if (chunks == Py_None)
        done = 1;
    else if (!PyList_CheckExact(chunks) || holds(&held_back, transport) || !truth(&connected, transport)
             || truth(&behind, transport) || truth(&data_buffer, transport)
             || (has(&producer, transport) && !truth(&streaming, transport)))
        done = PyErr_Occurred() ? -1 : 0;
    else {
        PyObject *left = send_chunks((int)number(&fd_of, transport), chunks);
        Py_ssize_t sent = PyList_GET_SIZE(chunks);
        if (left != NULL && PyBytes_GET_SIZE(left) == 0)
            done = set(&corked, transport, Py_NewRef(Py_None)) < 0 ? -1 : 1;
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

/* flush(flushables, kind): takes away those, transports of that class, that have nothing left to flush */
PyObject *flush_all(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[0]) || !PyType_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "flush(flushables: list, kind: type)");
        return NULL;
    }
    Py_ssize_t kept = 0, given = PyList_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < given; i++) {
        PyObject *flushable = PyList_GET_ITEM(args[0], i);
        int done = PyObject_TypeCheck(flushable, (PyTypeObject *)args[1]) ? flush_transport(flushable) : 0;
        if (done == 0 && keep(args[0], i, &kept) < 0)
            return NULL;
        if (done < 0) { /* no memory; what is behind it is flushed all the same */
            Py_INCREF(flushable);
            int lost = PyList_SetSlice(args[0], kept, i + 1, NULL) < 0 || flush_failed(flushable) < 0;
            Py_DECREF(flushable);
            if (lost)
                return NULL;
            /* who hears of it may let the reactor go on, which changes the list */
            i = -1, kept = 0, given = PyList_GET_SIZE(args[0]);
        }
    }
    return PyList_SetSlice(args[0], kept, given, NULL) < 0 ? NULL : Py_NewRef(Py_None);
}

/* Let the handlers of a lane at leisure answer packets, as Lane.take does: the replies, or NULL. */
static PyObject *take(PyObject *lane, PyObject *session, PyObject *handlers, PyObject *packets) {
    PyObject *out = PyList_New(0), *rest = PyObject_GetIter(packets), *zero = PyFloat_FromDouble(0.0);
    PyObject *end = NULL;
    if (out != NULL && rest != NULL && zero != NULL && set(&out_of, lane, Py_NewRef(out)) == 0
        && set(&running, lane, Py_NewRef(Py_True)) == 0) {
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
    } else if (set(&running, lane, Py_NewRef(Py_False)) < 0 || set(&out_of, lane, Py_NewRef(no_list)) < 0)
        Py_CLEAR(out);
    else if (has(&pending, lane) || holds(&ending, lane))
        Py_XSETREF(out, PyErr_Occurred() ? NULL : PyObject_CallMethod(lane, "answered", "O", out));
    Py_XDECREF(end);
    Py_XDECREF(rest);
    Py_XDECREF(zero);
    return out;
}

/* Whether nothing is being handled, and nothing waits. */
static int at_leisure(PyObject *lane) {
    return !(holds(&busy, lane) || has(&outbox, lane) || holds(&running, lane) || holds(&halted, lane)
             || has(&pending, lane) || holds(&ending, lane));
}

/* The replies of a lane at leisure to the packets, here and now, none where they went to the pool; or
 * NULL: with an exception set, or with none, and that takes Lane.take. */
static PyObject *reply(PyObject *lane, PyObject *session, PyObject *handlers, PyObject *packets) {
    PyObject *code = PyTuple_GET_ITEM(PyList_GET_ITEM(packets, 0), 0);
    PyObject *handler = PyDict_CheckExact(handlers) ? PyDict_GetItemWithError(handlers, code) : NULL;
    if (handler == NULL)
        return NULL;
    if (!holds(&in_thread, handler))
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
    session = get(&session_of, lane);
    dispatch = get(&dispatch_of, lane);
    handlers = dispatch == NULL ? NULL : get(&handlers_of, dispatch);
    if (session == NULL || handlers == NULL)
        goto done;
    if (holds(&limited, transport)) {
        PyObject *admitted = PyObject_CallMethod(session, "admit", "Od", packets, seconds());
        if (admitted == NULL)
            goto done;
        Py_SETREF(packets, admitted);
        method = "admitted";
        if (!PyList_CheckExact(packets) || PyList_GET_SIZE(packets) == 0 || has(&excess, session)
            || has(&close_reason, session))
            goto other;
    }
    out = at_leisure(lane) ? reply(lane, session, handlers, packets) : NULL;
    if (out != NULL) {
        if (holds(&noted, decoder) || has(&close_reason, session))
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
    PyObject *before = get(&corked, transport);
    if (before == NULL)
        return -1;
    int failed;
    if (before != Py_None)
        failed = PyList_SetSlice(before, PyList_GET_SIZE(before), PyList_GET_SIZE(before), out);
    else {
        int large = PyObject_Size(PyList_GET_ITEM(out, count - 1)) > LARGE;
        failed = set(&corked, transport, Py_NewRef(out));
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
    PyObject *protocol = get(&protocol_of, transport), *lane = get(&lane_of, transport), *out = NULL;
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
            decoder = get(&decoder_of, transport);
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
