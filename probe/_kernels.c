/* Statistics of many tensors in one pass over their memory.
 *
 * Plain C without the headers of Python or torch: called through ctypes, which releases the interpreter's
 * lock. Work is cut into chunks of fixed size whose partial results are merged in a fixed order, so that
 * the result does not depend on the number of threads. Sums are in double precision over independent
 * lanes, which the compiler turns into vector instructions without being allowed to reorder a sum.
 */

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define CHUNK 65536
#define MAX_THREADS 64

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define VECTORISED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VECTORISED
#endif

enum { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

typedef struct {
    int64_t n_nan, n_inf, n_zero;
    double min, max, sum, l1, squares; /* over the finite entries */
} partial_t;

static void add_slowly(partial_t *p, double x) {
    if (isnan(x)) { p->n_nan++; return; }
    if (isinf(x)) { p->n_inf++; return; }
    if (x == 0.0) p->n_zero++;
    if (x < p->min) p->min = x;
    if (x > p->max) p->max = x;
    p->sum += x;
    p->l1 += fabs(x);
    p->squares += x * x;
}

/* One block of n floats that may hold anything. */
static void block_slowly(partial_t *p, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) add_slowly(p, x[i]);
}

/* n floats; n is a multiple of LANES. Falls back to the slow loop when an entry is not finite. */
VECTORISED
static void block(partial_t *p, const float *restrict x, int64_t n) {
    double sum[LANES] = {0}, l1[LANES] = {0}, squares[LANES] = {0};
    float low[LANES], high[LANES];
    int32_t zeros[LANES] = {0}, bad[LANES] = {0};
    for (int l = 0; l < LANES; l++) low[l] = high[l] = x[l];
    for (int64_t i = 0; i < n; i += LANES) {
        for (int l = 0; l < LANES; l++) {
            float v = x[i + l];
            uint32_t bits;
            memcpy(&bits, &v, 4);
            uint32_t magnitude = bits & 0x7fffffffu;
            bad[l] |= -(int32_t)(magnitude >= 0x7f800000u);
            zeros[l] += magnitude == 0;
            low[l] = v < low[l] ? v : low[l];
            high[l] = v > high[l] ? v : high[l];
            double d = v;
            sum[l] += d;
            l1[l] += fabs(d);
            squares[l] += d * d;
        }
    }
    int32_t any_bad = 0;
    for (int l = 0; l < LANES; l++) any_bad |= bad[l];
    if (any_bad) { block_slowly(p, x, n); return; }
    for (int l = 0; l < LANES; l++) {
        p->n_zero += zeros[l];
        if (low[l] < p->min) p->min = low[l];
        if (high[l] > p->max) p->max = high[l];
        p->sum += sum[l];
        p->l1 += l1[l];
        p->squares += squares[l];
    }
}

VECTORISED
static void widen_bfloat16(float *restrict out, const uint16_t *restrict in, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)in[i] << 16;
        memcpy(&out[i], &bits, 4);
    }
}

/* Exponent and fraction are moved into place and the difference of the biases is multiplied in, which is
 * exact and covers subnormal numbers; infinities and NaN get the full exponent. */
VECTORISED
static void widen_float16(float *restrict out, const uint16_t *restrict in, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t half = in[i];
        uint32_t bits = (half & 0x7fffu) << 13;
        float value;
        memcpy(&value, &bits, 4);
        value *= 0x1p112f;
        memcpy(&bits, &value, 4);
        bits |= -(uint32_t)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        bits |= (half & 0x8000u) << 16;
        memcpy(&out[i], &bits, 4);
    }
}

static void floats(partial_t *p, const float *x, int64_t n) {
    int64_t whole = n - n % LANES;
    /* Blocks keep the slow path to the neighbourhood of a bad entry, and stay in the first-level cache. */
    for (int64_t at = 0; at < whole; at += 4096) block(p, x + at, whole - at < 4096 ? whole - at : 4096);
    block_slowly(p, x + whole, n - whole);
}

static void chunk(partial_t *p, const void *data, int32_t type, int64_t begin, int64_t n) {
    float wide[2048];
    p->n_nan = p->n_inf = p->n_zero = 0;
    p->min = INFINITY;
    p->max = -INFINITY;
    p->sum = p->l1 = p->squares = 0;
    if (type == FLOAT32) {
        floats(p, (const float *)data + begin, n);
    } else if (type == FLOAT64) {
        const double *x = (const double *)data + begin;
        for (int64_t i = 0; i < n; i++) add_slowly(p, x[i]);
    } else {
        const uint16_t *x = (const uint16_t *)data + begin;
        for (int64_t at = 0; at < n; at += 2048) {
            int64_t count = n - at < 2048 ? n - at : 2048;
            if (type == BFLOAT16) widen_bfloat16(wide, x + at, count);
            else widen_float16(wide, x + at, count);
            floats(p, wide, count);
        }
    }
}

static double value_at(const void *data, int32_t type, int64_t i) {
    float wide;
    if (type == FLOAT32) return ((const float *)data)[i];
    if (type == FLOAT64) return ((const double *)data)[i];
    if (type == BFLOAT16) widen_bfloat16(&wide, (const uint16_t *)data + i, 1);
    else widen_float16(&wide, (const uint16_t *)data + i, 1);
    return wide;
}

