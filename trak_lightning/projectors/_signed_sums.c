/* The inner loop of sparse_jl: one pass over the gradients, sums kept in the first-level cache, nothing allocated.
 *
 * signed_sums.py says what is computed, and does the same with torch, to the bit, where this file was not compiled: a sum has
 * its terms in order, and no product with a sign is ever rounded, so neither threads nor vectors nor fused operations show.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SLICE 4096 /* floats of sums at a time: 16 KiB of a first-level cache of 32 */
#define AHEAD 256  /* floats: how far to fetch, since a core that also adds does not look far enough ahead itself */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

/* sums[i] += grad[i] · signs[i] + grad[i + width] · signs[i + width] + …, `runs` terms, in this order. */
FOR_EACH_PROCESSOR
static void add_runs(const float *restrict grad, const int8_t *restrict signs, ptrdiff_t width, ptrdiff_t runs,
                     float *restrict sums, ptrdiff_t count) {
    ptrdiff_t run = 0;
    for (; run + 4 <= runs; run += 4, grad += 4 * width, signs += 4 * width) {
        ptrdiff_t i = 0;
        for (; i + 16 <= count; i += 16) {
            for (ptrdiff_t of = 0; of < 4; ++of) __builtin_prefetch(grad + of * width + i + AHEAD);
            for (ptrdiff_t j = i; j < i + 16; ++j) {
                float sum = sums[j];
                for (ptrdiff_t of = 0; of < 4; ++of) sum += grad[of * width + j] * (float)signs[of * width + j];
                sums[j] = sum;
            }
        }
        for (; i < count; ++i)
            for (ptrdiff_t of = 0; of < 4; ++of) sums[i] += grad[of * width + i] * (float)signs[of * width + i];
    }
    for (; run < runs; ++run, grad += width, signs += width)
        for (ptrdiff_t i = 0; i < count; ++i) sums[i] += grad[i] * (float)signs[i];
}

static void add(const float *restrict values, float *restrict sums, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; ++i) sums[i] += values[i];
}

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* Entries start … end of one sample's gradient, which `grad` points to the first of, to the sums of columns lo … hi. */
static void add_columns(const float *grad, const int8_t *signs, ptrdiff_t start, ptrdiff_t end, ptrdiff_t width,
                        ptrdiff_t lo, ptrdiff_t hi, float *sums) {
    ptrdiff_t base = start - start % width; /* where the run begins that `start` is in */
    while (base + lo < end) {
        ptrdiff_t from = larger(lo, start - base), to = smaller(hi, end - base);
        ptrdiff_t runs = from == lo && to == hi ? (end - base - hi) / width + 1 : 1;
        if (from < to)
            add_runs(grad + (base + from - start), signs + base + from, width, runs, sums + (from - lo), to - from);
        base += runs * width;
    }
}

/* Sums of columns lo … hi, each run rolled by the offset of its group, to the features of one sample. */
static void fold_columns(const float *sums, ptrdiff_t lo, ptrdiff_t hi, const int64_t *offsets, ptrdiff_t length,
                         float *features, ptrdiff_t dim) {
    for (ptrdiff_t group = lo / length; group * length < hi; ++group) {
        ptrdiff_t from = larger(group * length, lo), to = smaller((group + 1) * length, hi);
        ptrdiff_t place = (from - group * length + offsets[group]) % dim, before = smaller(to - from, dim - place);
        add(sums + (from - lo), features + place, before);
        add(sums + (from - lo) + before, features, to - from - before);
    }
}

void signed_sums_project(const float *grad, ptrdiff_t grad_stride, ptrdiff_t batch, ptrdiff_t entries, const int8_t *signs,
                         const int64_t *offsets, ptrdiff_t length, ptrdiff_t width, float *features,
                         ptrdiff_t features_stride, ptrdiff_t dim, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t b = 0; b < batch; ++b) {
        float sums[SLICE];
        for (ptrdiff_t lo = 0; lo < width; lo += SLICE) {
            ptrdiff_t hi = smaller(lo + SLICE, width);
            memset(sums, 0, (size_t)(hi - lo) * sizeof(float));
            add_columns(grad + b * grad_stride, signs, 0, entries, width, lo, hi, sums);
            fold_columns(sums, lo, hi, offsets, length, features + b * features_stride, dim);
        }
    }
}

void signed_sums_accumulate(const float *grad, ptrdiff_t grad_stride, ptrdiff_t batch, ptrdiff_t start, ptrdiff_t entries,
                            const int8_t *signs, ptrdiff_t width, float *sums, int threads) {
    ptrdiff_t slices = (width + SLICE - 1) / SLICE;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (ptrdiff_t part = 0; part < batch * slices; ++part) {
        ptrdiff_t b = part / slices, lo = part % slices * SLICE, hi = smaller(lo + SLICE, width);
        add_columns(grad + b * grad_stride, signs, start, start + entries, width, lo, hi, sums + b * width + lo);
    }
}
