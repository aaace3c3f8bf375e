/* Load generator: C connections to an echo server, every reply checked.
 *
 * A packet is >HHI (length with header, code, zlib CRC-32 of the body, 0 when empty) and a body.
 * The first eight bytes of a body are its stamp: sequence and connection number, little-endian,
 * so that a lost, duplicated, swapped or strayed reply is seen. A shorter body has as much of the
 * stamp as fits. Any deviation ends the run: message on stderr, exit status 1 (2 for wrong use).
 *
 * Three loads: closed (D packets in flight on each connection: the next goes when a reply is in),
 * open (--rate: packets go when they are due; --depth bounds what may be unanswered on each), and
 * --churn (C connections at a time that live for one packet).
 *
 * Warm-up and counted window are separate: each begins with nothing in flight and ends when the
 * last reply is in. With --marks, "start" and "end" are printed at these two moments, and the
 * generator waits for a line on stdin after each: what the server did in between is exactly what
 * the counted packets cost it. */
#define _GNU_SOURCE
#include "load.h"
#include <arpa/inet.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { GREATEST_DEPTH = 4096 };

struct options opt = {.connections = 1, .body = 32, .code = 1, .seconds = 2, .warmup = 0.3, .stall = 5};

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void *allocate(size_t size) {
    void *p = calloc(1, size ? size : 1);
    if (!p) fail("out of memory");
    return p;
}

static double cpu_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void mark(const char *word) {
    if (!opt.marks) return;
    puts(word);
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF; c = getchar()) continue;
}

static void use(void) {
    fputs("use: load [--connections N] [--depth N] [--body BYTES] [--code N] [--seconds S | --packets N]\n"
          "            [--rate PACKETS_PER_SECOND | --churn] [--warmup S] [--stall S] [--unordered]\n"
          "            [--marks] IPV4 PORT\n", stderr);
    exit(2);
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"connections", 1, 0, 'c'}, {"depth", 1, 0, 'd'}, {"body", 1, 0, 'b'}, {"code", 1, 0, 'm'},
        {"seconds", 1, 0, 't'}, {"packets", 1, 0, 'n'}, {"warmup", 1, 0, 'w'}, {"stall", 1, 0, 's'},
        {"rate", 1, 0, 'r'}, {"churn", 0, 0, 'C'}, {"unordered", 0, 0, 'u'}, {"marks", 0, 0, 'M'}, {0, 0, 0, 0}};
    struct in_addr address;
    for (int o; (o = getopt_long(argc, argv, "", names, NULL)) != -1;) switch (o) {
        case 'c': opt.connections = atoi(optarg); break;
        case 'd': opt.depth = atoi(optarg); if (opt.depth < 1) use(); break;
        case 'b': opt.body = atoi(optarg); break;
        case 'm': opt.code = atoi(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'n': opt.packets = strtoull(optarg, NULL, 10); break;
        case 'w': opt.warmup = atof(optarg); break;
        case 's': opt.stall = atof(optarg); break;
        case 'r': opt.rate = atof(optarg); if (!(opt.rate > 0 && opt.rate <= 1e7)) use(); break;
        case 'C': opt.churn = 1; break;
        case 'u': opt.unordered = 1; break;
        case 'M': opt.marks = 1; break;
        default: use();
    }
    if (argc - optind != 2) use();
    opt.host = argv[optind];
    opt.port = atoi(argv[optind + 1]);
    if (opt.churn && (opt.depth > 1 || opt.rate > 0)) use();
    if (!opt.depth) opt.depth = opt.rate > 0 ? GREATEST_DEPTH : 1;
    if (opt.connections < 1 || opt.connections > 50000 || opt.depth > GREATEST_DEPTH || opt.body < 0 ||
        opt.body > 65527 || opt.code < 0 || opt.code > 65535 || opt.seconds <= 0 || opt.seconds > 600 ||
        opt.warmup < 0 || opt.warmup > 60 || opt.stall <= 0 || opt.port < 1 || opt.port > 65535 ||
        (opt.unordered && opt.body < 4))
        use();
    if (inet_pton(AF_INET, opt.host, &address) != 1) fail("not an IPv4 address: %s", opt.host);
}

static void run(double seconds, uint64_t packets) {
    answered = 0;
    if (opt.churn) run_churn(seconds, packets);
    else if (opt.rate > 0) run_open(seconds, packets);
    else run_closed(seconds, packets);
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
    prepare_packets();
    if (opt.churn) prepare_churn();
    else connect_lasting();

    if (opt.warmup > 0) run(opt.warmup, 0);
    mark("start");
    counting = 1;
    cpu = cpu_seconds();
    began = now_ns();
    run(opt.seconds, opt.packets);
    seconds = (double)(now_ns() - began) / 1e9;
    cpu = cpu_seconds() - cpu;
    mark("end");
    if (!opt.churn) expect_end();
    printf("{\"generator\": \"c\", \"connections\": %d, \"depth\": %d, \"body\": %d, \"packets\": %llu, \"seconds\": %.6f,"
           " \"packets_per_second\": %.1f, \"p50_us\": %.2f, \"p99_us\": %.2f, \"p999_us\": %.2f, \"max_us\": %.2f,"
           " \"late_p99_us\": %.2f, \"cpu_seconds\": %.6f}\n",
           opt.connections, opt.depth, opt.body, (unsigned long long)answered, seconds, (double)answered / seconds,
           percentile_us(&latencies, 0.5), percentile_us(&latencies, 0.99), percentile_us(&latencies, 0.999),
           (double)latencies.greatest / 1e3, percentile_us(&lateness, 0.99), cpu);
    return 0;
}
