/* Packets to the pool's threads and back: see net/pool.py, net/jobs.py and net/lane.py. */
#include "ccserver.h"
#include <errno.h>
#include <unistd.h>

static PyObject *deque_append, *deque_popleft, *join;
static PyObject *done; /* what the reactor is to call for a plain job */

/* Let the thread begin the job at its time; 1, 0: the lane has taken it back, or -1. */
static int begin_job(PyObject *thread, PyObject *lane, PyObject *claim, double now) {
    PyObject *time = PyFloat_FromDouble(now), *out = PyList_New(0);
    /* behind that list, which may have garbage collected, nothing runs before the claim is ours */
    int claimed = PyList_GET_SIZE(claim) > 0, failed = 1;
    PyObject *packets = claimed ? Py_NewRef(PyList_GET_ITEM(claim, 0)) : NULL, *rest = NULL;
    if (claimed && PyList_SetSlice(claim, 0, 1, NULL) == 0 && time != NULL) {
        failed = set(&thread_since, thread, Py_NewRef(time)) || set(&thread_began, thread, Py_NewRef(time));
        failed |= set(&thread_lane, thread, Py_NewRef(lane)); /* behind its time, see PoolThread */
        rest = PyObject_GetIter(packets);
        failed |= set(&thread_rest, thread, Py_XNewRef(rest))
                  || set(&thread_packets, thread, Py_NewRef(packets))
                  || set(&thread_out, thread, Py_XNewRef(out))
                  || set(&thread_flushed, thread, PyLong_FromLong(0));
    }
    Py_XDECREF(time);
    Py_XDECREF(out);
    Py_XDECREF(packets);
    Py_XDECREF(rest);
    if (!claimed)
        PyErr_Clear();
    return claimed ? (failed ? -1 : 1) : 0;
}

/* What the thread has done of its lane goes to the reactor, see Pool.done; 0, or -1: it does not. */
static int end_job(PyObject *thread, PyObject *pool, PyObject *jobs, PyObject *lane, PyObject *out,
                   PyObject *end, double flush_after) {
    PyObject *told_of = PyTuple_Pack(3, lane, Py_None, Py_None);
    PyObject *call = told_of == NULL ? NULL : PyTuple_Pack(2, done, told_of);
    PyObject *calls = get(&pool_calls, pool), *arguments[] = {calls, call}, *appended = NULL;
    /* from here on nothing has garbage collected, whose finalizer could send, and have out flushed */
    PyObject *replies = PyLong_FromSsize_t(PyLong_AsSsize_t(end) - number(&thread_flushed, thread));
    PyObject *data = PyList_GET_SIZE(out) == 1 ? Py_NewRef(PyList_GET_ITEM(out, 0))
                                               : PyObject_CallMethodOneArg(no_bytes, join, out);
    if (call != NULL && calls != NULL && replies != NULL && data != NULL) {
        Py_DECREF(Py_None);
        PyTuple_SET_ITEM(told_of, 1, Py_NewRef(data));
        Py_DECREF(Py_None);
        PyTuple_SET_ITEM(told_of, 2, Py_NewRef(replies));
        appended = PyObject_Vectorcall(deque_append, arguments, 2, NULL);
    }
    Py_XDECREF(replies);
    Py_XDECREF(data);
    Py_XDECREF(told_of);
    Py_XDECREF(call);
    Py_XDECREF(calls);
    if (appended == NULL)
        return -1;
    Py_DECREF(appended);
    set(&thread_lane, thread, Py_NewRef(Py_None));
    set(&thread_packets, thread, Py_NewRef(no_list));
    set(&thread_out, thread, Py_NewRef(no_list));
    set(&thread_began, thread, PyFloat_FromDouble(0));
    double now = time_of(&thread_since, thread), since_when = time_of(&thread_untold, thread);
    int told = (0 < since_when && since_when < now - flush_after) || is(&pool_flush_later, pool, Py_None);
    if (told)
        Py_XDECREF(PyObject_CallMethod(pool, "wake_up", NULL));
    told = told || PySequence_Size(jobs) == 0; /* the thread tells it when it goes to sleep */
    if (told != (since_when == 0))
        set(&thread_untold, thread, PyFloat_FromDouble(told ? 0 : now));
    if (PyErr_Occurred())
        PyErr_WriteUnraisable(thread); /* the job is done all the same */
    return 0;
}

