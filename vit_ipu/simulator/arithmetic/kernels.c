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
#define PARALLEL (1 << 13) /* values from which several threads are worth their start */
#define ROWS 8   /* rows of a product that are computed together */

typedef float vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint64_t pairs __attribute__((vector_size(4 * LANES)));

static const words LANE_NUMBERS = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const uint32_t DROPPED = 0x1FFF;           /* bits of float32's mantissa that float16 lacks */
static const uint32_t SMALLEST_NORMAL = 0x38800000; /* 2^-14 */
static const uint32_t LARGEST = 0x477FE000;       /* 65504 */
static const uint32_t BEYOND = 0x477FF000;          /* 65520, from which values round beyond the largest */
static const uint32_t INFINITE = 0x7F800000;

/* Splits the products of words with a factor into their higher and lower 32 bits. */
static inline void multiply(words values, uint32_t factor, words *high, words *low) {
#if defined(__AVX512F__)
    __m512i factors = _mm512_set1_epi64(factor), pairwise = (__m512i)values;
    __m512i even = _mm512_mul_epu32(pairwise, factors);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(pairwise, 32), factors);
    *low = (words)_mm512_mask_shuffle_epi32(even, 0xAAAA, odd, _MM_PERM_CCAA);
    *high = (words)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
#elif defined(__AVX2__)
    __m256i halves[2], lower[2], upper[2], factors = _mm256_set1_epi64x(factor);
    memcpy(halves, &values, sizeof halves);
    for (int i = 0; i < 2; i++) {
        __m256i even = _mm256_mul_epu32(halves[i], factors);
        __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(halves[i], 32), factors);
        lower[i] = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
        upper[i] = _mm256_blend_epi32(odd, _mm256_srli_epi64(even, 32), 0x55);
    }
    memcpy(low, lower, sizeof lower);
    memcpy(high, upper, sizeof upper);
#else
    pairs even = ((pairs)values & 0xFFFFFFFF) * factor, odd = ((pairs)values >> 32) * factor;
    *low = (words)((even & 0xFFFFFFFF) | (odd << 32));
    *high = (words)((even >> 32) | (odd & 0xFFFFFFFF00000000));
#endif
}

/* Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) of LANES consecutive counters. */
static inline void philox(uint64_t first, uint32_t third, uint64_t seed, uint64_t operation, words *w) {
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32) ^ (uint32_t)(operation >> 32);
    w[0] = LANE_NUMBERS + (uint32_t)first;
    w[1] = (uint32_t)(first >> 32) - (words)(w[0] < (uint32_t)first); /* a carry is a comparison's -1 */
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

/* Clips finite values that were rounded beyond the largest one, and makes every NaN the usual one. `before` are the
   values before they were rounded. */
static inline vector finish(vector found, vector before) {
    words size = (words)before & 0x7FFFFFFF, sign = (words)before ^ size, rounded = (words)found & 0x7FFFFFFF;
    rounded = choose((words)(rounded > LARGEST) & (words)(size < INFINITE), (words){0} + LARGEST, rounded);
    rounded = choose((words)(size > INFINITE), (words){0} + 0x7FC00000, rounded);
    return (vector)(rounded | sign);
}

/* Rounds to a float16 value, as float32: away from zero with the probability of the remainder. `draws` are random
   numbers below 2^13. Values beyond the largest one need `finish`. */
static inline vector to_a_neighbour(vector values, words draws) {
    words size = (words)values & 0x7FFFFFFF, sign = (words)values ^ size;
    words shift = (words)(size < SMALLEST_NORMAL) & SMALLEST_NORMAL; /* gives subnormals their spacing */
    vector near = (vector)size + (vector)shift;
    vector cut = (vector)(((words)near + draws) & ~DROPPED);
    return (vector)((words)(cut - (vector)shift) | sign);
}

