/* What _kernels.c computes; it knows neither Python nor torch. */

#ifndef STEPWATCH_KERNELS_H
#define STEPWATCH_KERNELS_H

#include <stdint.h>

enum { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3 };

typedef struct {
    int64_t address, numel, type; /* contiguous */
} tensor_t;

/* GOMP_parallel, or NULL */
typedef void (*parallel_t)(void (*)(void *), void *, unsigned, unsigned);

int stepwatch_measure(int64_t count, const tensor_t *tensors, double *out, parallel_t parallel);

int stepwatch_silent_units(int64_t address, int64_t type, int64_t outer, int64_t units, int64_t inner,
                           int32_t *silent_for, const int32_t *windows, int64_t *reached);

int stepwatch_class_counts(int64_t logits, int64_t type, int64_t rows, int64_t classes, int64_t ignored,
                           const int64_t *labels, int64_t *counts);

#endif
