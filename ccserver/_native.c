/* The optional compiled part: the steps that every packet takes, as core/framing.py, net/transport.py,
 * net/dispatch.py, net/jobs.py, net/lane.py and net/pool.py have them in Python. Python stays the
 * reference: both do the same to the same input, which the tests hold. All are called with the
 * interpreter lock. recv and send keep it: they do not block, and giving it up for them costs more
 * than they take. zlib gives it up for bodies above 5 KiB, so nothing that another thread could
 * change is held across a CRC. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 8, LONGEST = 0xFFFF, CHUNK = 65536, SMALL = 256, WHOLE = 1024, MARK = 65536, EVENTS = 128 };

static uint32_t crc_table[8][256];
static PyObject *zlib_crc32;     /* for longer bodies: it knows the processor better */
static PyObject *packet_too_long;
static PyObject *no_bytes;
static PyObject *nothing;        /* a list that nobody appends to */
static PyObject *deque_append, *deque_popleft;
static PyObject *done; /* what the reactor is to call for a plain job */
static _Thread_local char buffer[CHUNK + LONGEST]; /* of what is received */
static _Thread_local char outgoing[CHUNK]; /* another one: a finalizer may send while we cut */

/* An attribute that a class keeps in a slot, whose place is looked up once. */
struct slot {
    const char *name;
    PyTypeObject *type;
    Py_ssize_t offset;
};

static void make_crc_table(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            crc_table[k][n] = crc_table[0][crc_table[k - 1][n] & 0xFF] ^ (crc_table[k - 1][n] >> 8);
}

/* zlib's CRC-32, eight bytes at a time. */
static uint32_t small_crc(const unsigned char *p, Py_ssize_t n) {
    uint32_t c = 0xFFFFFFFFu;
    for (; n >= 8; n -= 8, p += 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = crc_table[7][c & 0xFF] ^ crc_table[6][(c >> 8) & 0xFF] ^ crc_table[5][(c >> 16) & 0xFF]
            ^ crc_table[4][c >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]]
            ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    for (; n > 0; n--, p++)
        c = crc_table[0][(c ^ *p) & 0xFF] ^ (c >> 8);
    return c ^ 0xFFFFFFFFu;
}