/* Rounds to the nearest float16 value, ties to even, as float32. Values beyond the largest one need `finish`. */
static inline vector to_nearest(vector values) {
    words size = (words)values & 0x7FFFFFFF, sign = (words)values ^ size;
    words cut = (size + 0xFFF + ((size >> 13) & 1)) & ~DROPPED;
    vector small = ((vector)size + 0.5f) - 0.5f; /* float32's spacing at 0.5 is that of float16's subnormals */
    return (vector)(choose((words)(size < SMALLEST_NORMAL), (words)small, cut) | sign);
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

/* Returns float16 values as float32. */
static inline vector float_of(halves values) {
    words bits = __builtin_convertvector(values, words), size = bits & 0x7FFF, sign = (bits & 0x8000) << 16;
    words normal = (size << 13) + (112 << 23);
    words small = (words)(__builtin_convertvector(size, vector) * 0x1p-24f);
    words found = choose((words)(size < 0x400), small, normal);
    found = choose((words)(size >= 0x7C00), (size << 13) | INFINITE, found);
    return (vector)(found | sign);
}

/* All bits of a lane are set if its value is finite and rounds beyond the largest float16. */
static inline words is_too_large(vector values) {
    words size = (words)values & 0x7FFFFFFF;
    return (words)(size >= BEYOND) & (words)(size < INFINITE);
}

static inline words larger(words a, words b) {
#if defined(__AVX512F__)
    return (words)_mm512_max_epu32((__m512i)a, (__m512i)b);
#else
    return choose((words)(a > b), a, b);
#endif
}

static inline int any_is_beyond(words sizes) {
    int found = 0;
    for (int l = 0; l < LANES; l++)
        found |= sizes[l] > LARGEST;
    return found;
}

/* Rounds the values of a block in place; returns how many were clipped. */
static inline __attribute__((always_inline)) int64_t round_block(vector *values, const int stochastic, int64_t number,
                                                                 uint64_t seed, uint64_t operation) {
    vector before[SLOTS];
    words w[4], largest = {0};
    int64_t clipped = 0;
    if (stochastic)
        philox((uint64_t)number * LANES, 0, seed, operation, w);
#pragma GCC unroll 8
    for (int slot = 0; slot < SLOTS; slot++) {
        before[slot] = values[slot];
        largest = larger(largest, (words)values[slot] & 0x7FFFFFFF);
        values[slot] = stochastic ? to_a_neighbour(values[slot], draws_of(w, slot)) : to_nearest(values[slot]);
    }
    if (any_is_beyond(largest))
        for (int slot = 0; slot < SLOTS; slot++) {
            values[slot] = finish(values[slot], before[slot]);
            words too_large = is_too_large(before[slot]);
            for (int l = 0; l < LANES; l++)
                clipped += too_large[l] & 1;
        }
    return clipped;
}

/* Reads a block of float16 values. */
static inline void read_halves(const uint16_t *values, vector *block, int64_t count) {
    halves in[SLOTS];
    if (count < LANES * SLOTS)
        memset(in, 0, sizeof in);
    memcpy(in, values, 2 * (size_t)count);
    for (int slot = 0; slot < SLOTS; slot++)
        block[slot] = float_of(in[slot]);
}

/* Writes a block of float16 values that are in float32. */
static inline void write_halves(uint16_t *results, const vector *block, int64_t count) {
    halves out[SLOTS];
    for (int slot = 0; slot < SLOTS; slot++)
        out[slot] = half_of(block[slot]);
    memcpy(results, out, 2 * (size_t)count);
}

static inline void read_floats(const float *values, vector *block, int64_t count) {
    if (count < LANES * SLOTS)
        memset(block, 0, SLOTS * sizeof *block);
    memcpy(block, values, 4 * (size_t)count);
}

/* Rounds n values into `results`, or as float32 into `wide`; the other is NULL. `wide` may be the values' own memory.
   Adds how many were clipped to `num_clipped`. */
void round_to_half(const float *values, uint16_t *results, float *wide, int64_t *num_clipped, int64_t n, int stochastic,
                   uint64_t seed, uint64_t operation, int threads) {
    const int64_t size = LANES * SLOTS, blocks = (n + size - 1) / size;
    int64_t clipped = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : clipped) if (n > PARALLEL)
    for (int64_t b = 0; b < blocks; b++) {
        vector block[SLOTS];
        int64_t start = b * size, count = n - start < size ? n - start : size;
        read_floats(values + start, block, count);
        clipped += stochastic ? round_block(block, 1, b, seed, operation) : round_block(block, 0, b, seed, operation);
        if (wide != NULL)
            memcpy(wide + start, block, 4 * (size_t)count);
        else
            write_halves(results + start, block, count);
    }
    *num_clipped += clipped;
}

/* Makes each of n float16 sums sum * kept + value * added, rounded. Adds how many were clipped to `num_clipped`. */
void accumulate_in_half(uint16_t *sums, const uint16_t *values, float kept, float added, int64_t *num_clipped,
                        int64_t n, int stochastic, uint64_t seed, uint64_t operation, int threads) {
    const int64_t size = LANES * SLOTS, blocks = (n + size - 1) / size;
    int64_t clipped = 0;
#pragma omp parallel for num_threads(threads) reduction(+ : clipped) if (n > PARALLEL)
    for (int64_t b = 0; b < blocks; b++) {
        vector block[SLOTS], new[SLOTS];
        int64_t start = b * size, count = n - start < size ? n - start : size;
        read_halves(sums + start, block, count);
        read_halves(values + start, new, count);
        for (int slot = 0; slot < SLOTS; slot++) {
            block[slot] *= kept;
            new[slot] *= added;
            __asm__("" : "+m"(block[slot]), "+m"(new[slot])); /* or a compiler makes one operation of product and sum */
            block[slot] += new[slot];
        }
        clipped += stochastic ? round_block(block, 1, b, seed, operation) : round_block(block, 0, b, seed, operation);
        write_halves(sums + start, block, count);
    }
    *num_clipped += clipped;
}

