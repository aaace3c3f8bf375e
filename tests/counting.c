/* Counts what a process asks of the C library, and lets callgrind know when to count: preloaded
 * into the process of tests/costs.py, which is the only one that calls begin, apart and end. For
 * one thread. A call that is not named here is not counted, nor is a futex, which glibc makes
 * itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#if __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#else
#define CALLGRIND_START_INSTRUMENTATION
#define CALLGRIND_STOP_INSTRUMENTATION
#define CALLGRIND_TOGGLE_COLLECT
#define CALLGRIND_ZERO_STATS
#define CALLGRIND_DUMP_STATS_AT(name) (void)(name)
#endif

long allocations, system_calls; /* since begin */

static int begun, away;

#define COUNT(what) (what += begun && !away)

extern void *PyObject_CallNoArgs(void *callable);
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);

/* Callgrind is slow where it follows what happens, so it does it from begin to end only. */
void begin(void) {
    begun = 1;
    allocations = system_calls = 0;
    CALLGRIND_START_INSTRUMENTATION;
    CALLGRIND_ZERO_STATS;
    if (away)
        CALLGRIND_TOGGLE_COLLECT;
}

void end(const char *name) {
    begun = 0;
    CALLGRIND_DUMP_STATS_AT(name);
    if (away)
        CALLGRIND_TOGGLE_COLLECT;
    CALLGRIND_STOP_INSTRUMENTATION;
}

/* Call what is not to be counted; it may begin and end. */
void *apart(void *callable) {
    away = 1;
    if (begun)
        CALLGRIND_TOGGLE_COLLECT;
    void *result = PyObject_CallNoArgs(callable);
    if (begun)
        CALLGRIND_TOGGLE_COLLECT;
    away = 0;
    return result;
}

void *malloc(size_t size) {
    COUNT(allocations);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    COUNT(allocations);
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    COUNT(allocations);
    return __libc_realloc(old, size);
}

#define SYSTEM_CALL(type, name, parameters, ...)                                                  \
    type name parameters {                                                                        \
        static type(*real) parameters;                                                            \
        if (real == NULL)                                                                         \
            real = (type(*) parameters)dlsym(RTLD_NEXT, #name);                                   \
        COUNT(system_calls);                                                                      \
        return real(__VA_ARGS__);                                                                 \
    }

SYSTEM_CALL(ssize_t, read, (int fd, void *to, size_t size), fd, to, size)
SYSTEM_CALL(ssize_t, write, (int fd, const void *from, size_t size), fd, from, size)
SYSTEM_CALL(ssize_t, readv, (int fd, const struct iovec *to, int count), fd, to, count)
SYSTEM_CALL(ssize_t, writev, (int fd, const struct iovec *from, int count), fd, from, count)
SYSTEM_CALL(ssize_t, recv, (int fd, void *to, size_t size, int flags), fd, to, size, flags)
SYSTEM_CALL(ssize_t, send, (int fd, const void *from, size_t size, int flags),
            fd, from, size, flags)
SYSTEM_CALL(ssize_t, recvmsg, (int fd, struct msghdr *message, int flags), fd, message, flags)
SYSTEM_CALL(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags), fd, message, flags)
SYSTEM_CALL(int, setsockopt, (int fd, int level, int name, const void *value, socklen_t size),
            fd, level, name, value, size)
SYSTEM_CALL(int, getsockopt, (int fd, int level, int name, void *value, socklen_t *size),
            fd, level, name, value, size)
SYSTEM_CALL(int, accept4, (int fd, struct sockaddr *address, socklen_t *size, int flags),
            fd, address, size, flags)
SYSTEM_CALL(int, getsockname, (int fd, struct sockaddr *address, socklen_t *size),
            fd, address, size)
SYSTEM_CALL(int, getpeername, (int fd, struct sockaddr *address, socklen_t *size),
            fd, address, size)
SYSTEM_CALL(int, ioctl, (int fd, unsigned long what, void *argument), fd, what, argument)
SYSTEM_CALL(int, fcntl, (int fd, int what, void *argument), fd, what, argument)
SYSTEM_CALL(int, shutdown, (int fd, int how), fd, how)
SYSTEM_CALL(int, close, (int fd), fd)
SYSTEM_CALL(int, epoll_ctl, (int poller, int what, int fd, struct epoll_event *event),
            poller, what, fd, event)
SYSTEM_CALL(int, epoll_wait, (int poller, struct epoll_event *events, int most, int timeout),
            poller, events, most, timeout)
SYSTEM_CALL(int, eventfd_read, (int fd, eventfd_t *value), fd, value)
SYSTEM_CALL(int, eventfd_write, (int fd, eventfd_t value), fd, value)