/* The CRC-32 of a bytes object; 0, or -1 with an exception set. */
static int crc_of(PyObject *body, uint32_t *crc) {
    Py_ssize_t n = PyBytes_GET_SIZE(body);
    if (n <= SMALL) {
        *crc = small_crc((const unsigned char *)PyBytes_AS_STRING(body), n);
        return 0;
    }
    PyObject *value = PyObject_CallOneArg(zlib_crc32, body);
    if (value == NULL)
        return -1;
    *crc = (uint32_t)PyLong_AsUnsignedLongMask(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

static void put16(unsigned char *p, uint32_t v) {
    p[0] = (unsigned char)(v >> 8);
    p[1] = (unsigned char)v;
}

static uint32_t get32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Look up where the class of the object keeps the attribute; NULL: not in a slot. */
static PyObject **find_place(struct slot *slot, PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    PyObject *found = PyObject_GetAttrString((PyObject *)type, slot->name);
    if (found == NULL || !Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        Py_XDECREF(found);
        PyErr_Clear();
        return NULL;
    }
    slot->offset = ((PyMemberDescrObject *)found)->d_member->offset;
    Py_DECREF(found);
    Py_INCREF(type); /* so that no other one gets its address */
    Py_XSETREF(slot->type, type);
    return (PyObject **)((char *)object + slot->offset);
}

/* Where the object keeps the attribute; NULL, with no exception set: not in a slot of its class. */
static inline PyObject **place_of(struct slot *slot, PyObject *object) {
    return Py_IS_TYPE(object, slot->type) ? (PyObject **)((char *)object + slot->offset)
                                          : find_place(slot, object);
}

static PyObject *get(struct slot *slot, PyObject *object) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place != NULL ? Py_NewRef(*place)
                                           : PyObject_GetAttrString(object, slot->name);
}

/* Set the attribute to value, which is NULL where it could not be made; 0, or -1. */
static int set(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    int failed = value == NULL;
    if (!failed && place != NULL) {
        Py_XSETREF(*place, value);
        return 0;
    }
    if (!failed)
        failed = PyObject_SetAttrString(object, slot->name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* The number that the attribute is; -1, perhaps with an exception set, if it is none. */
static Py_ssize_t number(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_ssize_t n = value == NULL ? -1 : PyLong_AsSsize_t(value);
    Py_XDECREF(value);
    return n;
}

static int add(struct slot *slot, PyObject *object, Py_ssize_t n) {
    Py_ssize_t before = number(slot, object);
    return before < 0 ? -1 : set(slot, object, PyLong_FromSsize_t(before + n));
}

/* Whether the attribute is this very value, in a slot. */
static int is(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place == value;
}

/* The seconds that the attribute is; -1 with an exception set if it is none. */
static double time_of(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    double time = value == NULL ? -1 : PyFloat_AsDouble(value);
    Py_XDECREF(value);
    return time;
}

/* Whether the attribute is True; also if it cannot be said, with an exception set. */
static int holds(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    int answer = value == NULL || value == Py_True;
    Py_XDECREF(value);
    return answer;
}

/* Append the good packets of so many bytes to the list; where that stopped, or -1. */
static Py_ssize_t cut_bytes(const unsigned char *data, Py_ssize_t start, Py_ssize_t size,
                            Py_ssize_t longest, PyObject *packets) {
    Py_ssize_t before = PyList_GET_SIZE(packets);
    while (size - start >= HEADER) {
        const unsigned char *p = data + start;
        Py_ssize_t length = (Py_ssize_t)p[0] << 8 | p[1];
        if (length < HEADER || length > longest || length > size - start)
            break;
        PyObject *body = PyBytes_FromStringAndSize((const char *)p + HEADER, length - HEADER);
        if (body == NULL)
            goto failed;
        uint32_t crc;
        if (crc_of(body, &crc) < 0) {
            Py_DECREF(body);
            goto failed;
        }
        if (crc != get32(p + 4)) {
            Py_DECREF(body);
            break;
        }
        PyObject *code = PyLong_FromLong((long)p[2] << 8 | p[3]);
        PyObject *packet = code == NULL ? NULL : PyTuple_New(2);
        if (packet == NULL) {
            Py_XDECREF(code);
            Py_DECREF(body);
            goto failed;
        }
        PyTuple_SET_ITEM(packet, 0, code);
        PyTuple_SET_ITEM(packet, 1, body);
        int lost = PyList_Append(packets, packet);
        Py_DECREF(packet);
        if (lost)
            goto failed;
        start += length;
    }
    return start;

failed: /* what was appended goes again, for the caller does not learn where it stopped */
    PyList_SetSlice(packets, before, PyList_GET_SIZE(packets), NULL);
    return -1;
}

/* cut(data, start, max_length, packets) -> stop */
static PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 4 || !PyBytes_CheckExact(args[0]) || !PyList_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "cut(data: bytes, start: int, max_length: int, packets: list)");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), longest = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (start < 0) {
        PyErr_SetString(PyExc_ValueError, "start is negative");
        return NULL;
    }
    start = cut_bytes((const unsigned char *)PyBytes_AS_STRING(args[0]), start,
                      PyBytes_GET_SIZE(args[0]), longest, args[3]);
    return start < 0 ? NULL : PyLong_FromSsize_t(start);
}

/* Write the header of the packet that carries body under code; 0, or -1 with an exception set. */
static int make_header(PyObject *code_object, PyObject *body, unsigned char *h) {
    if (!PyLong_Check(code_object) || !PyBytes_Check(body)) {
        PyErr_SetString(PyExc_TypeError, "a packet is an int and bytes");
        return -1;
    }
    Py_ssize_t length = HEADER + PyBytes_GET_SIZE(body);
    if (length > LONGEST) {
        PyErr_Format(packet_too_long, "a body of %zd bytes does not fit into a packet of %d",
                     length - HEADER, LONGEST);
        return -1;
    }
    long code = PyLong_AsLong(code_object);
    if (code < 0 || code > 0xFFFF) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%S is no message code", code_object);
        return -1;
    }
    uint32_t crc;
    if (crc_of(body, &crc) < 0)
        return -1;
    put16(h, (uint32_t)length);
    put16(h + 2, (uint32_t)code);
    put16(h + 4, crc >> 16);
    put16(h + 6, crc);
    return 0;
}

