/* The CRC-32 of zlib; of long bodies, where the processor helps us not, that of core/checksum.py. */
#include "ccserver.h"

static uint32_t crc_table[8][256];
static PyObject *long_crc;

static void make_crc_table(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[0][n] = c;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            crc_table[k][n] = crc_table[0][crc_table[k - 1][n] & 0xFF] ^ (crc_table[k - 1][n] >> 8);
}

/* Go on from the remainder c by a table, eight bytes at a time. */
static uint32_t divide(uint32_t c, const unsigned char *p, Py_ssize_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        c ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
        c = crc_table[7][c & 0xFF] ^ crc_table[6][(c >> 8) & 0xFF] ^ crc_table[5][(c >> 16) & 0xFF]
            ^ crc_table[4][c >> 24] ^ crc_table[3][p[4]] ^ crc_table[2][p[5]]
            ^ crc_table[1][p[6]] ^ crc_table[0][p[7]];
    }
    for (; n > 0; n--, p++)
        c = crc_table[0][(c ^ *p) & 0xFF] ^ (c >> 8);
    return c;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(PORTABLE)
#include <immintrin.h>
#define CARRYLESS __attribute__((target("pclmul")))

/* Sixteen bytes, taken on over the distance that by stands for, and those that stand there */
CARRYLESS static inline __m128i fold(__m128i bytes, __m128i by, __m128i there) {
    __m128i low = _mm_clmulepi64_si128(bytes, by, 0x00), high = _mm_clmulepi64_si128(bytes, by, 0x11);
    return _mm_xor_si128(there, _mm_xor_si128(low, high));
}

#define AT(place) _mm_loadu_si128((const __m128i *)(const void *)(place))

/* By carry-less multiplication: what has the same remainder, sixteen bytes long, and its remainder (V.
 * Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, Intel 2009,
 * whose constants these are: x^544, x^480, x^160 and x^96 by the polynomial, reflected). */
CARRYLESS static uint32_t divide_quickly(uint32_t c, const unsigned char *p, Py_ssize_t n) {
    const __m128i by64 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4), by16 = _mm_set_epi64x(0xCCAA009E, 0x1751997D0);
    __m128i sum0 = _mm_xor_si128(AT(p), _mm_cvtsi32_si128((int)c));
    __m128i sum1 = AT(p + 16), sum2 = AT(p + 32), sum3 = AT(p + 48);
    for (p += 64, n -= 64; n >= 64; p += 64, n -= 64) {
        sum0 = fold(sum0, by64, AT(p));
        sum1 = fold(sum1, by64, AT(p + 16));
        sum2 = fold(sum2, by64, AT(p + 32));
        sum3 = fold(sum3, by64, AT(p + 48));
    }
    sum0 = fold(fold(fold(sum0, by16, sum1), by16, sum2), by16, sum3);
    for (; n >= 16; p += 16, n -= 16)
        sum0 = fold(sum0, by16, AT(p));
    unsigned char rest[16];
    memcpy(rest, &sum0, sizeof rest);
    return divide(divide(0, rest, sizeof rest), p, n);
}

static int has_carryless(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("pclmul");
}
#else
#define divide_quickly divide
static int has_carryless(void) { return 0; }
#endif

static int carryless; /* the processor has it */

/* The CRC-32 of a bytes object; 0, or -1 with an exception set. */
int crc_of(PyObject *body, uint32_t *crc) {
    Py_ssize_t n = PyBytes_GET_SIZE(body);
    const unsigned char *p = (const unsigned char *)PyBytes_AS_STRING(body);
    if (carryless || n <= SMALL) {
        *crc = ~(carryless && n >= 64 ? divide_quickly : divide)(~0u, p, n);
        return 0;
    }
    PyObject *value = PyObject_CallOneArg(long_crc, body);
    if (value == NULL)
        return -1;
    *crc = (uint32_t)PyLong_AsUnsignedLongMask(value);
    Py_DECREF(value);
    return PyErr_Occurred() ? -1 : 0;
}

/* What it needs, at the import; 0, or -1. */
int prepare_checksum(PyObject *module) {
    make_crc_table();
    carryless = has_carryless();
    long_crc = imported("ccserver.core.checksum", "crc32");
    return long_crc == NULL ? -1 : PyModule_AddObjectRef(module, "carryless", carryless ? Py_True : Py_False);
}