/* Do the job: 1, and *now is the time behind it; 0: Python goes on from *end; -1 with an exception set,
 * and the thread has its lane. */
static int do_job(PyObject *thread, PyObject *pool, PyObject *jobs, PyObject *job, double *now,
                  double flush_after, PyObject *most, PyObject **end) {
    PyObject *lane = PyTuple_GET_ITEM(job, 0);
    int begun = begin_job(thread, lane, PyTuple_GET_ITEM(job, 1), *now);
    if (begun == 0)
        return 1;
    PyObject *session = get(&lane_session, lane), *handlers = get(&pool_handlers, pool);
    PyObject *known = get(&pool_slow, pool);
    PyObject *rest = get(&thread_rest, thread), *out = get(&thread_out, thread);
    PyObject *deadline = PyFloat_FromDouble(*now + flush_after), *found = NULL;
    if (begun > 0 && !PyErr_Occurred()) {
        PyObject *arguments[] = {lane, session, handlers, rest, out, thread, deadline, most};
        found = PyObject_IsTrue(known) ? Py_BuildValue("(iOOO)", 0, Py_None, Py_None, Py_None)
                                       : answer(NULL, arguments, 8);
    }
    int ended = -1;
    if (found != NULL && !PyLong_CheckExact(found))
        *end = Py_NewRef(found), ended = 0;
    else if (found != NULL && end_job(thread, pool, jobs, lane, out, found, flush_after) == 0)
        *now = time_of(&thread_since, thread), ended = 1;
    if (ended < 0)
        set(&thread_lane, thread, Py_NewRef(lane));
    Py_XDECREF(session);
    Py_XDECREF(handlers);
    Py_XDECREF(known);
    Py_XDECREF(rest);
    Py_XDECREF(out);
    Py_XDECREF(deadline);
    Py_XDECREF(found);
    return ended;
}

/* Take the next job, if there is one and it is one of packets; 1, 0, or -1. */
static int next_job(PyObject *jobs, PyObject **job) {
    if (PySequence_Size(jobs) <= 0)
        return 0;
    PyObject *next = PySequence_GetItem(jobs, 0);
    int of_packets = next != NULL && PyTuple_CheckExact(next);
    Py_XDECREF(next);
    if (!of_packets)
        return next == NULL ? -1 : 0;
    Py_XSETREF(*job, PyObject_CallOneArg(deque_popleft, jobs));
    return *job == NULL ? -1 : 1;
}

/* do_jobs(thread, job, flush_after, most) -> None, or what answer has returned where Python goes on */
PyObject *do_jobs(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 4 || !PyTuple_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "do_jobs(thread, job: tuple, flush_after: float, most: float)");
        return NULL;
    }
    PyObject *thread = args[0], *job = Py_NewRef(args[1]), *end = NULL;
    PyObject *pool = get(&thread_pool, thread), *queue = pool == NULL ? NULL : get(&pool_queue, pool);
    PyObject *jobs = queue == NULL ? NULL : get(&queue_jobs, queue);
    double flush_after = PyFloat_AsDouble(args[2]), now = seconds();
    int going = !PyErr_Occurred();
    for (int n = 0; going > 0 && n < EVENTS; n++) { /* args[1] is not to be kept for long */
        going = do_job(thread, pool, jobs, job, &now, flush_after, args[3], &end);
        if (going > 0)
            going = n + 1 < EVENTS ? next_job(jobs, &job) : 0;
    }
    Py_XDECREF(job);
    Py_XDECREF(pool);
    Py_XDECREF(queue);
    Py_XDECREF(jobs);
    return end != NULL ? end : PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* Where the transport of a lane is that has nothing to do but to send the reply of its job; or NULL. */