/* header(code, body) -> bytes */
static PyObject *header(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    unsigned char h[HEADER];
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "header(code: int, body: bytes)");
        return NULL;
    }
    if (make_header(args[0], args[1], h) < 0)
        return NULL;
    return PyBytes_FromStringAndSize((const char *)h, HEADER);
}

/* Append the packet that carries body under code to out, as a whole or in two; its length, or -1. */
static Py_ssize_t append(PyObject *out, PyObject *code, PyObject *body) {
    unsigned char h[HEADER];
    if (make_header(code, body, h) < 0)
        return -1;
    Py_ssize_t n = PyBytes_GET_SIZE(body), copied = n <= WHOLE ? n : 0;
    PyObject *piece = PyBytes_FromStringAndSize(NULL, HEADER + copied);
    if (piece == NULL)
        return -1;
    memcpy(PyBytes_AS_STRING(piece), h, HEADER);
    memcpy(PyBytes_AS_STRING(piece) + HEADER, PyBytes_AS_STRING(body), (size_t)copied);
    int failed = PyList_Append(out, piece) || (copied < n && PyList_Append(out, body));
    Py_DECREF(piece);
    return failed ? -1 : HEADER + n;
}

static struct slot halted = {.name = "halted"}, in_thread = {.name = "in_thread"},
    decode = {.name = "decode"}, function = {.name = "function"}, since = {.name = "since"},
    packets_out = {.name = "packets_out"}, bytes_out = {.name = "bytes_out"};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* What a handler returns for a packet: a new reference, or NULL with an exception set; or NULL
 * with none, and *coroutine waits for *value. */
static PyObject *call(PyObject *handler, PyObject *session, PyObject *packet, int threaded,
                      PyObject **coroutine, PyObject **value) {
    PyObject *made = NULL, *reply = NULL, *request = Py_NewRef(PyTuple_GET_ITEM(packet, 1));
    PyObject *decoder = get(&decode, handler), *called = get(&function, handler);
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

/* An attribute of a module that is imported for it. */
static PyObject *imported(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return NULL;
    PyObject *value = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return value;
}

static PyObject *body_of(PyObject *reply) {
    PyObject *reply_body = imported("ccserver.net.reply", "reply_body");
    PyObject *body = reply_body == NULL ? NULL : PyObject_CallOneArg(reply_body, reply);
    Py_XDECREF(reply_body);
    return body;
}

/* The exception that is set, and is not any more. */
static PyObject *raised(void) {
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
}

/* answer(lane, session, handlers, rest, out, thread, deadline, most), in seconds
 * -> count, or (count, packet, coroutine, value) where it stopped before the end of rest */
static PyObject *answer(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 8 || !PyDict_CheckExact(args[2]) || !PyList_CheckExact(args[4])) {
        PyErr_SetString(PyExc_TypeError,
                        "answer(lane, session, handlers: dict, rest, out: list, thread, deadline, most)");
        return NULL;
    }
    PyObject *session = args[1], *out = args[4], *thread = args[5];
    PyObject *packet, *coroutine = NULL, *value = NULL;
    int threaded = thread != Py_None, stopped = 0;
    double deadline = PyFloat_AsDouble(args[6]), most = PyFloat_AsDouble(args[7]);
    double before = threaded ? time_of(&since, thread) : 0;
    Py_ssize_t total = 0, replies = 0;
    while (!stopped && (packet = PyIter_Next(args[3])) != NULL) {
        PyObject *handler = PyDict_GetItemWithError(args[2], PyTuple_GET_ITEM(packet, 0));
        if (handler == NULL || holds(&halted, args[0]) || holds(&in_thread, handler) != threaded)
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
        stopped = total > MARK;
        if (threaded) {
            double now = seconds();
            if (now > deadline || now - before > most)
                stopped = 1; /* the caller looks at the clock himself */
            else if (set(&since, thread, PyFloat_FromDouble(before = now)) < 0)
                break;
        }
    }
    PyObject *end = NULL;
    if (!PyErr_Occurred() && (threaded || (add(&packets_out, session, replies) == 0
                                           && add(&bytes_out, session, total) == 0)))
        end = packet == NULL && !stopped ? PyLong_FromSsize_t(replies)
              : Py_BuildValue("(nOOO)", replies, packet ? packet : Py_None,
                              coroutine ? coroutine : Py_None, value ? value : Py_None);
    Py_XDECREF(packet);
    Py_XDECREF(coroutine);
    Py_XDECREF(value);
    return end;
}

