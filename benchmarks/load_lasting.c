/* Connections that last, under a closed load (a packet goes when a reply has come) or an open one
 * (packets go when they are due). What a socket does not take is kept as slot numbers and made
 * again when it takes more: a packet in flight costs some 20 bytes here, however long its body is. */
#define _GNU_SOURCE
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { CHUNK = 1 << 17, CHECK_EVERY = 100000000 };

static int epoll_fd;
static struct conn *conns;
static uint8_t *outgoing, *incoming;
static uint32_t *freed;          /* slots answered by the read at hand */
static uint32_t packets_a_send;
static uint64_t total_in_flight, budget, deadline;

static void watch(struct conn *c, int operation, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) fail("epoll_ctl: %s", strerror(errno));
}

static void enqueue(struct conn *c, uint32_t index, uint64_t due_at, uint64_t now) {
    uint32_t end = c->queue_head + c->queue_len++;
    c->queue[end < (uint32_t)opt.depth ? end : end - (uint32_t)opt.depth] = index;
    c->slots[index].in_flight = 1;
    c->slots[index].due_at = due_at;
    if (!c->in_flight++) c->active_at = now;
    total_in_flight++;
}

static void transmit(struct conn *c) {
    while (c->queue_len) {
        uint32_t n = c->queue_len < packets_a_send ? c->queue_len : packets_a_send, at = c->queue_head;
        size_t size = n * packet_len - c->sent;
        ssize_t taken;
        for (uint32_t i = 0; i < n; i++) {
            make_packet(outgoing + i * packet_len, c->slots[c->queue[at]].seq, c->number);
            if (++at == (uint32_t)opt.depth) at = 0;
        }
        taken = send(c->fd, outgoing + c->sent, size, MSG_NOSIGNAL);
        if (taken < 0) {
            if (errno != EAGAIN) fail("connection %u: send: %s", c->number, strerror(errno));
            break;
        }
        c->sent += (size_t)taken;
        n = (uint32_t)(c->sent / packet_len);
        c->sent %= packet_len;
        c->queue_len -= n;
        c->queue_head = (c->queue_head + n) % (uint32_t)opt.depth;
        if ((size_t)taken < size) break;
    }
    if (c->waiting == !c->queue_len) {
        c->waiting = !c->waiting;
        watch(c, EPOLL_CTL_MOD, c->waiting ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

/* Sends a packet for each of the n slots in freed, as far as the window of a closed load allows. */
static void submit(struct conn *c, uint32_t n) {
    uint64_t now = now_ns();
    if (deadline && now >= deadline) return;
    if (n > budget) n = (uint32_t)budget;
    budget -= n;
    for (uint32_t i = 0; i < n; i++) enqueue(c, freed[i], now, now);
    if (!c->waiting) transmit(c);
}

static void receive(struct conn *c) {
    uint8_t *p = incoming, *end;
    uint32_t n = 0;
    uint64_t now;
    ssize_t got;
    memcpy(incoming, c->partial, c->partial_len);
    got = recv(c->fd, incoming + c->partial_len, READ_SIZE, 0);
    if (got < 0) {
        if (errno == EAGAIN) return;
        fail("connection %u: recv: %s", c->number, strerror(errno));
    }
    if (!got)
        fail("connection %u: closed by the server, %u replies outstanding", c->number, c->in_flight);
    now = now_ns();
    end = incoming + c->partial_len + got;
    for (; (size_t)(end - p) >= packet_len; p += packet_len) {
        if (n == c->in_flight) fail("connection %u: more replies than packets (duplicated?)", c->number);
        freed[n++] = check_reply(c, p, now);
    }
    c->partial_len = (size_t)(end - p);
    if (c->partial_len >= HEADER) check_header(c, p);
    memcpy(c->partial, p, c->partial_len);
    if (!n) return;
    c->active_at = now;
    c->in_flight -= n;
    total_in_flight -= n;
    if (opt.rate == 0) submit(c, n);
}

static void check_stall(uint64_t now) {
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (c->in_flight && now > c->active_at && now - c->active_at > opt.stall * 1e9)
            fail("connection %u: no reply for %.1f s, %u outstanding (lost?), next expected is packet %u",
                 c->number, (double)(now - c->active_at) / 1e9, c->in_flight, c->expected);
    }
}

static void turn(int timeout) {
    static uint64_t checked_at;
    struct epoll_event events[EVENTS];
    uint64_t now;
    int n = epoll_wait(epoll_fd, events, EVENTS, timeout);
    if (n < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        if (events[i].events & EPOLLOUT) transmit(events[i].data.ptr);
        if (events[i].events & ~(uint32_t)EPOLLOUT) receive(events[i].data.ptr);
    }
    now = now_ns();
    if (now - checked_at > CHECK_EVERY) {
        check_stall(now);
        checked_at = now;
    }
}

/* Sends for so many seconds, or so many packets, and returns when all replies are in. */
void run_closed(double seconds, uint64_t packets) {
    budget = packets ? packets : UINT64_MAX;
    deadline = packets ? 0 : now_ns() + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < opt.connections; i++) {
        for (int k = 0; k < opt.depth; k++) freed[k] = (conns[i].expected + (uint32_t)k) % (uint32_t)opt.depth;
        submit(&conns[i], (uint32_t)opt.depth);
    }
    while (total_in_flight) turn(100);
}

/* Packet k is due k / rate seconds after the start, on connection k % connections, whatever has
 * been answered by then, and its latency counts from that moment: what waits because the server
 * was late counts as the server's. The process polls without ever sleeping, so that its own
 * waking up (some 50 us with the default timer slack) is no part of a latency; it needs a core.
 * lateness says how late it was itself. */
void run_open(double seconds, uint64_t packets) {
    uint64_t total = packets ? packets : (uint64_t)(seconds * opt.rate), made = 0, began = now_ns();
    while (made < total || total_in_flight) {
        uint64_t now = now_ns();
        while (made < total) {
            uint64_t due = began + (uint64_t)((double)made * 1e9 / opt.rate);
            struct conn *c = &conns[made % opt.connections];
            uint32_t index = (uint32_t)((c->expected + c->in_flight) % (uint32_t)opt.depth);
            if (due > now) break;
            if (c->in_flight == (uint32_t)opt.depth || c->slots[index].in_flight)
                fail("connection %u: %u packets unanswered: the server does not keep up with the rate",
                     c->number, c->in_flight);
            enqueue(c, index, due, now);
            if (counting) record(&lateness, now - due);
            if (!c->waiting) transmit(c);
            made++;
        }
        turn(0);
    }
}

/* A reply too many may come late: half close, and nothing but the end may follow. */
void expect_end(void) {
    struct timeval limit = {.tv_sec = 1};
    for (int i = 0; i < opt.connections; i++) shutdown(conns[i].fd, SHUT_WR);
    for (int i = 0; i < opt.connections; i++) {
        fcntl(conns[i].fd, F_SETFL, 0);
        setsockopt(conns[i].fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (conns[i].partial_len || recv(conns[i].fd, incoming, READ_SIZE, 0) > 0)
            fail("connection %u: bytes after the last reply (duplicated?)", conns[i].number);
        limit.tv_sec = 0;       /* a server that keeps half-closed connections costs one second, not each */
        limit.tv_usec = 1000;
    }
}

void connect_lasting(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    struct timeval limit = {.tv_sec = 10};
    int one = 1;
    packets_a_send = packet_len < CHUNK ? (uint32_t)(CHUNK / packet_len) : 1;
    outgoing = allocate(packet_len * packets_a_send);
    incoming = allocate(packet_len + READ_SIZE);
    freed = allocate(sizeof *freed * opt.depth);
    conns = allocate(sizeof *conns * opt.connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    inet_pton(AF_INET, opt.host, &address.sin_addr);
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        c->number = (uint32_t)i;
        c->slots = allocate(sizeof *c->slots * opt.depth);
        for (int k = 0; k < opt.depth; k++) c->slots[k].seq = (uint32_t)k;
        c->queue = allocate(sizeof *c->queue * opt.depth);
        c->partial = allocate(packet_len);
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0) fail("connection %d: socket: %s", i, strerror(errno));
        setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
            fail("connection %d: connect: %s", i, strerror(errno));
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}
