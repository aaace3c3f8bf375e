/* Closed-loop load generator: C connections, each with D packets in flight, every reply checked.
 *
 * A packet is >HHI (length with header, code, zlib CRC-32 of the body, 0 when empty) and a body.
 * The first eight bytes of a body are its stamp: sequence and connection number, little-endian,
 * so that a lost, duplicated, swapped or strayed reply is seen. A shorter body has as much of the
 * stamp as fits. Any deviation ends the run: message on stderr, exit status 1 (2 for wrong use).
 *
 * Warm-up and counted window are separate: each begins with nothing in flight and ends when the
 * last reply is in. With --marks, "start" and "end" are printed at these two moments, and the
 * generator waits for a line on stdin after each: what the server did in between is exactly what
 * the counted packets cost it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEADER = 8, STAMP = 8, READ_SIZE = 1 << 20, EVENTS = 512, STAMP_BYTES = 256 };

struct slot { uint32_t seq; int in_flight; uint64_t sent_at; };
struct conn {
    int fd;
    uint32_t number, expected, in_flight;
    uint64_t active_at;          /* last reply, or first packet after a pause */
    struct slot *slots;          /* one for each packet in flight; sequence % depth is its slot */
    uint8_t *partial, *unsent;   /* incomplete reply; what the socket did not take */
    size_t partial_len, unsent_len;
};

static struct {
    const char *host;
    int port, connections, depth, body, code, marks, unordered;
    double seconds, warmup, stall;
    uint64_t packets;            /* instead of seconds, when not 0 */
} opt = {.connections = 1, .depth = 1, .body = 32, .code = 1, .seconds = 2, .warmup = 0.3, .stall = 5};

static int epoll_fd;
static size_t packet_len;
static struct conn *conns;
static uint8_t *template_packet, *outgoing, *incoming;
static uint32_t *freed;          /* slots answered by the read at hand */
static uint32_t crc_base, crc_delta[STAMP][STAMP_BYTES];
static uint64_t total_in_flight, answered, budget, deadline, histogram[64 * 64];
static int counting;

static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void *allocate(size_t size) {
    void *p = calloc(1, size ? size : 1);
    if (!p) fail("out of memory");
    return p;
}

/* CRC-32 is affine: one constant for the body with a zero stamp, and what each byte of the stamp
 * changes. Eight look-ups a packet, however long the body is. */
static uint32_t slow_crc(const uint8_t *p, size_t n) {
    uint32_t crc = 0xffffffffu;
    while (n--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

static int stamp_size(void) { return opt.body < STAMP ? opt.body : STAMP; }

static void prepare_crc(void) {
    uint8_t *body = template_packet + HEADER;
    if (!opt.body) return;
    crc_base = slow_crc(body, opt.body);
    for (int i = 0; i < stamp_size(); i++) {
        uint32_t bit[8];
        for (int k = 0; k < 8; k++) {
            body[i] = (uint8_t)(1 << k);
            bit[k] = slow_crc(body, opt.body) ^ crc_base;
        }
        body[i] = 0;
        for (int v = 0; v < STAMP_BYTES; v++)
            for (int k = 0; k < 8; k++)
                if (v >> k & 1) crc_delta[i][v] ^= bit[k];
    }
}

static void put32(uint8_t *p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
static uint32_t get16(const uint8_t *p) { return (uint32_t)p[0] << 8 | p[1]; }

static void make_stamp(uint8_t stamp[STAMP], uint32_t seq, uint32_t number) {
    seq = htole32(seq);
    number = htole32(number);
    memcpy(stamp, &seq, 4);
    memcpy(stamp + 4, &number, 4);
}

static uint32_t stamp_crc(const uint8_t stamp[STAMP]) {
    uint32_t crc = crc_base;
    for (int i = 0; i < STAMP; i++) crc ^= crc_delta[i][stamp[i]];   /* unused ones are 0 */
    return crc;
}

static void watch(struct conn *c, int operation, uint32_t events) {
    struct epoll_event e = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, operation, c->fd, &e)) fail("epoll_ctl: %s", strerror(errno));
}

static void transmit(struct conn *c, const uint8_t *data, size_t n) {
    if (!c->unsent_len) {
        ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) fail("connection %u: send: %s", c->number, strerror(errno));
            sent = 0;
        }
        if ((size_t)sent == n) return;
        data += sent;
        n -= (size_t)sent;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    if (!c->unsent) c->unsent = allocate(packet_len * opt.depth);
    memcpy(c->unsent + c->unsent_len, data, n);   /* never more than what is in flight */
    c->unsent_len += n;
}

static void transmit_unsent(struct conn *c) {
    ssize_t sent = send(c->fd, c->unsent, c->unsent_len, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) fail("connection %u: send: %s", c->number, strerror(errno));
        return;
    }
    c->unsent_len -= (size_t)sent;
    memmove(c->unsent, c->unsent + sent, c->unsent_len);
    if (!c->unsent_len) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

