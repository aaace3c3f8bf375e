/* Connections that live for one packet: connect, send, check the reply, half close, wait for the
 * server's end of it, begin again. What is counted is connections; a latency is the time from the
 * connect to the whole reply.
 *
 * The close is an ordinary one, the client's first, so that the server sees what it sees in its
 * life; each leaves a TIME_WAIT here. That does not run out of ports: there are several source
 * addresses, Linux takes a TIME_WAIT port again after a second on the loopback (tcp_tw_reuse = 2,
 * its default), and beyond tcp_max_tw_buckets it keeps none. */
#define _GNU_SOURCE
#include "load.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOURCES = 16, LOOPBACK = 127 };

static int epoll_fd, open_now;
static struct conn *conns;
static struct sockaddr_in address;
static uint8_t *outgoing;
static uint32_t made;
static uint64_t budget, deadline;

static void connect_next(struct conn *c) {
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    uint64_t now = now_ns();
    int one = 1;
    if (!budget || (deadline && now >= deadline)) return;
    budget--;
    open_now++;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("connection %u: socket: %s", c->number, strerror(errno));
    if (ntohl(address.sin_addr.s_addr) >> 24 == LOOPBACK) {
        struct sockaddr_in source = {.sin_family = AF_INET};
        source.sin_addr.s_addr = htonl(LOOPBACK << 24 | (2 + made++ % SOURCES));
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        if (bind(c->fd, (struct sockaddr *)&source, sizeof source)) fail("bind: %s", strerror(errno));
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->stage = SENDING;
    c->sent = c->partial_len = 0;
    c->slots->in_flight = 1;
    c->slots->due_at = c->active_at = now;
    c->in_flight = 1;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        fail("connection %u: connect: %s", c->number, strerror(errno));
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e)) fail("epoll_ctl: %s", strerror(errno));
}

/* Whether the socket took all of the packet. */
static int send_packet(struct conn *c) {
    ssize_t taken;
    make_packet(outgoing, c->expected, c->number);
    taken = send(c->fd, outgoing + c->sent, packet_len - c->sent, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) fail("connection %u: send: %s", c->number, strerror(errno));
    if (taken > 0) c->sent += (size_t)taken;
    return c->sent == packet_len;
}

/* Reads what is there, one byte more than the reply at most; whether something was. */
static int receive(struct conn *c) {
    ssize_t got = recv(c->fd, c->partial + c->partial_len, packet_len + 1 - c->partial_len, 0);
    if (got < 0) {
        if (errno == EAGAIN) return 0;
        fail("connection %u: recv: %s", c->number, strerror(errno));
    }
    if (!got && c->stage == RECEIVING)
        fail("connection %u, packet %u: closed by the server, no whole reply", c->number, c->expected);
    if (!got) {
        close(c->fd);
        c->fd = -1;
        open_now--;
        connect_next(c);
        return 0;
    }
    c->partial_len += (size_t)got;
    if (c->partial_len >= HEADER && c->stage == RECEIVING) check_header(c, c->partial);
    if (c->partial_len > packet_len)
        fail("connection %u: bytes after the last reply (duplicated?)", c->number);
    return 1;
}

static void advance(struct conn *c) {
    if (c->stage == SENDING) {
        if (!send_packet(c)) return;
        c->stage = RECEIVING;
    }
    while (receive(c)) {
        if (c->partial_len < packet_len) continue;
        check_reply(c, c->partial, now_ns());
        c->in_flight = 0;
        c->stage = ENDING;
        shutdown(c->fd, SHUT_WR);
    }
}

static void check_stall(uint64_t now) {
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (c->fd >= 0 && now > c->active_at && now - c->active_at > opt.stall * 1e9)
            fail("connection %u, packet %u: %s for %.1f s", c->number, c->expected,
                 c->stage == ENDING ? "not closed by the server" : "no reply (lost?)",
                 (double)(now - c->active_at) / 1e9);
    }
}

/* Connects for so many seconds, or so many times, and returns when all are closed. */
void run_churn(double seconds, uint64_t packets) {
    struct epoll_event events[EVENTS];
    uint64_t checked_at = now_ns(), now;
    budget = packets ? packets : UINT64_MAX;
    deadline = packets ? 0 : checked_at + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < opt.connections; i++) connect_next(&conns[i]);
    while (open_now) {
        int n = epoll_wait(epoll_fd, events, EVENTS, 100);
        if (n < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) advance(events[i].data.ptr);
        now = now_ns();
        if (now - checked_at > 100000000u) {
            if (open_now) check_stall(now);
            checked_at = now;
        }
    }
}

void prepare_churn(void) {
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    inet_pton(AF_INET, opt.host, &address.sin_addr);
    outgoing = allocate(packet_len);
    conns = allocate(sizeof *conns * opt.connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < opt.connections; i++) {
        conns[i].number = (uint32_t)i;
        conns[i].slots = allocate(sizeof *conns[i].slots);
        conns[i].partial = allocate(packet_len + 1);
    }
}
