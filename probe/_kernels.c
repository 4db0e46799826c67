/* Statistics of many tensors in one pass over their memory.
 *
 * Plain C that knows neither Python nor torch. Work is cut into chunks of fixed size whose results are merged in
 * a fixed order, so that the result does not depend on the number of threads.
 *
 * Most blocks take the fast way: single precision within runs of RUN entries, double precision from there
 * on. A block that holds something not finite or out of the range in which squares keep their precision, or
 * whose mean is large beside its spread, takes the careful way: double precision, spread about the mean.
 */

#include <fenv.h>
#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "_kernels.h"

#define RUN 256       /* entries whose sums are in single precision, 16 to each of 16 lanes */
#define SHORT_RUN 128 /* the same, to each of 8 lanes */
#define BLOCK 2048    /* entries that go the fast or the careful way; stays in the first-level cache */
#define CHUNK 65536   /* entries that one thread takes at a time */
#define WORTH_THREADS (4 * CHUNK)
#define COLUMNS 11

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(PORTABLE)
#include <immintrin.h>
#define WITH_AVX512
#define AVX512 __attribute__((target("avx512f,avx512dq")))
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

/* Of some entries; from `finite` on only of those that are finite. */
typedef struct {
    int64_t n_nan, n_inf, n_zero, finite;
    double min, max, mean, spread, l1; /* spread: sum of squares about the mean */
} summary_t;

static const summary_t NOTHING = {0, 0, 0, 0, INFINITY, -INFINITY, 0, 0, 0};

/* Chan, Golub, LeVeque: Updating formulae and a pairwise algorithm for computing sample variances, 1979. */
static void merge(summary_t *into, const summary_t *part) {
    into->n_nan += part->n_nan;
    into->n_inf += part->n_inf;
    if (!part->finite) return;
    double a = (double)into->finite, b = (double)part->finite;
    double difference = part->mean - into->mean;
    into->mean = into->finite ? into->mean + difference * (b / (a + b)) : part->mean;
    into->spread += part->spread + difference * difference * (a * b / (a + b));
    into->finite += part->finite;
    into->n_zero += part->n_zero;
    into->l1 += part->l1;
    if (part->min < into->min) into->min = part->min;
    if (part->max > into->max) into->max = part->max;
}

/* What the fast way adds up. */
typedef struct {
    double sum, l1, squares;
    float low, high;
    int64_t zeros;
} sums_t;

/* The summary from such sums, or 0 where the entries have to go the careful way. */
static int accept(summary_t *part, const sums_t *s, int64_t n) {
    if (!(s->l1 <= FLT_MAX)) return 0;
    float largest = -s->low > s->high ? -s->low : s->high;
    if (largest > 0x1p40f || (largest < 0x1p-40f && largest > 0)) return 0;
    double mean = s->sum / (double)n, spread = s->squares - s->sum * mean;
    if (spread < 0.25 * s->squares) return 0;
    *part = (summary_t){0, 0, s->zeros, n, s->low, s->high, mean, spread, s->l1};
    return 1;
}

