/* A turn of the reactor: see net/reactor.py, net/transport.py and net/lane.py. */
#include "ccserver.h"
#include <errno.h>
#include <limits.h>
#include <sys/epoll.h>
#include <unistd.h>

static const double BUSY = 0.005, TAKEN = 0.0001; /* seconds */

static PyObject *connection_done, *connection_lost, *time_name;

/* How long the lanes of dispatch have the reactor in one go, as a float, or NULL. */
static PyObject *slice_of(PyObject *dispatch) {
    PyObject *slices = get(&dispatch_slices, dispatch);
    PyObject *slice = slices == NULL ? NULL : get(&slices_seconds, slices);
    Py_XDECREF(slices);
    return slice;
}

/* Let Lane.go_on have what is left where the handlers have stopped with that end: the replies, or NULL. */
static PyObject *go_on(PyObject *lane, PyObject *out, struct rest *rest, PyObject *end) {
    PyObject *left = PyObject_GetIter(rest->of), *put = NULL, *replies = NULL;
    if (left != NULL)
        put = PyObject_CallMethod(left, "__setstate__", "n", rest->next);
    if (put != NULL)
        replies = PyObject_CallMethod(lane, "go_on", "OOOOOO", out, left, PyTuple_GET_ITEM(end, 0),
                                      PyTuple_GET_ITEM(end, 1), PyTuple_GET_ITEM(end, 2),
                                      PyTuple_GET_ITEM(end, 3));
    Py_XDECREF(put);
    Py_XDECREF(left);
    return replies;
}

/* Let the handlers of a lane at leisure answer packets, as Lane.take does: the replies, or NULL. */
static PyObject *take(PyObject *lane, PyObject *session, PyObject *dispatch, PyObject *handlers,
                      PyObject *packets) {
    PyObject *out = PyList_New(0), *slice = slice_of(dispatch), *end = NULL;
    struct rest rest = {.of = packets};
    if (out != NULL && slice != NULL && set(&lane_out, lane, Py_NewRef(out)) == 0
        && set(&lane_running, lane, Py_NewRef(Py_True)) == 0) {
        PyObject *arguments[] = {lane, session, handlers, packets, out, Py_None, slice, slice};
        end = answer_rest(arguments, &rest);
    }
    if (end != NULL && !PyLong_CheckExact(end))
        Py_XSETREF(out, go_on(lane, out, &rest, end));
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
    Py_XDECREF(slice);
    return out;
}

/* Whether nothing is being handled, and nothing waits. */
static int at_leisure(PyObject *lane) {
    return !(holds(&lane_busy, lane) || has(&lane_outbox, lane) || holds(&lane_running, lane)
             || holds(&lane_halted, lane) || has(&lane_pending, lane) || holds(&lane_ending, lane));
}

/* The replies of a lane at leisure to the packets, here and now, none where they went to the pool; or
 * NULL: with an exception set, or with none, and that takes Lane.take. */
