/* Attributes that classes keep in slots: named after whose they are, and looked up once. */
#ifndef SLOTS_H
#define SLOTS_H
#include <Python.h>
#include <structmember.h>

/* An attribute that a class keeps in a slot, whose place is looked up once. */
struct slot {
    const char *name;
    PyTypeObject *type;
    Py_ssize_t offset;
};

/* Of decoder, session, handler, lane, peer, dispatch, slices, pool, its queue, thread, transport and reactor. */
#define SLOTS(S) \
    S(decoder_bytes, "bytes") S(decoder_chunks, "_chunks") S(decoder_closed, "closed")                \
    S(decoder_fed, "fed") S(decoder_long, "long") S(decoder_max_length, "_max_length")                \
    S(decoder_need, "_need") S(decoder_noted, "noted") S(decoder_packets, "packets")                  \
    S(session_bytes_out, "bytes_out") S(session_close_reason, "close_reason")                         \
    S(session_decoder, "decoder") S(session_excess, "excess") S(session_packets_out, "packets_out")   \
    S(handler_decode, "decode") S(handler_function, "function") S(handler_in_thread, "in_thread")     \
    S(lane_answered, "_answered") S(lane_busy, "_busy") S(lane_dispatch, "_dispatch")                 \
    S(lane_ending, "_ending") S(lane_halted, "halted") S(lane_hold, "_hold") S(lane_job, "_job")      \
    S(lane_out, "out") S(lane_outbox, "_outbox") S(lane_paused, "_paused") S(lane_peer, "_peer")      \
    S(lane_pending, "_pending") S(lane_running, "_running") S(lane_session, "session")                \
    S(lane_silent, "_silent")                                                                         \
    S(peer_transport, "transport")                                                                    \
    S(dispatch_handlers, "handlers") S(dispatch_pool, "pool") S(dispatch_slices, "slices")            \
    S(dispatch_threaded, "threaded")                                                                  \
    S(slices_seconds, "seconds")                                                                      \
    S(pool_calls, "_calls") S(pool_flush_later, "_flush_later") S(pool_gathered, "_gathered")         \
    S(pool_handlers, "handlers") S(pool_limit, "limit") S(pool_looking, "_looking")                   \
    S(pool_queue, "_jobs") S(pool_slow, "slow") S(pool_unfinished, "unfinished")                      \
    S(queue_jobs, "_jobs")                                                                            \
    S(thread_began, "began") S(thread_flushed, "_flushed") S(thread_lane, "lane")                     \
    S(thread_out, "_out") S(thread_packets, "_packets") S(thread_pool, "_pool")                       \
    S(thread_rest, "_rest") S(thread_since, "since") S(thread_untold, "_untold")                      \
    S(transport_behind, "_tempDataLen") S(transport_connected, "connected")                           \
    S(transport_corked, "_corked") S(transport_data_buffer, "dataBuffer")                             \
    S(transport_decoder, "_decoder") S(transport_fd, "_fd") S(transport_flush_later, "_flush_later")  \
    S(transport_held_back, "_held_back") S(transport_lane, "_lane") S(transport_limited, "_limited")  \
    S(transport_no_writes, "_writeDisconnected") S(transport_producer, "producer")                    \
    S(transport_protocol, "protocol") S(transport_streaming, "streamingProducer")                     \
    S(transport_tls, "TLS") S(transport_written, "_written")                                          \
    S(reactor_just_stopped, "_justStopped") S(reactor_new_calls, "_newTimedCalls")                    \
    S(reactor_poller, "_poller") S(reactor_replying, "_replying")                                     \
    S(reactor_selectables, "_selectables") S(reactor_started, "_started")                             \
    S(reactor_thread_calls, "threadCallQueue") S(reactor_timed_calls, "_pendingTimedCalls")           \
    S(reactor_unflushed, "_unflushed")

#define DECLARE(place, attribute) extern __attribute__((visibility("hidden"))) struct slot place;
SLOTS(DECLARE)

/* Look up where objects of that class keep the attribute; 0: not in a slot. */
static inline int find(struct slot *slot, PyTypeObject *type) {
    PyObject *found = PyObject_GetAttrString((PyObject *)type, slot->name);
    if (found == NULL || !Py_IS_TYPE(found, &PyMemberDescr_Type)) {
        Py_XDECREF(found);
        PyErr_Clear();
        return 0;
    }
    slot->offset = ((PyMemberDescrObject *)found)->d_member->offset;
    Py_DECREF(found);
    Py_INCREF(type); /* so that no other one gets its address */
    Py_XSETREF(slot->type, type);
    return 1;
}