VECTORISED
static void add_up(sums_t *total, const float *restrict x, int64_t n) {
    *total = (sums_t){0, 0, 0, x[0], x[0], 0};
    for (int64_t at = 0; at < n; at += SHORT_RUN) {
        int64_t length = n - at < SHORT_RUN ? n - at : SHORT_RUN;
        const float *restrict run = x + at;
        float sum = 0, l1 = 0, squares = 0, low = x[0], high = x[0];
        int32_t zeros = 0;
#pragma omp simd reduction(+ : sum, l1, squares, zeros) reduction(min : low) reduction(max : high)
        for (int64_t i = 0; i < length; i++) {
            float v = run[i];
            sum += v;
            l1 += fabsf(v);
            squares += v * v;
            zeros += v == 0;
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        total->sum += sum;
        total->l1 += l1;
        total->squares += squares;
        total->zeros += zeros;
        if (low < total->low) total->low = low;
        if (high > total->high) total->high = high;
    }
}

#ifdef WITH_AVX512
AVX512 static inline __attribute__((always_inline)) __m512 load_16(const char *x, int64_t at, int64_t type) {
    if (type == FLOAT32) return _mm512_loadu_ps(x + 4 * at);
    __m256i halves = _mm256_loadu_si256((const __m256i *)(x + 2 * at));
    if (type == FLOAT16) return _mm512_cvtph_ps(halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

AVX512 static inline __attribute__((always_inline)) __m512d add_floats(__m512d wide, __m512 narrow) {
    __m512d low = _mm512_cvtps_pd(_mm512_castps512_ps256(narrow));
    __m512d high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(narrow, 1));
    return _mm512_add_pd(wide, _mm512_add_pd(low, high));
}

/* The same as `add_up`, a multiple of RUN entries, reading halves where they lie. `type` is constant. */
AVX512 static inline __attribute__((always_inline)) void add_up_16(sums_t *total, const char *x, int64_t n,
                                                                   int64_t type) {
    __m512d all_sum = _mm512_setzero_pd(), all_l1 = all_sum, all_squares = all_sum;
    __m512 low = load_16(x, 0, type), high = low;
    __m512i zeros = _mm512_setzero_si512(), one = _mm512_set1_epi32(1);
    for (int64_t at = 0; at < n; at += RUN) {
        __m512 sum = _mm512_setzero_ps(), l1 = sum, squares = sum;
#pragma GCC unroll 4
        for (int64_t i = at; i < at + RUN; i += 16) {
            __m512 v = load_16(x, i, type);
            sum = _mm512_add_ps(sum, v);
            l1 = _mm512_add_ps(l1, _mm512_abs_ps(v));
            squares = _mm512_fmadd_ps(v, v, squares);
            low = _mm512_min_ps(v, low);
            high = _mm512_max_ps(v, high);
            __mmask16 is_zero = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_EQ_OQ);
            zeros = _mm512_mask_add_epi32(zeros, is_zero, zeros, one);
        }
        all_sum = add_floats(all_sum, sum);
        all_l1 = add_floats(all_l1, l1);
        all_squares = add_floats(all_squares, squares);
    }
    *total = (sums_t){_mm512_reduce_add_pd(all_sum),     _mm512_reduce_add_pd(all_l1),
                      _mm512_reduce_add_pd(all_squares), _mm512_reduce_min_ps(low),
                      _mm512_reduce_max_ps(high),        _mm512_reduce_add_epi32(zeros)};
}

AVX512 static void add_up_avx512(sums_t *total, const char *x, int64_t n, int64_t type) {
    if (type == FLOAT32) add_up_16(total, x, n, FLOAT32);
    else if (type == BFLOAT16) add_up_16(total, x, n, BFLOAT16);
    else add_up_16(total, x, n, FLOAT16);
}

static int has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq"); }
#endif

/* The careful way. */
VECTORISED
static void summarise(summary_t *part, const double *restrict x, int64_t n) {
    int64_t finite = 0, nans = 0, zeros = 0;
    double low = INFINITY, high = -INFINITY, sum = 0, l1 = 0;
#pragma omp simd reduction(+ : finite, nans, zeros, sum, l1) reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; i++) {
        double v = x[i], magnitude = fabs(v);
        int usable = magnitude <= DBL_MAX;
        double below = usable ? v : INFINITY, above = usable ? v : -INFINITY;
        finite += usable;
        nans += v != v;
        zeros += v == 0;
        sum += usable ? v : 0;
        l1 += usable ? magnitude : 0;
        low = below < low ? below : low;
        high = above > high ? above : high;
    }
    double mean = finite ? sum / (double)finite : 0, rest = 0, spread = 0;
#pragma omp simd reduction(+ : rest, spread)
    for (int64_t i = 0; i < n; i++) {
        double d = fabs(x[i]) <= DBL_MAX ? x[i] - mean : 0;
        rest += d;
        spread += d * d;
    }
    if (finite) { /* what rounding left in the mean */
        mean += rest / (double)finite;
        spread -= rest * rest / (double)finite;
    }
    *part = (summary_t){nans, n - finite - nans, zeros, finite, low, high, mean, spread, l1};
}

VECTORISED
static void widen_float32(double *restrict out, const float *restrict in, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = in[i];
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
        uint32_t half = in[i], bits = (half & 0x7fffu) << 13;
        float value;
        memcpy(&value, &bits, 4);
        value *= 0x1p112f;
        memcpy(&bits, &value, 4);
        bits |= -(uint32_t)((half & 0x7c00u) == 0x7c00u) & 0x7f800000u;
        bits |= (half & 0x8000u) << 16;
        memcpy(&out[i], &bits, 4);
    }
}

static void summarise_block(summary_t *part, const tensor_t *tensor, int64_t at, int64_t n) {
    float narrow[BLOCK];
    double wide[BLOCK];
    sums_t sums;
    const char *data = (const char *)(intptr_t)tensor->address;
    if (tensor->type == FLOAT64) {
        summarise(part, (const double *)data + at, n);
        return;
    }
    int added = 0;
#ifdef WITH_AVX512
    if (n % RUN == 0 && has_avx512()) {
        add_up_avx512(&sums, data + at * (tensor->type == FLOAT32 ? 4 : 2), n, tensor->type);
        if (accept(part, &sums, n)) return;
        added = 1;
    }
#endif
    const float *x = narrow;
    if (tensor->type == FLOAT32) x = (const float *)data + at;
    else if (tensor->type == BFLOAT16) widen_bfloat16(narrow, (const uint16_t *)data + at, n);
    else widen_float16(narrow, (const uint16_t *)data + at, n);
    if (!added) {
        add_up(&sums, x, n);
        if (accept(part, &sums, n)) return;
    }
    widen_float32(wide, x, n);
    summarise(part, wide, n);
}