/* Sends a packet for each of the n slots in freed, as far as the window allows. */
static void submit(struct conn *c, uint32_t n) {
    uint64_t now = now_ns();
    uint8_t *p = outgoing, stamp[STAMP];
    if (deadline && now >= deadline) return;
    if (n > budget) n = (uint32_t)budget;
    if (!n) return;
    budget -= n;
    if (!c->in_flight) c->active_at = now;
    c->in_flight += n;
    total_in_flight += n;
    for (uint32_t i = 0; i < n; i++, p += packet_len) {
        struct slot *slot = &c->slots[freed[i]];
        slot->in_flight = 1;
        slot->sent_at = now;
        make_stamp(stamp, slot->seq, c->number);
        memcpy(p, template_packet, packet_len);
        put32(p + 4, stamp_crc(stamp));
        memcpy(p + HEADER, stamp, stamp_size());
    }
    transmit(c, outgoing, (size_t)(p - outgoing));
}

static void record(uint64_t ns) {
    int e;
    if (ns < 64) { histogram[ns]++; return; }
    e = 63 - __builtin_clzll(ns);
    histogram[(e - 6) * 64 + (int)(ns >> (e - 6))]++;   /* 64 buckets for each power of two */
}

static double percentile_us(double part) {
    uint64_t wanted = (uint64_t)(part * (double)answered), seen = 0;
    for (int i = 0; i < 64 * 64; i++) {
        seen += histogram[i];
        if (seen > wanted)
            return i < 64 ? i / 1e3 : ((double)(i % 64 + 64) + 0.5) * (double)(1ull << (i / 64 - 1)) / 1e3;
    }
    return 0;
}

static void check_header(const struct conn *c, const uint8_t *p) {
    if (get16(p) != packet_len)
        fail("connection %u, packet %u: reply of length %u instead of %zu", c->number, c->expected, get16(p), packet_len);
    if (get16(p + 2) != (uint32_t)opt.code)
        fail("connection %u, packet %u: reply has code %u instead of %d", c->number, c->expected, get16(p + 2), opt.code);
}

/* Checks one whole reply and returns the slot it answers. */
static uint32_t check_reply(struct conn *c, const uint8_t *p, uint64_t now) {
    const uint8_t *body = p + HEADER;
    uint8_t stamp[STAMP];
    uint32_t seq = c->expected, crc, index;
    struct slot *slot;
    check_header(c, p);
    if (!c->in_flight) fail("connection %u: a reply when none was due (duplicated?)", c->number);
    if (opt.unordered) {
        memcpy(&seq, body, 4);
        seq = le32toh(seq);
    }
    make_stamp(stamp, seq, c->number);
    if (memcmp(body, stamp, stamp_size()))
        fail("connection %u, packet %u: the reply carries another packet's stamp"
             " (swapped, lost, duplicated or altered)", c->number, seq);
    index = seq % (uint32_t)opt.depth;
    slot = &c->slots[index];
    if (!slot->in_flight || slot->seq != seq)
        fail("connection %u: a reply to packet %u, which is not in flight (duplicated?)", c->number, seq);
    for (int i = STAMP; i < opt.body; i++) {
        if (!memcmp(body + i, template_packet + HEADER + i, opt.body - i)) break;
        if (body[i] != template_packet[HEADER + i])
            fail("connection %u, packet %u: byte %d of the reply's body differs", c->number, seq, i);
    }
    crc = stamp_crc(stamp);
    if (get32(p + 4) != crc)
        fail("connection %u, packet %u: reply has checksum %08x instead of %08x", c->number, seq, get32(p + 4), crc);
    if (counting) record(now - slot->sent_at);
    answered++;
    slot->in_flight = 0;
    slot->seq += (uint32_t)opt.depth;
    c->expected++;
    return index;
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
    submit(c, n);
}

static void check_stall(void) {
    uint64_t now = now_ns();
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        if (c->in_flight && now - c->active_at > opt.stall * 1e9)
            fail("connection %u: no reply for %.1f s, %u outstanding (lost?), next expected is packet %u",
                 c->number, (double)(now - c->active_at) / 1e9, c->in_flight, c->expected);
    }
}

/* Sends for so many seconds, or so many packets, and returns when all replies are in. */
static void run(double seconds, uint64_t packets) {
    struct epoll_event events[EVENTS];
    uint64_t checked_at = now_ns();
    answered = 0;
    budget = packets ? packets : UINT64_MAX;
    deadline = packets ? 0 : checked_at + (uint64_t)(seconds * 1e9);
    for (int i = 0; i < opt.connections; i++) {
        for (int k = 0; k < opt.depth; k++) freed[k] = (conns[i].expected + (uint32_t)k) % (uint32_t)opt.depth;
        submit(&conns[i], (uint32_t)opt.depth);
    }
    while (total_in_flight) {
        int n = epoll_wait(epoll_fd, events, EVENTS, 100);
        if (n < 0 && errno != EINTR) fail("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < n; i++) {
            if (events[i].events & EPOLLOUT) transmit_unsent(events[i].data.ptr);
            if (events[i].events & ~(uint32_t)EPOLLOUT) receive(events[i].data.ptr);
        }
        if (now_ns() - checked_at > 100000000u) {
            check_stall();
            checked_at = now_ns();
        }
    }
}

