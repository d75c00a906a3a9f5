/* The inner loop of sparse_jl: one pass over the gradients, sums kept in the first-level cache, nothing allocated.
 *
 * signed_sums.py says what is computed, and does the same with torch, to the bit, where this file was not compiled: a sum has
 * its terms in order, and no product with a sign is ever rounded, so neither threads nor vectors nor fused operations show.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define SLICE 2048 /* floats of sums at a time: with those of two samples, 16 KiB of a first-level cache of 32 */
#define LANES 16
#define AHEAD 256    /* floats: how far to fetch, since a core that also adds does not look far enough ahead itself */
#define FEW (1 << 15) /* entries that are added sooner than a thread is woken */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

static ptrdiff_t smaller(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
static ptrdiff_t larger(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }

/* What becomes of a sum of signed entries: added to by the terms one after another; begun by them; or added to by their sum. */
enum mode { CONTINUE, BEGIN, ADD };

/* Columns i … i + lanes of what add_runs says. All counts but i are constants where this is called: loops are unrolled. */
INLINE void add_lanes(const float *grad, ptrdiff_t stride, int samples, const int8_t *signs, ptrdiff_t width, int runs,
                      enum mode mode, float *sums, ptrdiff_t sums_stride, ptrdiff_t i, int lanes) {
    for (int j = 0; j < lanes; ++j) {
        float sign[4];
        for (int run = 0; run < runs; ++run) sign[run] = (float)signs[run * width + i + j];
        for (int b = 0; b < samples; ++b) {
            float *place = sums + b * sums_stride + i + j, sum = mode == CONTINUE ? *place : 0.0f;
            for (int run = 0; run < runs; ++run) sum += grad[b * stride + run * width + i + j] * sign[run];
            *place = mode == ADD ? *place + sum : sum;
        }
    }
}

INLINE void add_few_runs(const float *grad, ptrdiff_t stride, int samples, const int8_t *signs, ptrdiff_t width, int runs,
                         enum mode mode, float *sums, ptrdiff_t sums_stride, ptrdiff_t count) {
    ptrdiff_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int b = 0; b < samples; ++b)
            for (int run = 0; run < runs; ++run) __builtin_prefetch(grad + b * stride + run * width + i + AHEAD);
        add_lanes(grad, stride, samples, signs, width, runs, mode, sums, sums_stride, i, LANES);
    }
    for (; i < count; ++i) add_lanes(grad, stride, samples, signs, width, runs, mode, sums, sums_stride, i, 1);
}

/* One to four runs, of one sample or two, which share the signs. */
INLINE void add_up_to_four(const float *grad, ptrdiff_t stride, int samples, const int8_t *signs, ptrdiff_t width,
                           ptrdiff_t runs, enum mode mode, float *sums, ptrdiff_t sums_stride, ptrdiff_t count) {
#define WITH(few) \
    if (samples == 2) add_few_runs(grad, stride, 2, signs, width, few, mode, sums, sums_stride, count); \
    else add_few_runs(grad, stride, 1, signs, width, few, mode, sums, sums_stride, count)
    switch (runs) {
        case 4: WITH(4); break;
        case 3: WITH(3); break;
        case 2: WITH(2); break;
        case 1: WITH(1);
    }
#undef WITH
}

/* sums[i] += grad[i] · signs[i] + grad[i + width] · signs[i + width] + …, `runs` terms, in this order. No more than four
 * where their sum is to be added. */
FOR_EACH_PROCESSOR
static void add_runs(const float *restrict grad, ptrdiff_t stride, int samples, const int8_t *restrict signs,
                     ptrdiff_t width, ptrdiff_t runs, enum mode mode, float *restrict sums, ptrdiff_t sums_stride,
                     ptrdiff_t count) {
    if (mode == ADD) {
        add_up_to_four(grad, stride, samples, signs, width, runs, ADD, sums, sums_stride, count);
        return;
    }
    if (mode == BEGIN) {
        ptrdiff_t few = smaller(runs, 4);
        add_up_to_four(grad, stride, samples, signs, width, few, BEGIN, sums, sums_stride, count);
        runs -= few, grad += few * width, signs += few * width;
    }
    for (ptrdiff_t few; runs > 0; runs -= few, grad += few * width, signs += few * width) {
        few = smaller(runs, 4);
        add_up_to_four(grad, stride, samples, signs, width, few, CONTINUE, sums, sums_stride, count);
    }
}

FOR_EACH_PROCESSOR
static void add(const float *restrict values, float *restrict sums, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; ++i) sums[i] += values[i];
}

/* Entries start … end of gradients, which `grad` points to the first of, to the sums of columns lo … hi, which
 * only those of entry 0 may begin. */
