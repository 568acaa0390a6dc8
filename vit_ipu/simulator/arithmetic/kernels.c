/* Rounding to float16 and products with float16 partials, compiled on first use by compiled.py.

   random_bits.py and rounding.py define what these functions compute, in plain torch, and give the same bits. The sums
   of a chunk are made in float32, one product after the other; a product of two float16 values is exact in float32, so
   that a fused multiply-add gives the same bits as two operations. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define LANES 16 /* counters that are computed together */
#define SLOTS 8  /* draws of 13 bits in the 128 bits of a counter */
#define ROWS 8   /* rows of a product that are computed together */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint64_t pairs __attribute__((vector_size(4 * LANES)));

static const uint32_t DROPPED = 0x1FFF;           /* bits of float32's mantissa that float16 lacks */
static const uint32_t SMALLEST_NORMAL = 0x38800000; /* 2^-14 */
static const uint32_t LARGEST = 0x477FE000;       /* 65504 */
static const uint32_t BEYOND = 0x477FF000;          /* 65520, from which values round beyond the largest */
static const uint32_t INFINITE = 0x7F800000;

/* Multiplies the lower 32 bits of each pair of words by a word; the results have 64 bits. */
static inline pairs widening_product(pairs values, uint32_t factor) {
#if defined(__AVX512F__)
    return (pairs)_mm512_mul_epu32((__m512i)values, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
    __m256i halves[2], factors = _mm256_set1_epi64x(factor);
    memcpy(halves, &values, sizeof halves);
    for (int i = 0; i < 2; i++)
        halves[i] = _mm256_mul_epu32(halves[i], factors);
    memcpy(&values, halves, sizeof halves);
    return values;
#else
    return (values & 0xFFFFFFFF) * factor;
#endif
}

/* Splits the products of words with a factor into their higher and lower 32 bits. */
static inline void multiply(words values, uint32_t factor, words *high, words *low) {
    pairs even = widening_product((pairs)values, factor), odd = widening_product((pairs)values >> 32, factor);
    *low = (words)((even & 0xFFFFFFFF) | (odd << 32));
    *high = (words)((even >> 32) | (odd & 0xFFFFFFFF00000000));
}

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of LANES consecutive counters. */
static inline void philox(uint64_t first, uint32_t third, uint64_t seed, uint64_t operation, words *w) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32) ^ (uint32_t)(operation >> 32);
    for (int l = 0; l < LANES; l++) {
        uint64_t counter = first + (uint64_t)l;
        w[0][l] = (uint32_t)counter;
        w[1][l] = (uint32_t)(counter >> 32);
    }
    w[2] = (words){0} + third;
    w[3] = (words){0} + (uint32_t)operation;
    for (int round = 0; round < 10; round++) {
        words left_high, left_low, right_high, right_low;
        multiply(w[0], 0xD2511F53, &left_high, &left_low);
        multiply(w[2], 0xCD9E8D57, &right_high, &right_low);
        w[0] = right_high ^ w[1] ^ key0;
        w[1] = right_low;
        w[2] = left_high ^ w[3] ^ key1;
        w[3] = left_low;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
}

static inline words choose(words condition, words yes, words no) { return (condition & yes) | (~condition & no); }

/* Clips finite values that were rounded beyond the largest one, and makes every NaN the usual one. */
static inline vector finish(words found, words size, words sign) {
    found = choose((words)(found > LARGEST) & (words)(size < INFINITE), (words){0} + LARGEST, found);
    found = choose((words)(size > INFINITE), (words){0} + 0x7FC00000, found);
    return (vector)(found | sign);
}

/* Rounds to a float16 value, as float32: away from zero with the probability of the remainder. `draws` are random
   numbers below 2^13. */
static inline vector to_a_neighbour(vector values, words draws) {
    words size = (words)values & 0x7FFFFFFF, sign = (words)values ^ size;
    words shift = (words)(size < SMALLEST_NORMAL) & SMALLEST_NORMAL; /* gives subnormals their spacing */
    vector near = (vector)size + (vector)shift;
    vector cut = (vector)(((words)near + draws) & ~DROPPED);
    return finish((words)(cut - (vector)shift), size, sign);
}

/* Rounds to the nearest float16 value, ties to even, as float32. */
static inline vector to_nearest(vector values) {
    words size = (words)values & 0x7FFFFFFF, sign = (words)values ^ size;
    words cut = (size + 0xFFF + ((size >> 13) & 1)) & ~DROPPED;
    vector small = ((vector)size + 0.5f) - 0.5f; /* float32's spacing at 0.5 is that of float16's subnormals */
    return finish(choose((words)(size < SMALLEST_NORMAL), (words)small, cut), size, sign);
}

/* Returns the draws of a slot from 128 random bits of each lane. */
static inline words draws_of(const words *w, int slot) { return (w[slot >> 1] >> (16 * (slot & 1))) & DROPPED; }

/* Returns the bits of float16 values that are in float32. */
static inline halves half_of(vector values) {
    words size = (words)values & 0x7FFFFFFF, sign = ((words)values ^ size) >> 16;
    words is_small = (words)(size < SMALLEST_NORMAL);
    words subnormal = __builtin_convertvector((vector)(size & is_small) * 16777216.0f, words);
    words found = choose(is_small, subnormal, (size >> 13) - (112 << 10));
    found = choose((words)(size >= INFINITE), (size >> 13 & 0x200) | 0x7C00, found);
    return __builtin_convertvector(found | sign, halves);
}

