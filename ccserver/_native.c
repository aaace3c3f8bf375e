/* The optional compiled part: the steps that every packet takes, as core/framing.py, net/transport.py,
 * net/dispatch.py and net/jobs.py have them in Python, and some of a connection, as net/intake.py and
 * core/copying.py have them. Python stays the reference: both do the same
 * to the same input, which the tests hold. All are called with the interpreter lock. recv and send
 * keep it: they do not block, and giving it up for them costs more than they take. zlib gives it
 * up for bodies above 5 KiB, so nothing that another thread could change is held across a CRC. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 8, LONGEST = 0xFFFF, CHUNK = 65536, SMALL = 256, WHOLE = 1024, MARK = 65536,
       EVENTS = 128, LARGE = 4096, COPIED = 8192, PIECES = 128 };

static uint32_t crc_table[8][256];
static PyObject *zlib_crc32;     /* for longer bodies: it knows the processor better */
static PyObject *packet_too_long;
static PyObject *no_bytes, *no_list; /* never appended to */
static _Thread_local char buffer[CHUNK + LONGEST]; /* of what is received */
static _Thread_local char outgoing[COPIED]; /* another one: a finalizer may send while we cut */

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

/* Where the object keeps the attribute; NULL, with no exception set: not in a slot of its class. */
static PyObject **place_of(struct slot *slot, PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    if (type != slot->type) {
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
    }
    return (PyObject **)((char *)object + slot->offset);
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
    double deadline = PyFloat_AsDouble(args[6]), most = PyFloat_AsDouble(args[7]), before = threaded ? seconds() : 0;
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

/* Feed the decoder what can be received: the packets, None at the end of the stream, or NULL. */
static PyObject *receive(int fd, PyObject *decoder) {
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
    Py_ssize_t count = PyList_GET_SIZE(packets);
    if (add(&packets_in, decoder, count) == 0 && (count || set(&little, decoder, PyLong_FromSsize_t(n)) == 0))
        return packets;
failed:
    Py_XDECREF(packets);
    return NULL;
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
    return receive(fd, args[1]);
}

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
static PyObject *transmit(PyObject *module, PyObject *const *args, Py_ssize_t count) {
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
static struct slot session_of = {.name = "session"}, dispatch_of = {.name = "_dispatch"},
    handlers_of = {.name = "handlers"}, busy = {.name = "_busy"}, outbox = {.name = "_outbox"},
    running = {.name = "_running"}, pending = {.name = "_pending"}, ending = {.name = "_ending"},
    out_of = {.name = "out"}, noted = {.name = "noted"}, excess = {.name = "excess"},
    close_reason = {.name = "close_reason"};

/* Whether the attribute is there and not None; also if it cannot be said, with an exception set. */
static int has(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_XDECREF(value);
    return value != Py_None;
}

/* Whether the attribute is true; also if it cannot be said, with an exception set. */
static int truth(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    int answer = value == NULL ? 1 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return answer != 0;
}

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
        if (left != NULL && PyBytes_GET_SIZE(left) == 0)
            done = set(&corked, transport, Py_NewRef(Py_None)) < 0 ? -1 : 1;
        else if (left != NULL) /* the next send meets what has stopped this one */
            done = set(&corked, transport, Py_BuildValue("[O]", left)) < 0 ? -1 : 0;
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

/* flush(flushables, kind): takes away those, transports of that class, that have nothing left to flush */
static PyObject *flush_all(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyList_CheckExact(args[0]) || !PyType_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "flush(flushables: list, kind: type)");
        return NULL;
    }
    Py_ssize_t kept = 0, given = PyList_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < given; i++) {
        PyObject *flushable = PyList_GET_ITEM(args[0], i);
        int done = PyObject_TypeCheck(flushable, (PyTypeObject *)args[1]) ? flush_transport(flushable) : 0;
        if (done < 0) { /* no memory; what is behind it is flushed all the same */
            PyErr_WriteUnraisable(flushable);
            PyObject *told = PyObject_CallMethod(flushable, "flush_failed", NULL);
            if (told == NULL)
                PyErr_WriteUnraisable(flushable);
            Py_XDECREF(told);
        } else if (done == 0 && keep(args[0], i, &kept) < 0)
            return NULL;
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

/* Whether the handler of the first packet can be called here and now. */
static int at_leisure(PyObject *lane, PyObject *handlers, PyObject *packets) {
    if (holds(&busy, lane) || has(&outbox, lane) || holds(&running, lane) || holds(&halted, lane)
        || has(&pending, lane) || holds(&ending, lane) || !PyDict_CheckExact(handlers))
        return 0;
    PyObject *code = PyTuple_GET_ITEM(PyList_GET_ITEM(packets, 0), 0);
    PyObject *handler = PyDict_GetItemWithError(handlers, code);
    return handler != NULL && !holds(&in_thread, handler);
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
    if (at_leisure(lane, handlers, packets)) {
        out = take(lane, session, handlers, packets);
        if (out != NULL && (holds(&noted, decoder) || has(&close_reason, session)))
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

/* Read from a transport that has a decoder, and answer, as DirectServer.doRead does: a new reference
 * to what that returns, or NULL. */
static PyObject *serve_transport(PyObject *transport, PyObject *decoder, int fd, PyObject *unflushed) {
    PyObject *packets = receive(fd, decoder);
    if (packets == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_OSError))
            return NULL;
        int nothing = PyErr_ExceptionMatches(PyExc_BlockingIOError);
        PyErr_Clear();
        return nothing ? Py_NewRef(Py_None) : imported("twisted.internet.main", "CONNECTION_LOST");
    }
    if (packets == Py_None) {
        Py_DECREF(packets);
        return imported("twisted.internet.main", "CONNECTION_DONE");
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
static PyObject *serve(PyObject *module, PyObject *const *args, Py_ssize_t count) {
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

static PyObject *socket_type; /* imported with the first connection */

/* accept(listening) -> (socket, (host, port)): of a client, which does not block; raises OSError */
static PyObject *accept_one(PyObject *module, PyObject *listening) {
    (void)module;
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        struct sockaddr_storage all;
    } address;
    socklen_t size = sizeof address;
    char host[NI_MAXHOST];
    int from = PyObject_AsFileDescriptor(listening);
    if (from < 0 || (socket_type == NULL && (socket_type = imported("socket", "SocketType")) == NULL))
        return NULL;
    int fd = accept4(from, &address.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    int family = address.any.sa_family, port = 0;
    const char *name = NULL;
    if (family == AF_INET) {
        port = ntohs(address.v4.sin_port);
        name = inet_ntop(AF_INET, &address.v4.sin_addr, host, sizeof host);
    } else if (family == AF_INET6) { /* which may have a scope */
        port = ntohs(address.v6.sin6_port);
        name = getnameinfo(&address.any, size, host, sizeof host, NULL, 0, NI_NUMERICHOST) == 0 ? host : NULL;
    } else
        errno = EAFNOSUPPORT;
    if (name == NULL)
        PyErr_SetFromErrno(PyExc_OSError);
    /* told the type, it does not ask the kernel whether it blocks, nor tell it to */
    PyObject *made = name == NULL ? NULL : PyObject_CallFunction(socket_type, "iiii", family,
                                                                 SOCK_STREAM | SOCK_NONBLOCK, 0, fd);
    if (made == NULL)
        close(fd);
    return made == NULL ? NULL : Py_BuildValue("(N(si))", made, name, port);
}

/* another(object) -> an object of its class, with what it has in its slots, and no attributes else */
static PyObject *another(PyObject *module, PyObject *object) {
    (void)module;
    PyTypeObject *type = Py_TYPE(object), *base = type;
    const Py_ssize_t step = sizeof(PyObject *);
    /* behind its head there are slots, and perhaps a place for weak references and one for a dict */
    Py_ssize_t size = (Py_ssize_t)sizeof(PyObject) + step * (type->tp_weaklistoffset > 0)
                      + step * (type->tp_dictoffset > 0);
    for (; PyType_HasFeature(base, Py_TPFLAGS_HEAPTYPE); base = base->tp_base) {
        PyObject *slots = ((PyHeapTypeObject *)base)->ht_slots;
        size += slots == NULL ? 0 : step * PyTuple_GET_SIZE(slots);
    }
    if (base != &PyBaseObject_Type || size != type->tp_basicsize) {
        PyErr_SetString(PyExc_TypeError, "another(object): it is not made of slots");
        return NULL;
    }
    PyObject *made = type->tp_alloc(type, 0);
    if (made == NULL)
        return NULL;
    for (Py_ssize_t at = sizeof(PyObject); at < size; at += step)
        if (at != type->tp_weaklistoffset && at != type->tp_dictoffset)
            *(PyObject **)((char *)made + at) = Py_XNewRef(*(PyObject **)((char *)object + at));
    return made;
}

static PyMethodDef methods[] = {
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL,
     "Append the good packets of data, from start on, to packets; return where that stopped."},
    {"header", (PyCFunction)(void (*)(void))header, METH_FASTCALL,
     "The header of the packet that carries body under code."},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL,
     "Call the handlers of the packets that rest has and append their replies to out."},
    {"feed_from", (PyCFunction)(void (*)(void))feed_from, METH_FASTCALL,
     "Receive at most 64 KiB and feed them to the decoder; return the packets, None at the end."},
    {"poll", (PyCFunction)(void (*)(void))poll_events, METH_FASTCALL,
     "Wait for events of the epoll descriptor, behind a write to the eventfd waking, if it is none."},
    {"sleep", (PyCFunction)(void (*)(void))sleep_until_woken, METH_FASTCALL,
     "Wait for the eventfd, behind a write to the eventfd telling, if it is none."},
    {"flush", (PyCFunction)(void (*)(void))flush_all, METH_FASTCALL,
     "Flush the transports among what is to be flushed, and leave the others."},
    {"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL,
     "Read from the transports that are readable, and answer; leave the other events."},
    {"transmit", (PyCFunction)(void (*)(void))transmit, METH_FASTCALL,
     "Send the chunks as one; return what the kernel did not take."},
    {"another", another, METH_O, "Make an object of the same class, with the same in its slots."},
    {"accept", accept_one, METH_O, "Accept a connection; return its socket and the client's address."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "ccserver._native", .m_size = -1, .m_methods = methods,
    .m_doc = "The steps that every packet takes, compiled."};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = NULL;
    make_crc_table();
    no_bytes = PyBytes_FromStringAndSize(NULL, 0);
    no_list = PyList_New(0);
    zlib_crc32 = imported("ccserver.core.checksum", "crc32");
    packet_too_long = imported("ccserver.errors", "PacketTooLong");
    if (no_bytes != NULL && no_list != NULL && zlib_crc32 != NULL && packet_too_long != NULL)
        module = PyModule_Create(&definition);
    if (module == NULL) {
        Py_CLEAR(no_bytes);
        Py_CLEAR(no_list);
        Py_CLEAR(zlib_crc32);
        Py_CLEAR(packet_too_long);
    }
    return module;
}