static void summarise_chunk(summary_t *total, const tensor_t *tensor, int64_t begin) {
    int64_t end = begin + CHUNK < tensor->numel ? begin + CHUNK : tensor->numel;
    *total = NOTHING;
    for (int64_t at = begin, n; at < end; at += n) {
        n = end - at < BLOCK ? end - at : BLOCK;
        if (n > RUN) n -= n % RUN;
        summary_t part;
        summarise_block(&part, tensor, at, n);
        merge(total, &part);
    }
}

/* For doubles whose squares leave the range of a double: those of the entries times `scale`. */
static void summarise_scaled(summary_t *total, const tensor_t *tensor, double scale) {
    const double *x = (const double *)(intptr_t)tensor->address;
    double scaled[BLOCK];
    *total = NOTHING;
    for (int64_t at = 0; at < tensor->numel; at += BLOCK) {
        int64_t n = tensor->numel - at < BLOCK ? tensor->numel - at : BLOCK;
        for (int64_t i = 0; i < n; i++) scaled[i] = x[at + i] * scale;
        summary_t part;
        summarise(&part, scaled, n);
        merge(total, &part);
    }
}

typedef struct {
    const tensor_t *tensors;
    const int64_t *first_chunk; /* of each tensor; one more entry than tensors */
    int64_t chunks;
    summary_t *summaries; /* of each chunk */
    atomic_llong next;
} job_t;

static void work(void *argument) {
    job_t *job = argument;
    fenv_t users;
    fegetenv(&users);
    fesetenv(FE_DFL_ENV); /* torch.set_flush_denormal must not turn small numbers into zeros here */
    int64_t tensor = 0, chunk;
    while ((chunk = atomic_fetch_add(&job->next, 1)) < job->chunks) {
        while (chunk >= job->first_chunk[tensor + 1]) tensor++;
        int64_t begin = (chunk - job->first_chunk[tensor]) * CHUNK;
        summarise_chunk(&job->summaries[chunk], &job->tensors[tensor], begin);
    }
    fesetenv(&users);
}

static void write_row(double *row, const tensor_t *tensor, summary_t s) {
    double largest = fmax(-s.min, s.max), scale = 1;
    row[0] = (double)tensor->numel;
    row[1] = (double)s.n_nan;
    row[2] = (double)s.n_inf;
    row[3] = (double)s.n_zero;
    row[8] = row[9] = 0;
    row[4] = row[5] = row[6] = row[7] = row[10] = NAN;
    if (!s.finite) return;
    row[4] = s.min;
    row[5] = s.max;
    row[10] = largest;
    if (largest > 0x1p480 || (largest < 0x1p-480 && largest > 0)) {
        int exponent;
        frexp(largest, &exponent);
        scale = ldexp(1, exponent < -1000 ? 1000 : -exponent);
        summarise_scaled(&s, tensor, scale);
    }
    double n = (double)s.finite;
    if (row[4] == row[5]) {
        s.mean = row[4] * scale;
        s.spread = 0;
    }
    row[6] = s.mean / scale;
    row[7] = sqrt(s.spread / n) / scale;
    row[8] = s.l1 / scale;
    row[9] = sqrt(s.spread + n * s.mean * s.mean) / scale;
}

/* Columns numel, n_nan, n_inf, n_zero, min, max, mean, std, l1, l2, abs_max for each tensor.
 *
 * `parallel` is GOMP_parallel of the OpenMP library that torch computes with, so that its threads are used
 * and no others, or NULL. Returns how many tensors hold something that is not finite, or -1 without memory.
 */
int stepwatch_measure(int64_t count, const tensor_t *tensors, double *out, parallel_t parallel) {
    int64_t *first = malloc((size_t)(count + 1) * sizeof *first), entries = 0;
    if (!first) return -1;
    first[0] = 0;
    for (int64_t t = 0; t < count; t++) {
        first[t + 1] = first[t] + (tensors[t].numel + CHUNK - 1) / CHUNK;
        entries += tensors[t].numel;
    }
    summary_t *summaries = malloc((size_t)(first[count] + 1) * sizeof *summaries);
    if (!summaries) {
        free(first);
        return -1;
    }
    job_t job = {tensors, first, first[count], summaries, 0};
    if (parallel && entries >= WORTH_THREADS) parallel(work, &job, 0, 0);
    else work(&job);
    int broken = 0;
    for (int64_t t = 0; t < count; t++) {
        summary_t total = NOTHING;
        for (int64_t c = first[t]; c < first[t + 1]; c++) merge(&total, &summaries[c]);
        write_row(out + t * COLUMNS, &tensors[t], total);
        broken += total.n_nan + total.n_inf > 0;
    }
    free(summaries);
    free(first);
    return broken;
}