static PyObject *plain_transport(PyObject *lane, Py_ssize_t length) {
    PyObject **peer = place_of(&lane_peer, lane);
    if (!is(&lane_answered, lane, Py_None) || !is(&lane_outbox, lane, Py_None)
        || !is(&lane_silent, lane, Py_False) || !is(&lane_pending, lane, Py_None)
        || !is(&lane_hold, lane, Py_None) || !is(&lane_ending, lane, Py_False)
        || !is(&lane_paused, lane, Py_False) || peer == NULL || *peer == NULL || length > CHUNK)
        return NULL;
    PyObject **transport = place_of(&peer_transport, *peer);
    if (transport == NULL || *transport == NULL || !is(&transport_corked, *transport, Py_None)
        || !is(&transport_tls, *transport, Py_False) || !is(&transport_no_writes, *transport, Py_False))
        return NULL;
    PyObject **open = place_of(&transport_connected, *transport);
    PyObject **later = place_of(&transport_flush_later, *transport);
    return open != NULL && *open != NULL && PyObject_IsTrue(*open) == 1 && later != NULL && *later != NULL
           && *later != Py_None ? *transport : NULL;
}

/* Settle what comes first of the calls, if it is a plain job; whether it was. */
static int settle_first(PyObject *pool, PyObject *calls, PyObject **chunks) {
    if (*chunks == NULL) {
        if ((*chunks = PyList_New(1)) == NULL) /* what that has garbage collected runs before we look */
            return 0;
        PyList_SET_ITEM(*chunks, 0, Py_NewRef(Py_None));
    }
    PyObject *call = PySequence_Size(calls) > 0 ? PySequence_GetItem(calls, 0) : NULL;
    if (call == NULL || !PyTuple_CheckExact(call) || PyTuple_GET_ITEM(call, 0) != done) {
        Py_XDECREF(call);
        return 0;
    }
    PyObject *about = PyTuple_GET_ITEM(call, 1);
    PyObject *lane = PyTuple_GET_ITEM(about, 0), *data = PyTuple_GET_ITEM(about, 1);
    PyObject *session = get(&lane_session, lane);
    Py_ssize_t length = PyBytes_GET_SIZE(data), count = PyLong_AsSsize_t(PyTuple_GET_ITEM(about, 2));
    PyObject *transport = session == NULL ? NULL : plain_transport(lane, length);
    int settled = 0;
    if (transport != NULL) {
        PyObject *packets = PyLong_FromSsize_t(number(&session_packets_out, session) + count);
        PyObject *bytes = PyLong_FromSsize_t(number(&session_bytes_out, session) + length);
        PyObject *others = PyLong_FromSsize_t(number(&pool_unfinished, pool) - 1);
        PyObject *size = PyLong_FromSsize_t(length), *first = NULL;
        if (packets != NULL && bytes != NULL && others != NULL && size != NULL && !PyErr_Occurred()) {
            PyObject *corks = *place_of(&transport_flush_later, transport);
            PyObject *later = length ? PyObject_CallOneArg(corks, transport) : Py_NewRef(Py_None);
            first = later == NULL ? NULL : PyObject_CallOneArg(deque_popleft, calls);
            Py_XDECREF(later);
        }
        settled = first != NULL;
        if (settled) {
            set(&session_packets_out, session, Py_NewRef(packets));
            set(&session_bytes_out, session, Py_NewRef(bytes));
            set(&pool_unfinished, pool, Py_NewRef(others));
            set(&lane_busy, lane, Py_NewRef(Py_False));
        }
        if (settled && length) {
            PyList_SetItem(*chunks, 0, Py_NewRef(data));
            set(&transport_corked, transport, *chunks);
            set(&transport_written, transport, Py_NewRef(size));
            *chunks = NULL;
        }
        Py_XDECREF(packets);
        Py_XDECREF(bytes);
        Py_XDECREF(others);
        Py_XDECREF(size);
        Py_XDECREF(first);
    }
    Py_XDECREF(session);
    Py_DECREF(call);
    return settled;
}

/* done(lane, data, count): lane.done(data, count), for what settle leaves */
PyObject *call_done(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "done(lane, data: bytes, count: int)");
        return NULL;
    }
    return PyObject_CallMethod(args[0], "done", "OO", args[1], args[2]);
}