static void add_columns(const float *grad, ptrdiff_t stride, int samples, const int8_t *signs, ptrdiff_t start,
                        ptrdiff_t end, ptrdiff_t width, ptrdiff_t lo, ptrdiff_t hi, enum mode mode, float *sums,
                        ptrdiff_t sums_stride) {
    ptrdiff_t base = start - start % width; /* where the run begins that `start` is in */
    while (base + lo < end) {
        ptrdiff_t from = larger(lo, start - base), to = smaller(hi, end - base);
        ptrdiff_t runs = from == lo && to == hi ? (end - base - hi) / width + 1 : 1;
        if (from < to)
            add_runs(grad + (base + from - start), stride, samples, signs + base + from, width, runs, mode,
                     sums + (from - lo), sums_stride, to - from);
        base += runs * width;
        mode = CONTINUE;
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

/* Whether every group of `length` sums has an offset, and each rolls within the features. */
static int rolls(const int64_t *offsets, ptrdiff_t groups, ptrdiff_t length, ptrdiff_t width, ptrdiff_t dim) {
    if (length < 1 || length > dim || groups < (width + length - 1) / length) return 0;
    for (ptrdiff_t group = 0; group < groups; ++group)
        if (offsets[group] < 0 || offsets[group] >= dim) return 0;
    return 1;
}

/* Whether `rows` rows of `columns` floats, `stride` apart, lie side by side and are as many as `batch`. */
static int fits(ptrdiff_t batch, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t stride) {
    return batch >= 0 && batch == rows && columns > 0 && (rows < 2 || stride >= columns);
}

/* What is exported returns 0; or 1, having touched nothing, if a size or an offset would lead outside of an array. */

int checked_signed_sums_accumulate(const float *grad, ptrdiff_t grad_stride, ptrdiff_t batch, ptrdiff_t entries, ptrdiff_t start,
                           const int8_t *signs, ptrdiff_t num_signs, ptrdiff_t width, int begin, float *sums,
                           ptrdiff_t sums_stride, ptrdiff_t num_sums, int threads) {
    if (batch == 0 || entries == 0) return 0;
    if (!fits(batch, num_sums, width, sums_stride) || !fits(batch, batch, entries, grad_stride) || start < 0 ||
        entries > num_signs - start || threads < 1)
        return 1;
    ptrdiff_t length = smaller(SLICE, ((width + threads - 1) / threads + LANES - 1) / LANES * LANES);
    ptrdiff_t slices = (width + length - 1) / length, pairs = (batch + 1) / 2;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * entries > FEW)
    for (ptrdiff_t part = 0; part < pairs * slices; ++part) {
        ptrdiff_t b = part / slices * 2, lo = part % slices * length, hi = smaller(lo + length, width);
        add_columns(grad + b * grad_stride, grad_stride, (int)smaller(2, batch - b), signs, start, start + entries, width, lo,
                    hi, begin ? BEGIN : CONTINUE, sums + b * sums_stride + lo, sums_stride);
    }
    return 0;
}

int checked_signed_sums_fold(const float *sums, ptrdiff_t sums_stride, ptrdiff_t batch, ptrdiff_t width, const int64_t *offsets,
                     ptrdiff_t groups, ptrdiff_t length, float *features, ptrdiff_t features_stride, ptrdiff_t rows,
                     ptrdiff_t dim, int threads) {
    if (batch == 0) return 0;
    if (!fits(batch, rows, dim, features_stride) || !fits(batch, batch, width, sums_stride) ||
        !rolls(offsets, groups, length, width, dim) || threads < 1)
        return 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * width > FEW)
    for (ptrdiff_t b = 0; b < batch; ++b)
        fold_columns(sums + b * sums_stride, 0, width, offsets, length, features + b * features_stride, dim);
    return 0;
}

/* Up to four runs a sum: added to the features as they are read. */
static void project_few(const float *grad, ptrdiff_t stride, int samples, ptrdiff_t entries, const int8_t *signs,
                        const int64_t *offsets, ptrdiff_t length, ptrdiff_t width, float *features,
                        ptrdiff_t features_stride, ptrdiff_t dim) {
    for (ptrdiff_t lo = 0, hi, end = smaller(width, entries); lo < end; lo = hi) {
        ptrdiff_t group = lo / length, place = (lo - group * length + offsets[group]) % dim;
        ptrdiff_t runs = (entries - 1 - lo) / width + 1; /* that reach column lo, and those up to the end of the last run */
        hi = smaller(smaller((group + 1) * length, end), smaller(lo + dim - place, entries - (runs - 1) * width));
        add_runs(grad + lo, stride, samples, signs + lo, width, runs, ADD, features + place, features_stride, hi - lo);
    }
}

/* A slice of the sums at a time, which never leave the cache. */
static void project_many(const float *grad, ptrdiff_t stride, int samples, ptrdiff_t entries, const int8_t *signs,
                         const int64_t *offsets, ptrdiff_t length, ptrdiff_t width, float *features,
                         ptrdiff_t features_stride, ptrdiff_t dim) {
    float sums[2 * SLICE];
    for (ptrdiff_t lo = 0; lo < width; lo += SLICE) {
        ptrdiff_t hi = smaller(lo + SLICE, width);
        add_columns(grad, stride, samples, signs, 0, entries, width, lo, hi, BEGIN, sums, SLICE);
        for (int b = 0; b < samples; ++b)
            fold_columns(sums + b * SLICE, lo, hi, offsets, length, features + b * features_stride, dim);
    }
}

/* Both at once, for pairs of samples, which threads divide. */
int checked_signed_sums_project(const float *grad, ptrdiff_t grad_stride, ptrdiff_t batch, ptrdiff_t entries, const int8_t *signs,
                        ptrdiff_t num_signs, const int64_t *offsets, ptrdiff_t groups, ptrdiff_t length, ptrdiff_t width,
                        float *features, ptrdiff_t features_stride, ptrdiff_t rows, ptrdiff_t dim, int threads) {
    if (batch == 0 || entries == 0) return 0;
    if (!fits(batch, rows, dim, features_stride) || !fits(batch, batch, entries, grad_stride) || entries > num_signs ||
        width < 1 || !rolls(offsets, groups, length, smaller(width, entries), dim) || threads < 1)
        return 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (batch * entries > FEW)
    for (ptrdiff_t b = 0; b < batch; b += 2)
        (entries <= 4 * width ? project_few : project_many)(grad + b * grad_stride, grad_stride, (int)smaller(2, batch - b),
                                                            entries, signs, offsets, length, width,
                                                            features + b * features_stride, features_stride, dim);
    return 0;
}