/* Computes `rows` rows and LANES columns of a product; returns in how many rows of each lane a sum was clipped. `right`
   has LANES columns. `finished`: sums may be beyond the largest value; if not, all lanes are -1 should one be so. */
static inline __attribute__((always_inline)) words tile(const float *left, const int64_t *strides, const float *right,
                                                        vector *totals, const int rows, int64_t inner, int64_t chunk,
                                                        const int stochastic, const int finished, uint64_t seed,
                                                        uint64_t operation, const uint64_t *elements) {
    words w[ROWS][4], largest[ROWS] = {{0}}, clipped = {0};
    for (int r = 0; r < rows; r++)
        totals[r] = (vector){0};
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
                parts[r] += left[r * strides[1] + k * strides[2]] * column;
        }
        for (int r = 0; r < rows; r++) {
            vector total = totals[r] + parts[r];
            largest[r] = larger(largest[r], (words)total & 0x7FFFFFFF);
            totals[r] = stochastic ? to_a_neighbour(total, draws_of(w[r], slot)) : to_nearest(total);
            if (finished)
                totals[r] = finish(totals[r], total);
        }
    }
    for (int r = 0; r < rows; r++) {
        if (finished)
            clipped -= is_too_large((vector)largest[r]);
        else if (any_is_beyond(largest[r]))
            return (words){0} - 1;
    }
    return clipped;
}

/* Computes a tile, at first as if no sum were beyond the largest value. */
static words rows_of_product(const float *left, const int64_t *strides, const float *right, vector *totals, int rows,
                             int64_t inner, int64_t chunk, int stochastic, uint64_t seed, uint64_t operation,
                             const uint64_t *elements) {
#define TILE(count, is_stochastic, finished)                                                                           \
    tile(left, strides, right, totals, count, inner, chunk, is_stochastic, finished, seed, operation, elements)
    words clipped = (words){0} - 1;
    if (rows == ROWS)
        clipped = stochastic ? TILE(ROWS, 1, 0) : TILE(ROWS, 0, 0);
    if (clipped[0] == UINT32_MAX)
        clipped = TILE(rows, stochastic, 1);
    return clipped;
#undef TILE
}

/* Packs LANES columns of a matrix, the rows one after the other; columns beyond `width` are zeros. */
static void pack(const float *right, const int64_t *strides, float *panel, int64_t inner, int64_t width) {
    if (strides[2] == 1 && width == LANES) {
        for (int64_t k = 0; k < inner; k++)
            memcpy(panel + k * LANES, right + k * strides[1], LANES * sizeof(float));
        return;
    }
    if (width < LANES)
        memset(panel, 0, (size_t)(inner * LANES) * sizeof(float));
    for (int64_t l = 0; l < width; l++)
        for (int64_t k = 0; k < inner; k++)
            panel[k * LANES + l] = right[k * strides[1] + l * strides[2]];
}

/* Multiplies `batch` matrices (rows, inner) and (inner, columns) of float16 values in float32, into `results`, or as
   float32 into `wide`; the other is NULL, and both are contiguous. `left_strides` and `right_strides` are three each.
   Adds the number of elements of which a sum was clipped to `num_clipped`. */
int product_in_half(const float *left, const int64_t *left_strides, const float *right, const int64_t *right_strides,
                    uint16_t *results, float *wide, int64_t *num_clipped, int64_t batch, int64_t rows, int64_t columns,
                    int64_t inner, int64_t chunk, int stochastic, uint64_t seed, uint64_t operation, int threads) {
    const int64_t panels = (columns + LANES - 1) / LANES;
    int64_t clipped = 0;
    int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed) reduction(+ : clipped) if (batch * rows * columns * inner > 1 << 18)
    for (int64_t task = 0; task < batch * panels; task++) {
        int64_t matrix = task / panels, first = task % panels * LANES;
        int64_t width = columns - first < LANES ? columns - first : LANES;
        float *panel = malloc((size_t)(inner * LANES + 1) * sizeof(float));
        if (panel == NULL) {
            failed = 1;
            continue;
        }
        pack(right + matrix * right_strides[0] + first * right_strides[2], right_strides, panel, inner, width);
        words too_large = {0};
        for (int64_t row = 0; row < rows; row += ROWS) {
            int count = rows - row < ROWS ? (int)(rows - row) : ROWS;
            vector totals[ROWS];
            uint64_t elements[ROWS];
            for (int r = 0; r < count; r++)
                elements[r] = (uint64_t)((matrix * rows + row + r) * columns + first);
            too_large += rows_of_product(left + matrix * left_strides[0] + row * left_strides[1], left_strides, panel,
                                         totals, count, inner, chunk, stochastic, seed, operation, elements);
            for (int r = 0; r < count; r++) {
                halves rounded = half_of(totals[r]);
                if (wide != NULL)
                    memcpy(wide + elements[r], &totals[r], 4 * (size_t)width);
                else
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
