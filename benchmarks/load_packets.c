/* The packets: how one is made, how a reply is checked, how long it took. */
#define _GNU_SOURCE
#include "load.h"
#include <endian.h>
#include <string.h>

enum { STAMP_BYTES = 256 };

size_t packet_len;
uint64_t answered;
int counting;
struct histogram latencies, lateness;

static uint8_t *template_packet;
static uint32_t crc_base, crc_delta[STAMP][STAMP_BYTES];

static uint32_t slow_crc(const uint8_t *p, size_t n) {
    uint32_t crc = 0xffffffffu;
    while (n--) {
        crc ^= *p++;
        for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (0xedb88320u & -(crc & 1));
    }
    return ~crc;
}

static int stamp_size(void) { return opt.body < STAMP ? opt.body : STAMP; }

/* CRC-32 is affine: one constant for the body with a zero stamp, and what each byte of the stamp
 * changes. Eight look-ups a packet, however long the body is. */
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

void prepare_packets(void) {
    packet_len = HEADER + (size_t)opt.body;
    template_packet = allocate(packet_len);
    template_packet[0] = (uint8_t)(packet_len >> 8);
    template_packet[1] = (uint8_t)packet_len;
    template_packet[2] = (uint8_t)(opt.code >> 8);
    template_packet[3] = (uint8_t)opt.code;
    for (int i = STAMP; i < opt.body; i++) template_packet[HEADER + i] = (uint8_t)(i * 167 + 13);
    prepare_crc();
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

void make_packet(uint8_t *p, uint32_t seq, uint32_t number) {
    uint8_t stamp[STAMP];
    make_stamp(stamp, seq, number);
    memcpy(p, template_packet, packet_len);
    put32(p + 4, stamp_crc(stamp));
    memcpy(p + HEADER, stamp, stamp_size());
}

void check_header(const struct conn *c, const uint8_t *p) {
    if (get16(p) != packet_len)
        fail("connection %u, packet %u: reply of length %u instead of %zu", c->number, c->expected, get16(p), packet_len);
    if (get16(p + 2) != (uint32_t)opt.code)
        fail("connection %u, packet %u: reply has code %u instead of %d", c->number, c->expected, get16(p + 2), opt.code);
}

/* Checks one whole reply and returns the slot it answers, which has the next sequence number then. */
uint32_t check_reply(struct conn *c, const uint8_t *p, uint64_t now) {
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
    if (counting) record(&latencies, now - slot->due_at);
    answered++;
    slot->in_flight = 0;
    slot->seq += (uint32_t)opt.depth;
    c->expected++;
    return index;
}

void record(struct histogram *h, uint64_t ns) {
    int e;
    h->count++;
    if (ns > h->greatest) h->greatest = ns;
    if (ns < 64) { h->buckets[ns]++; return; }
    e = 63 - __builtin_clzll(ns);
    h->buckets[(e - 6) * 64 + (int)(ns >> (e - 6))]++;   /* 64 buckets for each power of two */
}

double percentile_us(const struct histogram *h, double part) {
    uint64_t wanted = (uint64_t)(part * (double)h->count), seen = 0;
    for (int i = 0; i < 64 * 64; i++) {
        seen += h->buckets[i];
        if (seen > wanted)
            return i < 64 ? i / 1e3 : ((double)(i % 64 + 64) + 0.5) * (double)(1ull << (i / 64 - 1)) / 1e3;
    }
    return 0;
}