static struct slot session_of = {.name = "session"}, pool_of = {.name = "_pool"}, lane_of = {.name = "lane"},
    began = {.name = "began"}, rest_of = {.name = "_rest"}, packets_of = {.name = "_packets"},
    out_of = {.name = "_out"}, flushed = {.name = "_flushed"}, untold = {.name = "_untold"},
    handlers_of = {.name = "handlers"}, slow = {.name = "slow"}, calls_of = {.name = "_calls"},
    queue_of = {.name = "_jobs"}, jobs_of = {.name = "_jobs"}, flush_later = {.name = "_flush_later"};

/* Let the thread begin the job at its time; 1, 0: the lane has taken it back, or -1. */
static int begin_job(PyObject *thread, PyObject *lane, PyObject *claim, double now) {
    PyObject *time = PyFloat_FromDouble(now), *out = PyList_New(0);
    /* behind that list, which may have garbage collected, nothing runs before the claim is ours */
    int claimed = PyList_GET_SIZE(claim) > 0, failed = 1;
    PyObject *packets = claimed ? Py_NewRef(PyList_GET_ITEM(claim, 0)) : NULL, *rest = NULL;
    if (claimed && PyList_SetSlice(claim, 0, 1, NULL) == 0 && time != NULL) {
        failed = set(&since, thread, Py_NewRef(time)) || set(&began, thread, Py_NewRef(time));
        failed |= set(&lane_of, thread, Py_NewRef(lane)); /* behind its time, see PoolThread */
        rest = PyObject_GetIter(packets);
        failed |= set(&rest_of, thread, Py_XNewRef(rest)) || set(&packets_of, thread, Py_NewRef(packets))
                  || set(&out_of, thread, Py_XNewRef(out)) || set(&flushed, thread, PyLong_FromLong(0));
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
    PyObject *replies = PyLong_FromSsize_t(PyLong_AsSsize_t(end) - number(&flushed, thread));
    PyObject *data = PyList_GET_SIZE(out) == 1 ? Py_NewRef(PyList_GET_ITEM(out, 0))
                                               : PyObject_CallMethod(no_bytes, "join", "O", out);
    PyObject *told_of = replies == NULL || data == NULL ? NULL : PyTuple_Pack(3, lane, data, replies);
    PyObject *call = told_of == NULL ? NULL : PyTuple_Pack(2, done, told_of);
    PyObject *calls = get(&calls_of, pool), *arguments[] = {calls, call};
    PyObject *appended = call == NULL || calls == NULL ? NULL : PyObject_Vectorcall(deque_append, arguments, 2, NULL);
    Py_XDECREF(replies);
    Py_XDECREF(data);
    Py_XDECREF(told_of);
    Py_XDECREF(call);
    Py_XDECREF(calls);
    if (appended == NULL)
        return -1;
    Py_DECREF(appended);
    set(&lane_of, thread, Py_NewRef(Py_None));
    set(&packets_of, thread, Py_NewRef(nothing));
    set(&out_of, thread, Py_NewRef(nothing));
    set(&began, thread, PyFloat_FromDouble(0));
    double now = time_of(&since, thread), since_when = time_of(&untold, thread);
    int told = (0 < since_when && since_when < now - flush_after) || is(&flush_later, pool, Py_None);
    if (told)
        Py_XDECREF(PyObject_CallMethod(pool, "wake_up", NULL));
    told = told || PySequence_Size(jobs) == 0; /* the thread tells it when it goes to sleep */
    if (told != (since_when == 0))
        set(&untold, thread, PyFloat_FromDouble(told ? 0 : now));
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
    PyObject *session = get(&session_of, lane), *handlers = get(&handlers_of, pool), *known = get(&slow, pool);
    PyObject *rest = get(&rest_of, thread), *out = get(&out_of, thread);
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
        *now = time_of(&since, thread), ended = 1;
    if (ended < 0)
        set(&lane_of, thread, Py_NewRef(lane));
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
static PyObject *do_jobs(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 4 || !PyTuple_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "do_jobs(thread, job: tuple, flush_after: float, most: float)");
        return NULL;
    }
    PyObject *thread = args[0], *job = Py_NewRef(args[1]), *end = NULL;
    PyObject *pool = get(&pool_of, thread), *queue = pool == NULL ? NULL : get(&queue_of, pool);
    PyObject *jobs = queue == NULL ? NULL : get(&jobs_of, queue);
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

static struct slot answered = {.name = "_answered"}, outbox = {.name = "_outbox"}, silent = {.name = "_silent"},
    pending = {.name = "_pending"}, hold = {.name = "_hold"}, ending = {.name = "_ending"},
    paused = {.name = "_paused"}, busy = {.name = "_busy"}, peer_of = {.name = "_peer"},
    transport_of = {.name = "transport"}, corked = {.name = "_corked"}, written = {.name = "_written"},
    tls = {.name = "TLS"}, connected = {.name = "connected"}, no_writes = {.name = "_writeDisconnected"},
    corks = {.name = "_flush_later"}, unfinished = {.name = "unfinished"};

/* Where the transport of a lane is that has nothing to do but to send the reply of its job; or NULL. */
static PyObject *plain_transport(PyObject *lane, Py_ssize_t length) {
    PyObject **peer = place_of(&peer_of, lane);
    if (!is(&answered, lane, Py_None) || !is(&outbox, lane, Py_None) || !is(&silent, lane, Py_False)
        || !is(&pending, lane, Py_None) || !is(&hold, lane, Py_None) || !is(&ending, lane, Py_False)
        || !is(&paused, lane, Py_False) || peer == NULL || *peer == NULL || length > CHUNK)
        return NULL;
    PyObject **transport = place_of(&transport_of, *peer);
    if (transport == NULL || *transport == NULL || !is(&corked, *transport, Py_None)
        || !is(&tls, *transport, Py_False) || !is(&no_writes, *transport, Py_False))
        return NULL;
    PyObject **open = place_of(&connected, *transport), **later = place_of(&corks, *transport);
    return open != NULL && *open != NULL && PyObject_IsTrue(*open) == 1 && later != NULL && *later != NULL
           && *later != Py_None ? *transport : NULL;
}

/* Settle what comes first of the calls, if it is a plain job; whether it was. */
static int settle_first(PyObject *calls, PyObject **chunks) {
    if (*chunks == NULL && (*chunks = Py_BuildValue("[O]", Py_None)) == NULL)
        return 0; /* what that has garbage collected runs before we look */
    PyObject *call = PySequence_Size(calls) > 0 ? PySequence_GetItem(calls, 0) : NULL;
    if (call == NULL || !PyTuple_CheckExact(call) || PyTuple_GET_ITEM(call, 0) != done) {
        Py_XDECREF(call);
        return 0;
    }
    PyObject *about = PyTuple_GET_ITEM(call, 1), *lane = PyTuple_GET_ITEM(about, 0), *data = PyTuple_GET_ITEM(about, 1);
    PyObject *session = get(&session_of, lane);
    Py_ssize_t length = PyBytes_GET_SIZE(data), count = PyLong_AsSsize_t(PyTuple_GET_ITEM(about, 2));
    PyObject *transport = session == NULL ? NULL : plain_transport(lane, length);
    int settled = 0;
    if (transport != NULL) {
        PyObject *packets = PyLong_FromSsize_t(number(&packets_out, session) + count);
        PyObject *bytes = PyLong_FromSsize_t(number(&bytes_out, session) + length);
        PyObject *size = PyLong_FromSsize_t(length), *first = NULL;
        if (packets != NULL && bytes != NULL && size != NULL && !PyErr_Occurred()) {
            PyObject *later = length ? PyObject_CallOneArg(*place_of(&corks, transport), transport)
                                     : Py_NewRef(Py_None);
            first = later == NULL ? NULL : PyObject_CallOneArg(deque_popleft, calls);
            Py_XDECREF(later);
        }
        settled = first != NULL;
        if (settled) {
            set(&packets_out, session, Py_NewRef(packets));
            set(&bytes_out, session, Py_NewRef(bytes));
            set(&busy, lane, Py_NewRef(Py_False));
        }
        if (settled && length) {
            PyList_SetItem(*chunks, 0, Py_NewRef(data));
            set(&corked, transport, *chunks);
            set(&written, transport, Py_NewRef(size));
            *chunks = NULL;
        }
        Py_XDECREF(packets);
        Py_XDECREF(bytes);
        Py_XDECREF(size);
        Py_XDECREF(first);
    }
    Py_XDECREF(session);
    Py_DECREF(call);
    return settled;
}

/* done(lane, data, count): lane.done(data, count), for what settle leaves */
static PyObject *call_done(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "done(lane, data: bytes, count: int)");
        return NULL;
    }
    return PyObject_CallMethod(args[0], "done", "OO", args[1], args[2]);
}