/* A reply too many may come late: half close, and nothing but the end may follow. */
static void expect_end(void) {
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

static void connect_all(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    struct timeval limit = {.tv_sec = 10};
    int one = 1;
    if (inet_pton(AF_INET, opt.host, &address.sin_addr) != 1) fail("not an IPv4 address: %s", opt.host);
    for (int i = 0; i < opt.connections; i++) {
        struct conn *c = &conns[i];
        c->number = (uint32_t)i;
        c->slots = allocate(sizeof *c->slots * opt.depth);
        for (int k = 0; k < opt.depth; k++) c->slots[k].seq = (uint32_t)k;
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

static void mark(const char *word) {
    if (!opt.marks) return;
    puts(word);
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF; c = getchar()) continue;
}

static void use(void) {
    fputs("use: load [--connections N] [--depth N] [--body BYTES] [--code N] [--seconds S | --packets N]\n"
          "            [--warmup S] [--stall S] [--unordered] [--marks] IPV4 PORT\n", stderr);
    exit(2);
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'}, {"body", 1, 0, 'b'}, {"code", 1, 0, 'm'},
        {"seconds", 1, 0, 't'}, {"packets", 1, 0, 'n'}, {"warmup", 1, 0, 'w'}, {"stall", 1, 0, 's'},
        {"unordered", 0, 0, 'u'}, {"marks", 0, 0, 'M'}, {0, 0, 0, 0}};
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (o) {
        case 'c': opt.connections = atoi(optarg); break;
        case 'd': opt.depth = atoi(optarg); break;
        case 'b': opt.body = atoi(optarg); break;
        case 'm': opt.code = atoi(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'n': opt.packets = strtoull(optarg, NULL, 10); break;
        case 'w': opt.warmup = atof(optarg); break;
        case 's': opt.stall = atof(optarg); break;
        case 'u': opt.unordered = 1; break;
        case 'M': opt.marks = 1; break;
        default: use();
    }
    if (argc - optind != 2) use();
    opt.host = argv[optind];
    opt.port = atoi(argv[optind + 1]);
    if (opt.connections < 1 || opt.connections > 50000 || opt.depth < 1 || opt.depth > 4096 || opt.body < 0 ||
        opt.body > 65527 || opt.code < 0 || opt.code > 65535 || opt.seconds <= 0 || opt.seconds > 600 ||
        opt.warmup < 0 || opt.warmup > 60 || opt.stall <= 0 || opt.port < 1 || opt.port > 65535 ||
        (opt.unordered && opt.body < 4))
        use();
}

int main(int argc, char **argv) {
    struct rlimit files;
    uint64_t began;
    double seconds, cpu;
    parse_options(argc, argv);
    alarm((unsigned)(opt.warmup + opt.stall + (opt.packets ? 300 : opt.seconds)) + 60);   /* the last bound on time */
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    packet_len = HEADER + (size_t)opt.body;
    template_packet = allocate(packet_len);
    template_packet[0] = (uint8_t)(packet_len >> 8);
    template_packet[1] = (uint8_t)packet_len;
    template_packet[2] = (uint8_t)(opt.code >> 8);
    template_packet[3] = (uint8_t)opt.code;
    for (int i = STAMP; i < opt.body; i++) template_packet[HEADER + i] = (uint8_t)(i * 167 + 13);
    prepare_crc();
    outgoing = allocate(packet_len * opt.depth);
    incoming = allocate(packet_len + READ_SIZE);
    freed = allocate(sizeof *freed * opt.depth);
    conns = allocate(sizeof *conns * opt.connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connect_all();

    if (opt.warmup > 0) run(opt.warmup, 0);
    mark("start");
    counting = 1;
    cpu = cpu_seconds();
    began = now_ns();
    run(opt.seconds, opt.packets);
    seconds = (double)(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    mark("end");
    expect_end();
    printf("{\"generator\": \"c\", \"connections\": %d, \"depth\": %d, \"body\": %d, \"packets\": %llu, \"seconds\": %.6f,"
           " \"packets_per_second\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"cpu_seconds\": %.6f}\n",
           opt.connections, opt.depth, opt.body, (unsigned long long)answered, seconds, (double)answered / seconds,
           percentile_us(0.5), percentile_us(0.99), percentile_us(0.999), cpu);
    return 0;
}