static PyObject *reply(PyObject *lane, PyObject *session, PyObject *dispatch, PyObject *handlers,
                       PyObject *packets) {
    PyObject *code = PyTuple_GET_ITEM(PyList_GET_ITEM(packets, 0), 0);
    PyObject *handler = PyDict_CheckExact(handlers) ? PyDict_GetItemWithError(handlers, code) : NULL;
    if (handler == NULL)
        return NULL;
    if (!holds(&handler_in_thread, handler))
        return take(lane, session, dispatch, handlers, packets);
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
    out = at_leisure(lane) ? reply(lane, session, dispatch, handlers, packets) : NULL;
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

/* Keep the replies back until some more are to be sent, as DirectServer.doRead does; 0, or -1. */
static int cork(PyObject *transport, PyObject *out, PyObject *replying) {
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
            failed = done < 0 || PyList_Append(replying, transport) < 0 ? -1 : 0;
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

/* Read from a transport that has a decoder, and answer: a new reference to what DirectServer.doRead
 * returns, or NULL; long_read: whether that was a long read, and full. */
static PyObject *serve_once(PyObject *transport, PyObject *decoder, int fd, PyObject *replying,
                            int *long_read) {
    PyObject *lane = get(&transport_lane, transport);
    int many = lane != NULL && lane != Py_None && holds(&decoder_long, decoder) && at_leisure(lane);
    PyObject *packets = lane == NULL ? NULL : receive(fd, decoder, many ? LONG_READ : CHUNK);
    if (packets == NULL) {
        Py_XDECREF(lane);
        if (!PyErr_ExceptionMatches(PyExc_OSError))
            return NULL;
        int nothing = PyErr_ExceptionMatches(PyExc_BlockingIOError);
        PyErr_Clear();
        return nothing ? Py_NewRef(Py_None) : end_of_connection(&connection_lost, "CONNECTION_LOST");
    }
    if (packets == Py_None) {
        Py_DECREF(lane);
        Py_DECREF(packets);
        return end_of_connection(&connection_done, "CONNECTION_DONE");
    }
    *long_read = many && number(&decoder_fed, decoder) == LONG_READ;
    PyObject *protocol = get(&transport_protocol, transport), *out = NULL;
    if (protocol != NULL)
        out = handle(transport, protocol, lane, decoder, packets);
    Py_XDECREF(protocol);
    Py_DECREF(lane);
    Py_DECREF(packets);
    int failed = out == NULL || cork(transport, out, replying) < 0;
    Py_XDECREF(out);
    return failed ? NULL : Py_NewRef(Py_None);
}

/* Whether what comes to the transport now is handled at once, as it was before. */
static int goes_on(PyObject *transport, PyObject *decoder) {
    PyObject *lane = is(&transport_decoder, transport, decoder) ? get(&transport_lane, transport) : NULL;
    PyObject *session = lane == NULL || lane == Py_None ? NULL : get(&lane_session, lane);
    int goes = session != NULL && at_leisure(lane) && !has(&session_excess, session);
    Py_XDECREF(session);
    Py_XDECREF(lane);
    return goes && !PyErr_Occurred();
}

/* Read from a transport that has a decoder, and answer, as DirectServer.doRead does: a new reference
 * to what that returns, or NULL. */
static PyObject *serve_transport(PyObject *transport, PyObject *decoder, int fd, PyObject *replying) {
    int long_read = 0;
    PyObject *why = serve_once(transport, decoder, fd, replying, &long_read);
    if (why != Py_None || !long_read || !goes_on(transport, decoder))
        return why;
    Py_DECREF(why);
    return serve_once(transport, decoder, fd, replying, &long_read);
}

/* Serve an event of a transport of that class that has a decoder: 1; 0: it is not one; or -1. */
static int serve(PyObject *reactor, PyTypeObject *kind, const struct epoll_event *event,
                 PyObject *replying) {
    PyObject *selectables = get(&reactor_selectables, reactor), *fd = PyLong_FromLong(event->data.fd);
    PyObject *transport = NULL, *decoder = NULL, *lost = NULL;
    if (selectables != NULL && fd != NULL)
        transport = Py_XNewRef(PyDict_GetItemWithError(selectables, fd));
    if (transport != NULL && event->events == EPOLLIN && PyObject_TypeCheck(transport, kind))
        decoder = get(&transport_decoder, transport);
    if (decoder != NULL && decoder != Py_None) {
        PyObject *why = serve_transport(transport, decoder, event->data.fd, replying);
        PyObject *fault = why == NULL ? Py_True : Py_False;
        if (why == NULL)
            why = raised();
        lost = why == Py_None ? Py_NewRef(Py_None)
                              : PyObject_CallMethod(reactor, "lose", "OOO", transport, why, fault);
        Py_DECREF(why);
    }
    Py_XDECREF(decoder);
    Py_XDECREF(transport);
    Py_XDECREF(fd);
    Py_XDECREF(selectables);
    Py_XDECREF(lost);
    return lost != NULL ? 1 : PyErr_Occurred() ? -1 : 0;
}

/* A thread that waits for the interpreter lock is given it 5 ms later (sys.getswitchinterval), but begins
 * to wait anew each time that the lock is given up, also where we have it back before that thread is
 * awake. So where it was not free for long enough of late, it is kept while there are events, as far as
 * this is ours to say; and where that did not help either, for a handler gives it up for moments (each
 * system call of Python's does), it is left to the others for TAKEN. */
static double was_free, found_none, free_time;

/* Note that the lock was free from that time until now. */
static void note_free(double from) {
    double now = seconds();
    free_time += now - from;
    if (now - from > TAKEN || free_time > 10 * TAKEN)
        was_free = now, free_time = 0;
}

/* Look for events with the lock in hand, if it is time for that; how many there are. */
static int look(struct epoll_event *events, int epoll, double now) {
    if (now - was_free < BUSY || now - found_none < BUSY)
        return 0;
    int n = epoll_wait(epoll, events, EVENTS, 0);
    if (n <= 0)
        found_none = now;
    else if (now - was_free > 4 * BUSY) {
        struct timespec taken = {.tv_nsec = (long)(TAKEN * 1e9)};
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&taken, NULL);
        Py_END_ALLOW_THREADS
        note_free(now);
    }
    return n;
}

/* Wait for events, behind a write to the eventfd waking, if it is one; how many there are, or -1. */
static int wait_for(struct epoll_event *events, int epoll, double timeout, int waking) {
    double from = seconds();
    int n = waking < 0 ? look(events, epoll, from) : 0;
    if (n > 0)
        return n;
    timeout *= 1000;
    int milliseconds = timeout < 0 ? -1 : timeout < INT_MAX ? (int)timeout : INT_MAX;
    milliseconds += milliseconds < timeout && milliseconds < INT_MAX; /* never before the time */
    ssize_t written = 0;
    Py_BEGIN_ALLOW_THREADS
    if (waking >= 0)
        written = write(waking, &one, sizeof one);
    n = epoll_wait(epoll, events, EVENTS, milliseconds);
    Py_END_ALLOW_THREADS
    note_free(from);
    if (n >= 0 && written >= 0)
        return n;
    if (n < 0 && errno == EINTR)
        return PyErr_CheckSignals();
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* How long the reactor may sleep in its next turn, as mainLoop reckons it, in seconds; -1: for any time;
 * 0: something is to be done before, or an exception is set. */
static double sleep_of(PyObject *reactor) {
    if (PyErr_CheckSignals() < 0 || truth(&reactor_unflushed, reactor)
        || truth(&reactor_thread_calls, reactor) || truth(&reactor_new_calls, reactor)
        || truth(&reactor_just_stopped, reactor) || !holds(&reactor_started, reactor))
        return 0;
    PyObject *calls = get(&reactor_timed_calls, reactor), *time = NULL;
    if (calls != NULL && PyList_Check(calls) && PyList_GET_SIZE(calls))
        time = PyObject_GetAttr(PyList_GET_ITEM(calls, 0), time_name);
    double sleep = time == NULL ? -1 : PyFloat_AsDouble(time) - seconds();
    Py_XDECREF(time);
    Py_XDECREF(calls);
    return PyErr_Occurred() || (time != NULL && sleep < 0) ? 0 : sleep;
}

/* Add the event to the list left, which is made for it; 0, or -1. */
static int leave(PyObject **left, const struct epoll_event *event) {
    if (*left == no_list)
        Py_SETREF(*left, PyList_New(0));
    PyObject *pair = Py_BuildValue("iI", event->data.fd, event->events);
    int failed = *left == NULL || pair == NULL ? -1 : PyList_Append(*left, pair);
    Py_XDECREF(pair);
    return failed;
}

/* Send the replies; what takes more goes to the list unflushed; 0, or -1. */
static int send_replies(PyObject *replying, PyObject *unflushed, PyTypeObject *kind) {
    if (flush(replying, kind) < 0)
        return -1;
    Py_ssize_t end = PyList_GET_SIZE(unflushed);
    if (PyList_GET_SIZE(replying) == 0)
        return 0;
    return PyList_SetSlice(unflushed, end, end, replying) < 0
           || PyList_SetSlice(replying, 0, PyList_GET_SIZE(replying), NULL) < 0 ? -1 : 0;
}

/* A turn of so many seconds, and more of them if that is wanted, as far as none has other events; 0, or -1. */
static int take_turns(PyObject *reactor, PyTypeObject *kind, int epoll, double timeout, int waking, int more,
                      PyObject *replying, PyObject *unflushed, PyObject **left) {
    struct epoll_event events[EVENTS];
    int failed;
    do {
        int n = wait_for(events, epoll, timeout, waking), waited = 0;
        failed = n < 0;
        for (int i = 0; i < n && !failed; i++) {
            int served = serve(reactor, kind, &events[i], replying);
            failed = served < 0 || (served == 0 && leave(left, &events[i]) < 0);
            waited = !failed && PyList_GET_SIZE(replying) ? waited + 1 : 0;
            if (waited == PART)
                failed = send_replies(replying, unflushed, kind) < 0, waited = 0;
        }
        failed = failed || send_replies(replying, unflushed, kind) < 0;
        if (failed || !more || *left != no_list)
            break;
        failed = flush(unflushed, kind) < 0;
        timeout = failed ? 0 : sleep_of(reactor);
        waking = -1;
    } while (timeout != 0);
    return failed || PyErr_Occurred() ? -1 : 0;
}

/* turn(reactor, kind, seconds or None, waking, more) -> [(fd, events)], which it has not served */
PyObject *turn(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !PyType_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "turn(reactor, kind: type, seconds: float | None, waking: int, "
                                         "more: bool)");
        return NULL;
    }
    long waking = PyLong_AsLong(args[3]);
    double timeout = args[2] == Py_None ? -1 : PyErr_Occurred() ? 0 : PyFloat_AsDouble(args[2]);
    int epoll = -1, waiting = (int)waking;
    PyObject *replying = NULL, *unflushed = NULL, *left = NULL;
    PyObject *poller = PyErr_Occurred() ? NULL : get(&reactor_poller, args[0]);
    if (poller != NULL && (replying = get(&reactor_replying, args[0])) != NULL
        && (unflushed = get(&reactor_unflushed, args[0])) != NULL) {
        if (PyList_CheckExact(replying) && PyList_CheckExact(unflushed))
            epoll = PyObject_AsFileDescriptor(poller);
        else
            PyErr_SetString(PyExc_TypeError, "what is to be flushed is in lists");
    }
    if (epoll >= 0) {
        left = Py_NewRef(no_list);
        if (take_turns(args[0], (PyTypeObject *)args[1], epoll, timeout, waiting, args[4] == Py_True, replying,
                       unflushed, &left) < 0)
            Py_CLEAR(left);
    } else if (waiting >= 0 && write(waiting, &one, sizeof one) < 0) /* nobody else would wake it */
        PyErr_SetFromErrno(PyExc_OSError);
    Py_XDECREF(poller);
    Py_XDECREF(replying);
    Py_XDECREF(unflushed);
    return left;
}

/* What the others here need, at the import; 0, or -1. */
int prepare_turn(void) {
    time_name = PyUnicode_InternFromString("time");
    return time_name == NULL ? -1 : 0;
}