/* settle(pool, calls, most) -> how many plain jobs came first of the calls, which are settled as by Lane.done */
static PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_ssize_t most = count == 3 ? PyLong_AsSsize_t(args[2]) : -1, settled = 0;
    if (most < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "settle(pool, calls: deque, most: int)");
        return NULL;
    }
    PyObject *chunks = NULL;
    while (settled < most && settle_first(args[1], &chunks))
        settled++;
    Py_XDECREF(chunks);
    PyErr_Clear(); /* the caller will meet it again */
    return add(&unfinished, args[0], -settled) < 0 ? NULL : PyLong_FromSsize_t(settled);
}

static struct slot dispatch_of = {.name = "_dispatch"}, threaded_of = {.name = "threaded"},
    its_pool = {.name = "pool"}, gathered = {.name = "_gathered"}, looking = {.name = "_looking"},
    limit = {.name = "limit"}, job_of = {.name = "_job"};

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
static PyObject *submit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "submit(lane, packets: list)");
        return NULL;
    }
    PyObject *lane = args[0], *dispatch = get(&dispatch_of, lane), *claim = PyList_New(1), *job = NULL;
    if (claim != NULL)
        PyList_SET_ITEM(claim, 0, Py_NewRef(args[1]));
    PyObject *threaded = dispatch == NULL ? NULL : get(&threaded_of, dispatch);
    PyObject *pool = dispatch == NULL ? NULL : get(&its_pool, dispatch);
    PyObject *others = pool == NULL ? NULL : get(&gathered, pool);
    int submitted = 0;
    if (claim != NULL && threaded != NULL && others != NULL && PyList_CheckExact(others)
        && (PyList_GET_SIZE(others) || is(&looking, pool, Py_True)) && all_threaded(args[1], threaded)
        && number(&unfinished, pool) < number(&limit, pool)) {
        job = PyTuple_Pack(2, lane, claim);
        submitted = job != NULL && add(&unfinished, pool, 1) == 0 && PyList_Append(others, job) == 0;
        if (submitted) {
            set(&job_of, lane, Py_NewRef(claim));
            set(&busy, lane, Py_NewRef(Py_True));
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

static struct slot chunks = {.name = "_chunks"}, need = {.name = "_need"}, closed = {.name = "closed"},
    max_length = {.name = "_max_length"}, bytes_in = {.name = "bytes"},
    packets_in = {.name = "packets"}, little = {.name = "little"};

/* Put what is known of an incomplete packet into the buffer; how many bytes, or -1. */
static Py_ssize_t begin(PyObject *decoder) {
    PyObject *pieces = get(&chunks, decoder);
    Py_ssize_t have = 0;
    for (Py_ssize_t i = 0; pieces != NULL && pieces != Py_None && i < PyList_GET_SIZE(pieces); i++) {
        PyObject *piece = PyList_GET_ITEM(pieces, i);
        memcpy(buffer + have, PyBytes_AS_STRING(piece), (size_t)PyBytes_GET_SIZE(piece));
        have += PyBytes_GET_SIZE(piece);
    }
    Py_XDECREF(pieces);
    return pieces == NULL ? -1 : have;
}

/* feed_from(socket, decoder) -> packets, or None at the end of the stream; raises OSError */
static PyObject *feed_from(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    int fd = count == 2 ? PyObject_AsFileDescriptor(args[0]) : -1;
    if (fd < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "feed_from(socket, decoder)");
        return NULL;
    }
    PyObject *decoder = args[1];
    Py_ssize_t have = begin(decoder), longest = number(&max_length, decoder), wanted = number(&need, decoder);
    if (PyErr_Occurred())
        return NULL;
    ssize_t n;
    do {
        n = recv(fd, buffer + have, CHUNK, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n <= 0)
        return n < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
    Py_ssize_t size = have + n;
    if ((have && size < wanted) || holds(&closed, decoder))
        return PyErr_Occurred() ? NULL : PyObject_CallMethod(decoder, "feed", "y#", buffer + have, n);
    PyObject *packets = PyList_New(0);
    if (packets == NULL || set(&chunks, decoder, Py_NewRef(Py_None)) < 0)
        goto failed;
    Py_ssize_t start = cut_bytes((const unsigned char *)buffer, 0, size, longest, packets);
    if (start < 0 || add(&bytes_in, decoder, n) < 0)
        goto failed;
    if (start < size) {
        PyObject *seen = PyObject_CallMethod(decoder, "_examine", "y#iOi", buffer + start, size - start,
                                             0, packets, have && !start);
        if (seen == NULL)
            goto failed;
        Py_DECREF(seen);
    }
    count = PyList_GET_SIZE(packets);
    if (add(&packets_in, decoder, count) == 0 && (count || set(&little, decoder, PyLong_FromSsize_t(n)) == 0))
        return packets;
failed:
    Py_XDECREF(packets);
    return NULL;
}

/* transmit(socket, chunks) -> bytes: what the kernel did not take */
static PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "transmit(socket, chunks: list)");
        return NULL;
    }
    int fd = PyObject_AsFileDescriptor(args[0]);
    if (fd < 0)
        return NULL;
    PyObject *chunks = args[1], *joined = NULL;
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(chunks) && total <= CHUNK; i++) {
        PyObject *chunk = PyList_GET_ITEM(chunks, i);
        if (!PyBytes_Check(chunk)) {
            total = CHUNK + 1; /* join knows what else is bytes-like, and says what is not */
            break;
        }
        Py_ssize_t n = PyBytes_GET_SIZE(chunk);
        if (total + n <= CHUNK)
            memcpy(outgoing + total, PyBytes_AS_STRING(chunk), (size_t)n);
        total += n;
    }
    const char *data = outgoing;
    if (total > CHUNK) {
        joined = PyObject_CallMethod(no_bytes, "join", "O", chunks);
        if (joined == NULL)
            return NULL;
        data = PyBytes_AS_STRING(joined);
        total = PyBytes_GET_SIZE(joined);
    }
    ssize_t sent;
    do {
        sent = send(fd, data, (size_t)total, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent < 0)
        sent = 0; /* EAGAIN, or an error that the next send will meet again */
    PyObject *left = sent == total ? Py_NewRef(no_bytes)
                                   : PyBytes_FromStringAndSize(data + sent, total - sent);
    Py_XDECREF(joined);
    return left;
}

