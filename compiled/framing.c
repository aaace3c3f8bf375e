/* Bytes into packets and back: see core/framing.py. */
#include "ccserver.h"
#include <errno.h>
#include <sys/socket.h>

static PyObject *packet_too_long, *refusal;
static _Thread_local char buffer[LONG_READ + LONGEST]; /* of what is received */

static void put16(unsigned char *p, uint32_t v) {
    p[0] = (unsigned char)(v >> 8);
    p[1] = (unsigned char)v;
}

static uint32_t get32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* Append the refusal of a packet, whose header that is, for its checksum; 0, or -1. */
static int refuse(PyObject *refused, const unsigned char *p, Py_ssize_t position) {
    if (refusal == NULL && (refusal = imported("ccserver.core.framing", "Refusal")) == NULL)
        return -1;
    PyTypeObject *type = (PyTypeObject *)refusal;
    PyObject *made = type->tp_alloc(type, 5); /* as PyTuple_New, of this class of tuples */
    if (made == NULL)
        return -1;
    PyTuple_SET_ITEM(made, 0, PyLong_FromLong((long)p[2] << 8 | p[3]));
    PyTuple_SET_ITEM(made, 1, PyLong_FromSsize_t(position));
    PyTuple_SET_ITEM(made, 2, PyLong_FromLong((long)p[0] << 8 | p[1]));
    PyTuple_SET_ITEM(made, 3, PyLong_FromUnsignedLong(get32(p + 4)));
    PyTuple_SET_ITEM(made, 4, Py_NewRef(Py_None));
    int failed = PyErr_Occurred() || PyList_Append(refused, made) < 0;
    Py_DECREF(made);
    return failed ? -1 : 0;
}

/* Append the good packets of so many bytes to the list, and those with a wrong checksum to refused, where
 * that is not NULL; where it stopped, or -1. */
static Py_ssize_t cut_bytes(const unsigned char *data, Py_ssize_t start, Py_ssize_t size,
                            Py_ssize_t longest, PyObject *packets, PyObject *refused) {
    Py_ssize_t before = PyList_GET_SIZE(packets), known = refused == NULL ? 0 : PyList_GET_SIZE(refused);
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
            if (refused == NULL)
                break;
            if (refuse(refused, p, PyList_GET_SIZE(packets) + PyList_GET_SIZE(refused)) < 0)
                goto failed;
            start += length;
            continue;
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
    if (refused != NULL)
        PyList_SetSlice(refused, known, PyList_GET_SIZE(refused), NULL);
    return -1;
}

/* cut(data, start, max_length, packets, refused) -> stop */
PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 5 || !PyBytes_CheckExact(args[0]) || !PyList_CheckExact(args[3])
        || !(PyList_CheckExact(args[4]) || args[4] == Py_None)) {
        PyErr_SetString(PyExc_TypeError, "cut(data: bytes, start: int, max_length: int, packets: list, "
                                         "refused: list | None)");
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
                      PyBytes_GET_SIZE(args[0]), longest, args[3], args[4] == Py_None ? NULL : args[4]);
    return start < 0 ? NULL : PyLong_FromSsize_t(start);
}

