/* Packets to handlers, and their replies: see net/dispatch.py and net/jobs.py. */
#include "ccserver.h"

/* What a handler returns for a packet: a new reference, or NULL with an exception set; or NULL
 * with none, and *coroutine waits for *value. */
static PyObject *call(PyObject *handler, PyObject *session, PyObject *packet, int threaded,
                      PyObject **coroutine, PyObject **value) {
    PyObject *made = NULL, *reply = NULL, *request = Py_NewRef(PyTuple_GET_ITEM(packet, 1));
    PyObject *decoder = get(&handler_decode, handler), *called = get(&handler_function, handler);
    if (decoder != NULL && decoder != Py_None)
        Py_SETREF(request, PyObject_CallOneArg(decoder, request));
    if (decoder != NULL && called != NULL && request != NULL) {
        PyObject *arguments[] = {NULL, session, request};
        made = PyObject_Vectorcall(called, arguments + 1, 2 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    }
    Py_XDECREF(decoder);
    Py_XDECREF(called);
    Py_XDECREF(request);
    if (threaded || made == NULL)
        return made;
    if (PyIter_Send(made, Py_None, &reply) == PYGEN_NEXT) {
        *coroutine = made;
        *value = reply;
        return NULL;
    }
    Py_DECREF(made);
    return reply;
}

static PyObject *body_of(PyObject *reply) {
    PyObject *reply_body = imported("ccserver.net.reply", "reply_body");
    PyObject *body = reply_body == NULL ? NULL : PyObject_CallOneArg(reply_body, reply);
    Py_XDECREF(reply_body);
    return body;
}

/* How many bytes of replies are joined: see net/reply.py; -1 with an exception set. */
static Py_ssize_t mark_of(PyObject *session) {
    PyObject *decoder = get(&session_decoder, session);
    Py_ssize_t mark = decoder != NULL && number(&decoder_fed, decoder) > CHUNK ? LONG_MARK : MARK;
    Py_XDECREF(decoder);
    return PyErr_Occurred() ? -1 : mark;
}

/* Whether a slice of so many seconds is over, which begins with the first such look. */
static int is_over(double *since, double most) {
    double now = seconds();
    if (*since == 0)
        *since = now;
    return now - *since > most;
}

/* The next packet, or NULL. */
static PyObject *next_of(struct rest *rest) {
    if (!PyList_CheckExact(rest->of))
        return PyIter_Next(rest->of);
    return rest->next < PyList_GET_SIZE(rest->of) ? Py_NewRef(PyList_GET_ITEM(rest->of, rest->next++)) : NULL;
}

/* Let the lane postpone all that is left; 0, or -1. */
static int postpone(PyObject *lane, struct rest *rest) {
    int listed = PyList_CheckExact(rest->of);
    Py_ssize_t size = listed ? PyList_GET_SIZE(rest->of) : 0;
    PyObject *left = listed ? PyList_GetSlice(rest->of, rest->next, size) : Py_NewRef(rest->of);
    PyObject *put_back = left == NULL ? NULL : PyObject_CallMethod(lane, "postpone", "O", left);
    rest->next = size;
    Py_XDECREF(left);
    Py_XDECREF(put_back);
    return put_back == NULL ? -1 : 0;
}

/* answer(lane, session, handlers, rest, out, thread, deadline, most), in seconds
 * -> count, or (count, packet, coroutine, value) where it stopped before the end of rest */
PyObject *answer(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 8 || !PyDict_CheckExact(args[2]) || !PyList_CheckExact(args[4])) {
        PyErr_SetString(PyExc_TypeError,
                        "answer(lane, session, handlers: dict, rest, out: list, thread, deadline, most)");
        return NULL;
    }
    return answer_rest(args, &(struct rest){.of = args[3]});
}

/* The same, of that rest. */
PyObject *answer_rest(PyObject *const *args, struct rest *rest) {
    PyObject *session = args[1], *out = args[4], *thread = args[5];
    PyObject *packet, *coroutine = NULL, *value = NULL;
    int threaded = thread != Py_None, stopped = 0;
    double deadline = PyFloat_AsDouble(args[6]), most = PyFloat_AsDouble(args[7]);
    double before = threaded ? time_of(&thread_since, thread) : 0;
    double since = 0;
    Py_ssize_t total = 0, replies = 0, handled = 0, look = 1, mark = mark_of(session);
    if (mark < 0)
        return NULL;
    while (!stopped && (packet = next_of(rest)) != NULL) {
        PyObject *handler = PyDict_GetItemWithError(args[2], PyTuple_GET_ITEM(packet, 0));
        if (handler == NULL || holds(&lane_halted, args[0]) || holds(&handler_in_thread, handler) != threaded)
            break; /* the caller knows what to do with it */
        Py_INCREF(handler);
        PyObject *reply = call(handler, session, packet, threaded, &coroutine, &value);
        Py_DECREF(handler);
        if (reply != NULL && reply != Py_None) {
            if (!PyBytes_CheckExact(reply))
                Py_SETREF(reply, body_of(reply));
            Py_ssize_t length = reply == NULL ? -1 : append(out, PyTuple_GET_ITEM(packet, 0), reply);
            if (length < 0)
                Py_CLEAR(reply);
            else
                replies++, total += length;
        }
        if (reply == NULL) {
            if (coroutine == NULL)
                value = raised();
            break; /* the caller goes on with the coroutine, or raises the value */
        }
        Py_DECREF(reply);
        Py_CLEAR(packet);
        stopped = total > mark;
        if (threaded) {
            double now = seconds();
            if (now > deadline || now - before > most)
                stopped = 1; /* the caller looks at the clock himself */
            else if (set(&thread_since, thread, PyFloat_FromDouble(before = now)) < 0)
                break;
        } else if (++handled >= look && most > 0) {
            look = handled + Py_MIN(handled, STRIDE);
            if (!is_over(&since, most) || holds(&lane_halted, args[0]))
                continue;
            if (postpone(args[0], rest) < 0)
                break;
        }
    }
    PyObject *end = NULL;
    if (!PyErr_Occurred() && (threaded || (add(&session_packets_out, session, replies) == 0
                                           && add(&session_bytes_out, session, total) == 0)))
        end = packet == NULL && !stopped ? PyLong_FromSsize_t(replies)
              : Py_BuildValue("(nOOO)", replies, packet ? packet : Py_None,
                              coroutine ? coroutine : Py_None, value ? value : Py_None);
    Py_XDECREF(packet);
    Py_XDECREF(coroutine);
    Py_XDECREF(value);
    return end;
}