static const uint64_t one = 1;

/* poll(epoll, milliseconds, waking) -> [(fd, events)]; a thread is woken when the lock is free */
static PyObject *poll_events(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    int epoll = count == 3 ? PyObject_AsFileDescriptor(args[0]) : -1;
    if (epoll < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "poll(epoll, milliseconds: int, waking: int)");
        return NULL;
    }
    long timeout = PyLong_AsLong(args[1]), waking = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    struct epoll_event events[EVENTS];
    ssize_t written = 0;
    int n;
    Py_BEGIN_ALLOW_THREADS
    if (waking >= 0)
        written = write((int)waking, &one, sizeof one);
    n = epoll_wait(epoll, events, EVENTS, (int)timeout);
    Py_END_ALLOW_THREADS
    if (n < 0 && errno == EINTR)
        n = PyErr_CheckSignals() ? -1 : 0;
    else if (n < 0 || written < 0)
        PyErr_SetFromErrno(PyExc_OSError), n = -1;
    PyObject *found = n < 0 ? NULL : PyList_New(n);
    for (int i = 0; found != NULL && i < n; i++) {
        PyObject *event = Py_BuildValue("iI", events[i].data.fd, events[i].events);
        if (event == NULL)
            Py_CLEAR(found);
        else
            PyList_SET_ITEM(found, i, event);
    }
    return found;
}