/* All bits of a lane are set if its value is finite and rounds beyond the largest float16. */
static inline words is_too_large(vector values) {
    words size = (words)values & 0x7FFFFFFF;
    return (words)(size >= BEYOND) & (words)(size < INFINITE);
}

/* Rounds n values; adds how many were clipped to `num_clipped`. */
void round_to_half(const float *values, uint16_t *results, int64_t *num_clipped, int64_t n, int stochastic,
                   uint64_t seed, uint64_t operation, int threads) {
    const int64_t block = LANES * SLOTS, blocks = (n + block - 1) / block;
    int64_t clipped = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : clipped) if (n > 1 << 15)
    for (int64_t b = 0; b < blocks; b++) {
        vector in[SLOTS];
        halves out[SLOTS];
        words w[4], too_large = {0};
        int64_t start = b * block, count = n - start < block ? n - start : block;
        memset(in, 0, sizeof in);
        memcpy(in, values + start, 4 * (size_t)count);
        if (stochastic)
            philox((uint64_t)b * LANES, 0, seed, operation, w);
        for (int slot = 0; slot < SLOTS; slot++) {
            too_large -= is_too_large(in[slot]);
            out[slot] = half_of(stochastic ? to_a_neighbour(in[slot], draws_of(w, slot)) : to_nearest(in[slot]));
        }
        memcpy(results + start, out, 2 * (size_t)count);
        for (int l = 0; l < LANES; l++)
            clipped += too_large[l];
    }
    *num_clipped += clipped;
}

/* Computes `rows` rows and LANES columns of a product, and returns in how many rows of each lane a sum was clipped; `right` has LANES columns. */
static inline __attribute__((always_inline)) words tile(const float *left, int64_t left_stride, const float *right, vector *totals, int rows,
                        int64_t inner, int64_t chunk, int stochastic, uint64_t seed, uint64_t operation,
                        const uint64_t *elements) {
    words w[ROWS][4], largest[ROWS] = {{0}}, clipped = {0};
    for (int64_t number = 0, start = 0; start < inner; number++, start += chunk) {
        int64_t end = start + chunk < inner ? start + chunk : inner;
        int slot = (int)(number % SLOTS);
        vector parts[ROWS];
        if (stochastic && slot == 0)
            for (int r = 0; r < rows; r++)
                philox(elements[r], (uint32_t)(number / SLOTS), seed, operation, w[r]);
        for (int r = 0; r < rows; r++)
            parts[r] = (vector){0};
        for (int64_t k = start; k < end; k++) {
            vector column;
            memcpy(&column, right + k * LANES, sizeof column);
            for (int r = 0; r < rows; r++)
                parts[r] += left[r * left_stride + k] * column;
        }
        for (int r = 0; r < rows; r++) {
            vector total = totals[r] + parts[r];
            words size = (words)total & 0x7FFFFFFF;
            largest[r] = choose((words)(size > largest[r]), size, largest[r]);
            totals[r] = stochastic ? to_a_neighbour(total, draws_of(w[r], slot)) : to_nearest(total);
        }
    }
    for (int r = 0; r < rows; r++)
        clipped -= is_too_large((vector)largest[r]);
    return clipped;
}

/* Multiplies `batch` matrices (rows, inner) and (inner, columns) of float16 values in float32, contiguous. Adds the
   number of elements of which a sum was clipped to `num_clipped`. */
int product_in_half(const float *left, const float *right, uint16_t *results, int64_t *num_clipped, int64_t batch,
                    int64_t rows, int64_t columns, int64_t inner, int64_t chunk, int stochastic, uint64_t seed,
                    uint64_t operation, int threads) {
    const int64_t panels = (columns + LANES - 1) / LANES;
    int64_t clipped = 0;
    int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed) reduction(+ : clipped) if (batch * rows * columns * inner > 1 << 18)
    for (int64_t task = 0; task < batch * panels; task++) {
        int64_t matrix = task / panels, first = task % panels * LANES;
        int64_t width = columns - first < LANES ? columns - first : LANES;
        const float *ours = left + matrix * rows * inner, *others = right + matrix * inner * columns + first;
        float *panel = malloc((size_t)(inner * LANES + 1) * sizeof(float));
        if (panel == NULL) {
            failed = 1;
            continue;
        }
        for (int64_t k = 0; k < inner; k++)
            for (int64_t l = 0; l < LANES; l++)
                panel[k * LANES + l] = l < width ? others[k * columns + l] : 0.0f;
        words too_large = {0};
        for (int64_t row = 0; row < rows; row += ROWS) {
            int count = rows - row < ROWS ? (int)(rows - row) : ROWS;
            vector totals[ROWS] = {{0}};
            uint64_t elements[ROWS];
            for (int r = 0; r < count; r++)
                elements[r] = (uint64_t)((matrix * rows + row + r) * columns + first);
            const float *top = ours + row * inner;
            if (count == ROWS)
                too_large += tile(top, inner, panel, totals, ROWS, inner, chunk, stochastic, seed, operation, elements);
            else
                too_large += tile(top, inner, panel, totals, count, inner, chunk, stochastic, seed, operation, elements);
            for (int r = 0; r < count; r++) {
                halves rounded = half_of(totals[r]);
                memcpy(results + elements[r], &rounded, 2 * (size_t)width);
            }
        }
        for (int64_t l = 0; l < width; l++)
            clipped += too_large[l];
        free(panel);
    }
    *num_clipped += clipped;
    return failed;
}
