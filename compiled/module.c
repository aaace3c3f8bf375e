/* What Python can call. */
#include "ccserver.h"

PyObject *no_bytes, *no_list;

#define DEFINE(place, attribute) struct slot place = {.name = attribute};
SLOTS(DEFINE)

/* An attribute of a module that is imported for it. */
PyObject *imported(const char *module_name, const char *name) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (module == NULL)
        return NULL;
    PyObject *value = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return value;
}

/* The exception that is set, and is not any more. */
PyObject *raised(void) {
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
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
     "Receive at most so many bytes and feed them to the decoder; return the packets, None at the end."},
    {"sleep", (PyCFunction)(void (*)(void))sleep_until_woken, METH_FASTCALL,
     "Wait for the eventfd, behind a write to the eventfd telling, if it is none."},
    {"flush", (PyCFunction)(void (*)(void))flush_all, METH_FASTCALL,
     "Flush the transports among what is to be flushed, and leave the others."},
    {"turn", (PyCFunction)(void (*)(void))turn, METH_FASTCALL,
     "Wait for events, read from the transports that are readable, and answer; return the others."},
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
    no_bytes = PyBytes_FromStringAndSize(NULL, 0);
    no_list = PyList_New(0);
    PyObject *module = no_bytes == NULL || no_list == NULL ? NULL : PyModule_Create(&definition);
    if (module != NULL && (prepare_checksum(module) < 0 || prepare_framing() < 0 || prepare_threads(module) < 0
                           || prepare_turn() < 0))
        Py_CLEAR(module);
    return module;
}