/* sleep(eventfd, telling): until it is woken; who is told can have the lock by then */
static PyObject *sleep_until_woken(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    long eventfd = count == 2 ? PyLong_AsLong(args[0]) : -1;
    long telling = eventfd < 0 ? -1 : PyLong_AsLong(args[1]);
    if (eventfd < 0 || PyErr_Occurred()) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "sleep(eventfd: int, telling: int)");
        return NULL;
    }
    uint64_t value;
    ssize_t done = 0;
    Py_BEGIN_ALLOW_THREADS
    if (telling >= 0)
        done = write((int)telling, &one, sizeof one);
    do {
        done = read((int)eventfd, &value, sizeof value);
    } while (done < 0 && errno == EINTR);
    Py_END_ALLOW_THREADS
    return done < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL,
     "Append the good packets of data, from start on, to packets; return where that stopped."},
    {"header", (PyCFunction)(void (*)(void))header, METH_FASTCALL,
     "The header of the packet that carries body under code."},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL,
     "Call the handlers of the packets that rest has and append their replies to out."},
    {"do_jobs", (PyCFunction)(void (*)(void))do_jobs, METH_FASTCALL,
     "Do a job and those behind it, as far as nothing unusual comes up."},
    {"done", (PyCFunction)(void (*)(void))call_done, METH_FASTCALL,
     "Tell a lane that its job is done."},
    {"settle", (PyCFunction)(void (*)(void))settle, METH_FASTCALL,
     "Settle the plain jobs that come first of the calls."},
    {"submit", (PyCFunction)(void (*)(void))submit, METH_FASTCALL,
     "Submit all packets as a job, if that is plain."},
    {"feed_from", (PyCFunction)(void (*)(void))feed_from, METH_FASTCALL,
     "Receive at most 64 KiB and feed them to the decoder; return the packets, None at the end."},
    {"poll", (PyCFunction)(void (*)(void))poll_events, METH_FASTCALL,
     "Wait for events of the epoll descriptor, behind a write to the eventfd waking, if it is none."},
    {"sleep", (PyCFunction)(void (*)(void))sleep_until_woken, METH_FASTCALL,
     "Wait for the eventfd, behind a write to the eventfd telling, if it is none."},
    {"transmit", (PyCFunction)(void (*)(void))transmit, METH_FASTCALL,
     "Send the chunks as one; return what the kernel did not take."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "ccserver._native", .m_size = -1, .m_methods = methods,
    .m_doc = "The steps that every packet takes, compiled."};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = NULL;
    make_crc_table();
    no_bytes = PyBytes_FromStringAndSize(NULL, 0);
    zlib_crc32 = imported("ccserver.core.checksum", "crc32");
    packet_too_long = imported("ccserver.errors", "PacketTooLong");
    nothing = PyList_New(0);
    PyObject *deque = imported("collections", "deque");
    deque_append = deque == NULL ? NULL : PyObject_GetAttrString(deque, "append");
    deque_popleft = deque == NULL ? NULL : PyObject_GetAttrString(deque, "popleft");
    Py_XDECREF(deque);
    if (no_bytes != NULL && zlib_crc32 != NULL && packet_too_long != NULL && nothing != NULL && deque_append != NULL
        && deque_popleft != NULL)
        module = PyModule_Create(&definition);
    done = module == NULL ? NULL : PyObject_GetAttrString(module, "done");
    if (done == NULL) {
        Py_CLEAR(module);
        Py_CLEAR(nothing);
        Py_CLEAR(deque_append);
        Py_CLEAR(deque_popleft);
        Py_CLEAR(no_bytes);
        Py_CLEAR(zlib_crc32);
        Py_CLEAR(packet_too_long);
    }
    return module;
}
