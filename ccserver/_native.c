/* The optional compiled part: the four steps that every packet takes, as ccserver/core/framing.py
 * and ccserver/net/transport.py have them in Python. Python stays the reference: both do the same
 * to the same input, which the tests hold. All are called with the interpreter lock. recv and send
 * keep it: they do not block, and giving it up for them costs more than they take. zlib gives it
 * up for bodies above 5 KiB, so nothing that another thread could change is held across a CRC. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

enum { HEADER = 8, LONGEST = 0xFFFF, CHUNK = 65536, SMALL = 256 };

static uint32_t crc_table[8][256];
static PyObject *zlib_crc32;     /* for longer bodies: it knows the processor better */
static PyObject *packet_too_long;
static PyObject *no_bytes;
static char buffer[CHUNK];       /* one is enough: it is used with the interpreter lock held */

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

static uint32_t get32(const unsigned char *p) {
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* cut(data, start, max_length, packets) -> stop */
static PyObject *cut(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 4 || !PyBytes_CheckExact(args[0]) || !PyList_CheckExact(args[3])) {
        PyErr_SetString(PyExc_TypeError, "cut(data: bytes, start: int, max_length: int, packets: list)");
        return NULL;
    }
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(args[0]);
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]);
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), longest = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (start < 0) {
        PyErr_SetString(PyExc_ValueError, "start is negative");
        return NULL;
    }
    Py_ssize_t before = PyList_GET_SIZE(args[3]);
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
        int lost = PyList_Append(args[3], packet);
        Py_DECREF(packet);
        if (lost)
            goto failed;
        start += length;
    }
    return PyLong_FromSsize_t(start);

failed: /* what was appended goes again, for the caller does not learn where it stopped */
    PyList_SetSlice(args[3], before, PyList_GET_SIZE(args[3]), NULL);
    return NULL;
}

/* header(code, body) -> bytes */
static PyObject *header(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2 || !PyLong_Check(args[0]) || !PyBytes_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "header(code: int, body: bytes)");
        return NULL;
    }
    Py_ssize_t length = HEADER + PyBytes_GET_SIZE(args[1]);
    if (length > LONGEST) {
        PyErr_Format(packet_too_long, "a body of %zd bytes does not fit into a packet of %d",
                     length - HEADER, LONGEST);
        return NULL;
    }
    long code = PyLong_AsLong(args[0]);
    if (code < 0 || code > 0xFFFF) {
        if (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%S is no message code", args[0]);
        return NULL;
    }
    uint32_t crc;
    if (crc_of(args[1], &crc) < 0)
        return NULL;
    unsigned char h[HEADER] = {
        (unsigned char)(length >> 8), (unsigned char)length, (unsigned char)(code >> 8),
        (unsigned char)code, (unsigned char)(crc >> 24), (unsigned char)(crc >> 16),
        (unsigned char)(crc >> 8), (unsigned char)crc,
    };
    return PyBytes_FromStringAndSize((const char *)h, HEADER);
}

/* receive(socket) -> bytes; raises OSError */
static PyObject *receive(PyObject *module, PyObject *socket) {
    (void)module;
    int fd = PyObject_AsFileDescriptor(socket);
    if (fd < 0)
        return NULL;
    ssize_t n;
    do {
        n = recv(fd, buffer, CHUNK, MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyBytes_FromStringAndSize(buffer, n);
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
            memcpy(buffer + total, PyBytes_AS_STRING(chunk), (size_t)n);
        total += n;
    }
    const char *data = buffer;
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

static PyMethodDef methods[] = {
    {"cut", (PyCFunction)(void (*)(void))cut, METH_FASTCALL,
     "Append the good packets of data, from start on, to packets; return where that stopped."},
    {"header", (PyCFunction)(void (*)(void))header, METH_FASTCALL,
     "The header of the packet that carries body under code."},
    {"receive", receive, METH_O, "What there is to be read, at most 64 KiB."},
    {"transmit", (PyCFunction)(void (*)(void))transmit, METH_FASTCALL,
     "Send the chunks as one; return what the kernel did not take."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "ccserver._native", .m_size = -1, .m_methods = methods,
    .m_doc = "The steps that every packet takes, compiled."};

/* An attribute of a module that is imported for it. */
static PyObject *imported(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return NULL;
    PyObject *value = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return value;
}

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = NULL;
    make_crc_table();
    no_bytes = PyBytes_FromStringAndSize(NULL, 0);
    zlib_crc32 = imported("zlib", "crc32");
    packet_too_long = imported("ccserver.errors", "PacketTooLong");
    if (no_bytes != NULL && zlib_crc32 != NULL && packet_too_long != NULL)
        module = PyModule_Create(&definition);
    if (module == NULL) {
        Py_CLEAR(no_bytes);
        Py_CLEAR(zlib_crc32);
        Py_CLEAR(packet_too_long);
    }
    return module;
}
