/* A connection's beginning: see net/intake.py and core/copying.py. */
#include "ccserver.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

static PyObject *socket_type; /* imported with the first connection */

/* accept(listening) -> (socket, (host, port)): of a client, which does not block; raises OSError */
PyObject *accept_one(PyObject *module, PyObject *listening) {
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
        errno = EADDRNOTAVAIL; /* for its errors are numbers of its own */
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
PyObject *another(PyObject *module, PyObject *object) {
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