/* Where the object keeps the attribute; NULL, with no exception set: not in a slot of its class. */
static inline PyObject **place_of(struct slot *slot, PyObject *object) {
    if (Py_TYPE(object) != slot->type && !find(slot, Py_TYPE(object)))
        return NULL;
    return (PyObject **)((char *)object + slot->offset);
}

static inline PyObject *get(struct slot *slot, PyObject *object) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place != NULL ? Py_NewRef(*place)
                                           : PyObject_GetAttrString(object, slot->name);
}

/* Set the attribute to value, which is NULL where it could not be made; 0, or -1. */
static inline int set(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    if (value != NULL && place != NULL) {
        Py_XSETREF(*place, value);
        return 0;
    }
    int failed = value == NULL || PyObject_SetAttrString(object, slot->name, value) < 0;
    Py_XDECREF(value);
    return failed ? -1 : 0;
}

/* The number that the attribute is; -1, perhaps with an exception set, if it is none. */
static inline Py_ssize_t number(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_ssize_t n = value == NULL ? -1 : PyLong_AsSsize_t(value);
    Py_XDECREF(value);
    return n;
}

/* The digits of a Python int, and how many; none of one that is not above 0. */
static inline digit *digits_of(PyObject *value, Py_ssize_t *count) {
#if PY_VERSION_HEX < 0x030C0000
    *count = Py_SIZE(value);
    return ((PyLongObject *)value)->ob_digit;
#else
    uintptr_t tag = ((PyLongObject *)value)->long_value.lv_tag;
    *count = tag & 3 ? 0 : (Py_ssize_t)(tag >> 3);
    return ((PyLongObject *)value)->long_value.ob_digit;
#endif
}

/* Add to a Python int that nobody else has, if it stays as long as it is; 0: to none like that. To make
 * another one takes 170 instructions, and there are four for a packet. */
static inline int add_in_place(PyObject **place, Py_ssize_t n) {
#ifndef Py_GIL_DISABLED
    if (place != NULL && *place != NULL && PyLong_CheckExact(*place) && Py_REFCNT(*place) == 1 && n >= 0) {
        Py_ssize_t count;
        digit *digits = digits_of(*place, &count);
        if (count == 1 || count == 2) {
            int64_t sum = digits[0] + (count == 2 ? (int64_t)digits[1] << PyLong_SHIFT : 0) + n;
            if (sum >> (PyLong_SHIFT * count) == 0) {
                digits[0] = (digit)(sum & PyLong_MASK);
                if (count == 2)
                    digits[1] = (digit)(sum >> PyLong_SHIFT);
                return 1;
            }
        }
    }
#endif
    return 0;
}

/* Add to the number that the attribute is, also to one below 0; 0, or -1 with an exception set. */
static inline int add(struct slot *slot, PyObject *object, Py_ssize_t n) {
    if (add_in_place(place_of(slot, object), n))
        return 0;
    Py_ssize_t before = number(slot, object);
    return before == -1 && PyErr_Occurred() ? -1 : set(slot, object, PyLong_FromSsize_t(before + n));
}

/* Whether the attribute is this very value, in a slot. */
static inline int is(struct slot *slot, PyObject *object, PyObject *value) {
    PyObject **place = place_of(slot, object);
    return place != NULL && *place == value;
}

/* The seconds that the attribute is; -1 with an exception set if it is none. */
static inline double time_of(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    double time = value == NULL ? -1 : PyFloat_AsDouble(value);
    Py_XDECREF(value);
    return time;
}

/* Whether the attribute is True; also if it cannot be said, with an exception set. */
static inline int holds(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_XDECREF(value);
    return value == NULL || value == Py_True;
}

/* Whether the attribute is not None; also if it cannot be said, with an exception set. */
static inline int has(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    Py_XDECREF(value);
    return value != Py_None;
}

/* Whether the attribute is true; also if it cannot be said, with an exception set. */
static inline int truth(struct slot *slot, PyObject *object) {
    PyObject *value = get(slot, object);
    int answer = value == NULL ? 1 : value == Py_False || value == Py_None ? 0 : PyObject_IsTrue(value);
    Py_XDECREF(value);
    return answer != 0;
}

#endif