/* Write the header of the packet that carries body under code; 0, or -1 with an exception set. */
static int make_header(PyObject *code_object, PyObject *body, unsigned char *h) {
    if (!PyBytes_Check(body)) {
        PyErr_Format(PyExc_TypeError, "a body is bytes, not %s", Py_TYPE(body)->tp_name);
        return -1;
    }
    Py_ssize_t length = HEADER + PyBytes_GET_SIZE(body);
    if (length > LONGEST) {
        PyErr_Format(packet_too_long, "a body of %zd bytes does not fit into a packet of %d",
                     length - HEADER, LONGEST);
        return -1;
    }
    long code = PyLong_AsLong(code_object); /* of whatever has an __index__ */
    if (code < 0 || code > 0xFFFF) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError)
            || PyErr_ExceptionMatches(PyExc_TypeError))
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
PyObject *header(PyObject *module, PyObject *const *args, Py_ssize_t count) {
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
Py_ssize_t append(PyObject *out, PyObject *code, PyObject *body) {
    unsigned char h[HEADER];
    if (make_header(code, body, h) < 0)
        return -1;
    Py_ssize_t n = PyBytes_GET_SIZE(body), copied = n <= WHOLE ? n : 0;
    PyObject *piece = PyBytes_FromStringAndSize(NULL, HEADER + copied);
    if (piece == NULL)
        return -1;
    memcpy(PyBytes_AS_STRING(piece), h, HEADER);
    memcpy(PyBytes_AS_STRING(piece) + HEADER, PyBytes_AS_STRING(body), (size_t)copied);
    Py_ssize_t before = PyList_GET_SIZE(out);
    int failed = PyList_Append(out, piece) || (copied < n && PyList_Append(out, body));
    Py_DECREF(piece);
    if (failed) /* a header alone would make a body of what follows */
        PyList_SetSlice(out, before, PyList_GET_SIZE(out), NULL);
    return failed ? -1 : HEADER + n;
}

/* Put what is known of an incomplete packet into the buffer; how many bytes, or -1. */
static Py_ssize_t begin(PyObject *decoder) {
    PyObject *pieces = get(&decoder_chunks, decoder);
    Py_ssize_t have = 0;
    for (Py_ssize_t i = 0; pieces != NULL && pieces != Py_None && i < PyList_GET_SIZE(pieces); i++) {
        PyObject *piece = PyList_GET_ITEM(pieces, i);
        memcpy(buffer + have, PyBytes_AS_STRING(piece), (size_t)PyBytes_GET_SIZE(piece));
        have += PyBytes_GET_SIZE(piece);
    }
    Py_XDECREF(pieces);
    return pieces == NULL ? -1 : have;
}

/* Whether the packets that end in the buffer's last n bytes are long; at: where the next one begins. */
static int are_long(Py_ssize_t *at, Py_ssize_t end, Py_ssize_t n, Py_ssize_t longest) {
    for (Py_ssize_t count = 0, length; end - *at >= HEADER; *at += length) {
        const unsigned char *p = (const unsigned char *)buffer + *at;
        length = (Py_ssize_t)p[0] << 8 | p[1];
        if (length < HEADER || length > longest)
            return 0;
        if (length > end - *at)
            break;
        if (n <= LONG * ++count)
            return 0;
    }
    return 1;
}

/* Receive so many bytes at most behind those that the buffer has, and go on behind a chunk only where
 * its packets are long; as recv(2). */
static ssize_t fill(int fd, Py_ssize_t have, Py_ssize_t most, Py_ssize_t longest) {
    ssize_t n, total = 0;
    Py_ssize_t at = 0;
    do {
        do {
            n = recv(fd, buffer + have + total, (size_t)Py_MIN(most - total, CHUNK), MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
        if (n <= 0)
            return total ? total : n; /* the end is there the next time, too */
        total += n;
    } while (n == CHUNK && total < most && are_long(&at, have + total, n, longest));
    return total;
}

/* Feed the decoder what can be received, so many bytes at most: the packets, None at the end of the
 * stream, or NULL. */
PyObject *receive(int fd, PyObject *decoder, Py_ssize_t most) {
    Py_ssize_t have = begin(decoder), longest = number(&decoder_max_length, decoder);
    Py_ssize_t wanted = number(&decoder_need, decoder);
    if (PyErr_Occurred())
        return NULL;
    ssize_t n = fill(fd, have, most, longest);
    if (n <= 0)
        return n < 0 ? PyErr_SetFromErrno(PyExc_OSError) : Py_NewRef(Py_None);
    Py_ssize_t size = have + n;
    if ((have && size < wanted) || holds(&decoder_closed, decoder))
        return PyErr_Occurred() ? NULL : PyObject_CallMethod(decoder, "feed", "y#", buffer + have, n);
    PyObject *packets = PyList_New(0);
    Py_ssize_t before = n < CHUNK ? 0 : number(&decoder_packets, decoder);
    if (packets == NULL || PyErr_Occurred() || (have && set(&decoder_chunks, decoder, Py_NewRef(Py_None)) < 0))
        goto failed;
    Py_ssize_t start = cut_bytes((const unsigned char *)buffer, 0, size, longest, packets, NULL);
    if (start < 0 || add(&decoder_bytes, decoder, n) < 0)
        goto failed;
    if (start < size) {
        PyObject *seen = PyObject_CallMethod(decoder, "_examine", "y#inOi", buffer + start, size - start,
                                             0, longest, packets, have && !start);
        if (seen == NULL)
            goto failed;
        Py_DECREF(seen);
    }
    if (add(&decoder_packets, decoder, PyList_GET_SIZE(packets)) < 0
        || set(&decoder_fed, decoder, PyLong_FromSsize_t(n)) < 0)
        goto failed;
    Py_ssize_t count = n < CHUNK ? 0 : number(&decoder_packets, decoder) - before;
    if (n < CHUNK || set(&decoder_long, decoder, PyBool_FromLong(n > LONG * count)) == 0)
        return packets;
failed:
    Py_XDECREF(packets);
    return NULL;
}

/* feed_from(socket, decoder, size) -> packets, or None at the end of the stream; raises OSError */
PyObject *feed_from(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    Py_ssize_t most = count == 3 ? PyLong_AsSsize_t(args[2]) : -1;
    int fd = 0 < most && most <= LONG_READ ? PyObject_AsFileDescriptor(args[0]) : -1;
    if (fd < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "feed_from(socket, decoder, size: int)");
        return NULL;
    }
    return receive(fd, args[1], most);
}

/* What the others here need, at the import; 0, or -1. */
int prepare_framing(void) {
    packet_too_long = imported("ccserver.errors", "PacketTooLong");
    return packet_too_long == NULL ? -1 : 0;
}