/* Sum of squares about the mean, or of (x/scale)^2 about mean/scale, over the finite entries. */
static double spread_about(const void *data, int32_t type, int64_t n, double mean, double scale) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = value_at(data, type, i);
        if (isfinite(x)) {
            double d = x / scale - mean / scale;
            total += d * d;
        }
    }
    return total;
}

typedef struct {
    const void *const *data;
    const int64_t *numel;
    const int32_t *type;
    const int64_t *first_chunk; /* of each tensor; one more entry than tensors */
    int64_t tensors, chunks;
    partial_t *partials;
    atomic_llong next;
} job_t;

static void *work(void *argument) {
    job_t *job = argument;
    int64_t tensor = 0;
    for (;;) {
        int64_t c = atomic_fetch_add(&job->next, 1);
        if (c >= job->chunks) return NULL;
        while (c >= job->first_chunk[tensor + 1]) tensor++;
        int64_t begin = (c - job->first_chunk[tensor]) * CHUNK;
        int64_t left = job->numel[tensor] - begin;
        chunk(&job->partials[c], job->data[tensor], job->type[tensor], begin, left < CHUNK ? left : CHUNK);
    }
}

/* Columns numel, n_nan, n_inf, n_zero, min, max, mean, std, l1, l2, abs_max for each tensor.
 *
 * The variance is first taken from the sums; where it is a small part of the mean square, so that the
 * difference has lost its digits, or the squares have left the range of a double, a second pass takes it
 * about the mean. Returns 0, or -1 without memory.
 */
int stepwatch_measure(int64_t tensors, const void *const *data, const int64_t *numel, const int32_t *type,
                      double *out, int32_t threads) {
    int64_t *first = malloc((size_t)(tensors + 1) * sizeof *first);
    if (!first) return -1;
    first[0] = 0;
    for (int64_t t = 0; t < tensors; t++) first[t + 1] = first[t] + (numel[t] + CHUNK - 1) / CHUNK;
    int64_t chunks = first[tensors];
    partial_t *partials = malloc((size_t)(chunks + 1) * sizeof *partials);
    if (!partials) { free(first); return -1; }

    job_t job = {data, numel, type, first, tensors, chunks, partials, 0};
    pthread_t helpers[MAX_THREADS];
    int started = 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    int64_t entries = 0;
    for (int64_t t = 0; t < tensors; t++) entries += numel[t];
    if (threads > entries / (4 * CHUNK)) threads = (int32_t)(entries / (4 * CHUNK)); /* worth its start */
    while (started + 1 < threads && pthread_create(&helpers[started], NULL, work, &job) == 0) started++;
    work(&job);
    for (int i = 0; i < started; i++) pthread_join(helpers[i], NULL);

    for (int64_t t = 0; t < tensors; t++) {
        partial_t s = {0, 0, 0, INFINITY, -INFINITY, 0, 0, 0};
        for (int64_t c = first[t]; c < first[t + 1]; c++) {
            const partial_t *p = &partials[c];
            s.n_nan += p->n_nan;
            s.n_inf += p->n_inf;
            s.n_zero += p->n_zero;
            if (p->min < s.min) s.min = p->min;
            if (p->max > s.max) s.max = p->max;
            s.sum += p->sum;
            s.l1 += p->l1;
            s.squares += p->squares;
        }
        double *row = out + t * 11;
        double n = (double)(numel[t] - s.n_nan - s.n_inf);
        row[0] = (double)numel[t];
        row[1] = (double)s.n_nan;
        row[2] = (double)s.n_inf;
        row[3] = (double)s.n_zero;
        if (n == 0) {
            row[4] = row[5] = row[6] = row[7] = row[10] = NAN;
            row[8] = row[9] = 0;
            continue;
        }
        double largest = fmax(fabs(s.min), fabs(s.max));
        double mean = s.sum / n;
        double mean_square = s.squares / n;
        double variance = mean_square - mean * mean;
        double l2 = sqrt(s.squares);
        int out_of_range = !isfinite(s.squares) || !isfinite(s.sum) || (largest > 0 && s.squares < 1e-280);
        if (out_of_range) {
            if (!isfinite(s.sum)) {
                mean = 0;
                for (int64_t i = 0; i < numel[t]; i++) {
                    double x = value_at(data[t], type[t], i);
                    if (isfinite(x)) mean += x / n;
                }
            }
            l2 = largest * sqrt(spread_about(data[t], type[t], numel[t], 0, largest));
            row[7] = largest * sqrt(spread_about(data[t], type[t], numel[t], mean, largest) / n);
        } else if (variance < 1e-4 * mean_square) {
            row[7] = s.min == s.max ? 0 : sqrt(spread_about(data[t], type[t], numel[t], mean, 1) / n);
        } else {
            row[7] = sqrt(variance);
        }
        row[4] = s.min;
        row[5] = s.max;
        row[6] = mean;
        row[8] = s.l1;
        row[9] = l2;
        row[10] = largest;
    }
    free(partials);
    free(first);
    return 0;
}