/* settle(pool, calls, most) -> how many plain jobs came first of the calls: they are done, as by Lane.done */
PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_ssize_t most = count == 3 ? PyLong_AsSsize_t(args[2]) : -1, settled = 0;
    if (most < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "settle(pool, calls: deque, most: int)");
        return NULL;
    }
    PyObject *chunks = NULL;
    while (settled < most && settle_first(args[0], args[1], &chunks))
        settled++;
    Py_XDECREF(chunks);
    PyErr_Clear(); /* the caller will meet it again */
    return PyLong_FromSsize_t(settled);
}

/* Whether the handlers of all these packets run in threads. */
static int all_threaded(PyObject *packets, PyObject *threaded) {
    PyObject *last = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(packets); i++) {
        PyObject *code = PyTuple_GET_ITEM(PyList_GET_ITEM(packets, i), 0);
        if (code != last && PySet_Contains(threaded, code) != 1)
            return 0;
        last = code;
    }
    return 1;
}

/* submit(lane, packets) -> whether the pool has all of them: see Lane.submit, which does what is unusual */
PyObject *submit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "submit(lane, packets: list)");
        return NULL;
    }
    PyObject *lane = args[0], *dispatch = get(&lane_dispatch, lane), *claim = PyList_New(1), *job = NULL;
    if (claim != NULL)
        PyList_SET_ITEM(claim, 0, Py_NewRef(args[1]));
    PyObject *threaded = dispatch == NULL ? NULL : get(&dispatch_threaded, dispatch);
    PyObject *pool = dispatch == NULL ? NULL : get(&dispatch_pool, dispatch);
    PyObject *others = pool == NULL ? NULL : get(&pool_gathered, pool);
    int submitted = 0;
    if (claim != NULL && threaded != NULL && others != NULL && PyList_CheckExact(others)
        && (PyList_GET_SIZE(others) || is(&pool_looking, pool, Py_True)) && all_threaded(args[1], threaded)
        && number(&pool_unfinished, pool) < number(&pool_limit, pool)) {
        job = PyTuple_Pack(2, lane, claim);
        submitted = job != NULL && add(&pool_unfinished, pool, 1) == 0 && PyList_Append(others, job) == 0;
        if (submitted) {
            set(&lane_job, lane, Py_NewRef(claim));
            set(&lane_busy, lane, Py_NewRef(Py_True));
        }
    }
    Py_XDECREF(dispatch);
    Py_XDECREF(claim);
    Py_XDECREF(threaded);
    Py_XDECREF(pool);
    Py_XDECREF(others);
    Py_XDECREF(job);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(submitted);
}

/* sleep(eventfd, telling): until it is woken; who is told can have the lock by then */
PyObject *sleep_until_woken(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    long eventfd = count == 2 ? PyLong_AsLong(args[0]) : -1;
    long telling = eventfd < 0 ? -1 : PyLong_AsLong(args[1]);
    if (eventfd < 0 || PyErr_Occurred()) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "sleep(eventfd: int, telling: int)");
        return NULL;
    }
    uint64_t value;
    ssize_t moved = 0;
    Py_BEGIN_ALLOW_THREADS
    if (telling >= 0)
        moved = write((int)telling, &one, sizeof one);
    do {
        moved = read((int)eventfd, &value, sizeof value);
    } while (moved < 0 && errno == EINTR);
    Py_END_ALLOW_THREADS
    return moved < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

/* What the others here need, at the import; 0, or -1. */
int prepare_threads(PyObject *module) {
    PyObject *deque = imported("collections", "deque");
    deque_append = deque == NULL ? NULL : PyObject_GetAttrString(deque, "append");
    deque_popleft = deque == NULL ? NULL : PyObject_GetAttrString(deque, "popleft");
    done = deque_popleft == NULL ? NULL : PyObject_GetAttrString(module, "done");
    join = PyUnicode_InternFromString("join");
    Py_XDECREF(deque);
    return deque_append == NULL || done == NULL || join == NULL ? -1 : 0;
}
