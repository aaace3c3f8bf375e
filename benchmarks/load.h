/* What the parts of the load generator share. */
#ifndef LOAD_H
#define LOAD_H
#include <stddef.h>
#include <stdint.h>

enum { HEADER = 8, STAMP = 8, READ_SIZE = 1 << 20, EVENTS = 512 };

struct slot { uint32_t seq; int in_flight; uint64_t due_at; };
struct conn {
    int fd;
    uint32_t number, expected, in_flight;
    uint64_t active_at;               /* last reply, or first packet after a pause */
    struct slot *slots;               /* one for each packet in flight; sequence % depth is its slot */
    uint32_t *queue;                  /* ring of the slots whose packets the socket did not take yet */
    uint32_t queue_head, queue_len;
    size_t sent;                      /* bytes of the first packet in the queue that it did take */
    uint8_t *partial;                 /* incomplete reply */
    size_t partial_len;
    int waiting;                      /* until the socket takes more */
    enum { SENDING, RECEIVING, ENDING } stage;   /* of a connection that lives for one packet */
};
struct histogram { uint64_t count, greatest, buckets[64 * 64]; };

struct options {
    const char *host;
    int port, connections, depth, body, code, marks, unordered, churn;
    double seconds, warmup, stall, rate;
    uint64_t packets;                 /* instead of seconds, when not 0 */
};
extern struct options opt;

extern size_t packet_len;
extern uint64_t answered;             /* in this run */
extern int counting;                  /* latencies are recorded */
extern struct histogram latencies, lateness;

void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
uint64_t now_ns(void);
void *allocate(size_t size);

/* load_packets.c */
void prepare_packets(void);
void make_packet(uint8_t *p, uint32_t seq, uint32_t number);
void check_header(const struct conn *c, const uint8_t *p);
uint32_t check_reply(struct conn *c, const uint8_t *p, uint64_t now);
void record(struct histogram *h, uint64_t ns);
double percentile_us(const struct histogram *h, double part);

/* load_lasting.c */
void connect_lasting(void);
void run_closed(double seconds, uint64_t packets);
void run_open(double seconds, uint64_t packets);
void expect_end(void);

/* load_churn.c */
void prepare_churn(void);
void run_churn(double seconds, uint64_t packets);
#endif