/* Whether an entry lets its unit count as active: it is above zero or NaN. */
static inline int active_half(uint16_t bits, uint16_t infinity) {
    return (bits & 0x7fffu) > infinity || (bits != 0 && !(bits & 0x8000u));
}

VECTORISED
static void mark_active(uint8_t *restrict active, const tensor_t *row, int64_t units) {
    const void *data = (const void *)(intptr_t)row->address;
    if (row->type == FLOAT32) {
        const float *restrict x = data;
        for (int64_t u = 0; u < units; u++) active[u] |= !(x[u] <= 0);
    } else if (row->type == FLOAT64) {
        const double *restrict x = data;
        for (int64_t u = 0; u < units; u++) active[u] |= !(x[u] <= 0);
    } else {
        const uint16_t *restrict x = data;
        uint16_t infinity = row->type == BFLOAT16 ? 0x7f80u : 0x7c00u;
        for (int64_t u = 0; u < units; u++) active[u] |= active_half(x[u], infinity);
    }
}

static int any_active(const tensor_t *unit, int64_t positions) {
    uint8_t active[256] = {0};
    tensor_t run = *unit;
    int64_t size = unit->type == FLOAT32 ? 4 : unit->type == FLOAT64 ? 8 : 2;
    for (int64_t at = 0, n; at < positions; at += n) {
        n = positions - at < 256 ? positions - at : 256;
        run.address = unit->address + at * size;
        mark_active(active, &run, n);
        for (int64_t i = 0; i < n; i++)
            if (active[i]) return 1;
    }
    return 0;
}

/* For how many steps in a row each unit of a contiguous output [outer, units, inner] has been silent, meaning
 * that no entry of it was above zero or NaN: adds one to `silent_for` of the silent units and sets the others to
 * zero. `reached` gets the number of units silent now, and those silent for at least each of two `windows`.
 * Returns 0, or -1 without memory.
 */
int stepwatch_silent_units(int64_t address, int64_t type, int64_t outer, int64_t units, int64_t inner,
                           int32_t *silent_for, const int32_t *windows, int64_t *reached) {
    tensor_t part = {address, 0, type};
    int64_t size = type == FLOAT32 ? 4 : type == FLOAT64 ? 8 : 2;
    uint8_t *active = calloc((size_t)units, 1);
    if (!active) return -1;
    for (int64_t o = 0; o < outer; o++) {
        part.address = address + o * units * inner * size;
        if (inner == 1) {
            mark_active(active, &part, units);
            continue;
        }
        for (int64_t u = 0; u < units; u++, part.address += inner * size)
            if (!active[u]) active[u] = (uint8_t)any_active(&part, inner);
    }
    reached[0] = reached[1] = reached[2] = 0;
    for (int64_t u = 0; u < units; u++) {
        silent_for[u] = active[u] ? 0 : silent_for[u] + 1;
        reached[0] += silent_for[u] > 0;
        reached[1] += silent_for[u] >= windows[0];
        reached[2] += silent_for[u] >= windows[1];
    }
    free(active);
    return 0;
}

/* Whether the entry `label` of a row is its first largest one; not where a NaN is among them. */
VECTORISED
static int is_first_largest_32(const float *restrict row, int64_t classes, int64_t label) {
    float value = row[label];
    int beaten = 0;
    for (int64_t c = 0; c < label; c++) beaten |= !(row[c] < value);
    for (int64_t c = label; c < classes; c++) beaten |= !(row[c] <= value);
    return !beaten;
}

VECTORISED
static int is_first_largest_64(const double *restrict row, int64_t classes, int64_t label) {
    double value = row[label];
    int beaten = 0;
    for (int64_t c = 0; c < label; c++) beaten |= !(row[c] < value);
    for (int64_t c = label; c < classes; c++) beaten |= !(row[c] <= value);
    return !beaten;
}

/* Samples of each class, and how many of them are predicted right, of contiguous logits [rows, classes] in single
 * or double precision. Labels that are `ignored` or no class do not count. `counts` holds 2 * classes zeros. */
int stepwatch_class_counts(int64_t logits, int64_t type, int64_t rows, int64_t classes, int64_t ignored,
                           const int64_t *labels, int64_t *counts) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t label = labels[r];
        if (label < 0 || label >= classes || label == ignored) continue;
        counts[label]++;
        const void *row = (const char *)(intptr_t)logits + r * classes * (type == FLOAT32 ? 4 : 8);
        counts[classes + label] += type == FLOAT32 ? is_first_largest_32(row, classes, label)
                                                   : is_first_largest_64(row, classes, label);
    }
    return 0;
}
