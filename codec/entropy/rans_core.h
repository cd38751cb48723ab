/* Entropy coding in plain C: what the extension (_rans.c) and the fuzzer (tests/fuzz/fuzz_rans.c) compile.
 *
 * The functions of rans.py with the same results, byte for byte. The law of the frequency rows, and the proofs that
 * nothing overflows, are in docs/ENTROPY.md. All arithmetic that reaches a stream is on unsigned integers. Rows are
 * evaluated where they are used and never stored; every loop over the codewords runs over whole BLOCKs, with weight 0 in
 * the padding, and ends where no codeword that follows has a frequency. The arrays are native integers; the stream is
 * composed of bytes, little-endian on every machine. Shapes and sizes are checked by the caller, ranges in coder.py:
 * values out of range give wrong numbers and never a wrong address.
 */
#ifndef MCODEC_RANS_CORE_H
#define MCODEC_RANS_CORE_H

#include <float.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* One build for every x86-64: the loader takes the widest version that the machine runs (needs glibc's ifunc). */
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12 && defined(__x86_64__) && defined(__GLIBC__) && \
    !defined(MCODEC_NO_CLONES)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

enum {
    BLOCK = 32,         /* codewords per step of the search, and the padding of a row */
    LANES = 16,         /* independent minima in the search of the best codeword */
    MAX_CODEWORDS = 8192,
    MAX_DIMENSION = 64,
    MAX_STREAM_LANES = 1024,
    STATE_BYTES = 6,    /* of a state in the stream */
};

#define TOTAL 65536u                 /* sum of a frequency row */
#define LOWEST ((uint64_t)1 << 32)   /* lower end of a state; the upper one is 2^48 */
#define EVERY (1u << 23)             /* a cutoff that no codeword is beyond */
#define LEAST_CUTOFF (16u * 64)      /* of weights: smaller ones are 0 */
#define PADDING_LOGIT (-(1 << 28))   /* below every true logit (> -2^22): weight 0 */

/* ------------------------------------------------------------------------------------------------ the prior */

typedef struct {
    ptrdiff_t groups, codewords, padded, dimension, positions;
    const int16_t *codeword, *log_weight, *offset; /* [M, K, d], [M, K], [M, d, P] or NULL: static prior */
    const uint8_t *scale;                          /* [M, d, P] */
    uint32_t precision[256], limit[256];           /* by scale index: all 256 are filled, none can be out of range */
    uint32_t cutoff;                               /* logits so much below the largest have no frequency */
    /* of the group that load_group took: */
    int32_t *column;     /* [d, padded] codewords, transposed */
    int32_t *base;       /* [padded] log weights */
    int32_t most;        /* the largest of them */
    uint32_t *radius;    /* [padded / BLOCK] from a block on the least norm of a codeword, rounded down */
    uint32_t *cumulative; /* [K + 1], static prior only */
    /* of the current symbol: */
    int32_t *logit;   /* [padded] */
    uint32_t *weight; /* [padded]; NEAR added where the codeword has a frequency */
} Prior;

#define NEAR 65536u /* more than any weight */

typedef struct {
    uint32_t high, low; /* the two halves of inv = (R << 31) / sum(w) */
    uint32_t top;       /* lowest k of the largest logit */
    ptrdiff_t length;   /* codewords that were looked at: whole blocks; those behind them have no frequency */
} Row;

typedef enum { PRIOR_READY, PRIOR_RANGE, PRIOR_MEMORY } PriorStatus;

/* Fills in the rest of a prior whose groups, codewords, dimension and cutoff are set: its `scales` precisions, and memory
 * for the working arrays. close_prior(p) is due whatever it returns. */
static PriorStatus prepare_prior(Prior *p, const int32_t *precision, ptrdiff_t scales)
{
    if (p->codewords < 2 || p->codewords > MAX_CODEWORDS || p->dimension < 1 || p->dimension > MAX_DIMENSION ||
        p->cutoff < LEAST_CUTOFF || p->cutoff > EVERY)
        return PRIOR_RANGE;
    for (int i = 0; i < 256; i++) {
        const int32_t value = i < scales ? precision[i] : 1;
        if (value < 1 || value > 1 << 14)
            return PRIOR_RANGE;
        p->precision[i] = (uint32_t)value;
        p->limit[i] = (uint32_t)(INT32_MAX / ((int32_t)p->dimension * value));
    }
    p->padded = (p->codewords + BLOCK - 1) / BLOCK * BLOCK;
    const size_t row = (size_t)p->padded * 4;
    p->column = malloc(row * (size_t)p->dimension);
    p->base = malloc(row);
    p->radius = malloc(row / BLOCK);
    p->cumulative = malloc(row + 4);
    p->logit = malloc(row);
    p->weight = malloc(row);
    return p->column && p->base && p->radius && p->cumulative && p->logit && p->weight ? PRIOR_READY : PRIOR_MEMORY;
}

static void close_prior(Prior *p)
{
    free(p->column);
    free(p->base);
    free(p->radius);
    free(p->cumulative);
    free(p->logit);
    free(p->weight);
}

INLINE int is_skipped(const Prior *p, ptrdiff_t group, ptrdiff_t position)
{
    if (!p->scale)
        return 0;
    const uint8_t *scale = p->scale + group * p->dimension * p->positions + position;
    for (ptrdiff_t j = 0; j < p->dimension; j++)
        if (scale[j * p->positions])
            return 0;
    return 1;
}

INLINE uint32_t clipped_square(int32_t difference, uint32_t limit)
{
    uint32_t square = (uint32_t)difference * (uint32_t)difference;
    return square < limit ? square : limit;
}

/* Costs of a symbol before rounding, from codeword `first` to `end`: sum_j A_j min((mu_kj - g_j)^2, limit_j) < 2^31. */
INLINE void costs(const Prior *p, ptrdiff_t group, ptrdiff_t position, ptrdiff_t first, ptrdiff_t end,
                  uint32_t *restrict cost)
{
    const ptrdiff_t step = p->positions, padded = p->padded;
    const ptrdiff_t at = group * p->dimension * step + position;
    if (p->dimension == 2) {
        const int32_t *restrict x = p->column, *restrict y = p->column + padded;
        const int32_t gx = p->offset[at], gy = p->offset[at + step];
        const uint8_t sx = p->scale[at], sy = p->scale[at + step];
        const uint32_t ax = p->precision[sx], ay = p->precision[sy], lx = p->limit[sx], ly = p->limit[sy];
        for (ptrdiff_t k = first; k < end; k++)
            cost[k] = ax * clipped_square(x[k] - gx, lx) + ay * clipped_square(y[k] - gy, ly);
        return;
    }
    memset(cost + first, 0, (size_t)(end - first) * sizeof *cost);
    for (ptrdiff_t j = 0; j < p->dimension; j++) {
        const int32_t *restrict x = p->column + j * padded;
        const int32_t g = p->offset[at + j * step];
        const uint8_t s = p->scale[at + j * step];
        const uint32_t a = p->precision[s], l = p->limit[s];
        for (ptrdiff_t k = first; k < end; k++)
            cost[k] += a * clipped_square(x[k] - g, l);
    }
}

/* Costs of all codewords of a symbol that may have a frequency; returns how many were looked at, whole blocks.
 *
 * With the costs of the first block, a codeword has none where its own is at least `need`. It is where a component is
 * clipped, and else where the distance to the offset, which is at least the difference of both norms, is large enough
 * in the least of the precisions. */
INLINE ptrdiff_t reachable_costs(const Prior *p, ptrdiff_t group, ptrdiff_t position, uint32_t *restrict cost)
{
    if (p->cutoff >= EVERY || p->padded == BLOCK) {
        costs(p, group, position, 0, p->padded, cost);
        return p->padded;
    }
    costs(p, group, position, 0, BLOCK, cost);
    int32_t largest = INT32_MIN;
    for (ptrdiff_t k = 0; k < BLOCK; k++) {
        const int32_t logit = p->base[k] - (int32_t)((cost[k] + 512u) >> 10);
        largest = logit > largest ? logit : largest;
    }
    const uint64_t need = ((uint64_t)(p->most - largest) + p->cutoff) << 10;
    uint32_t least = UINT32_MAX, norm = 0; /* sum of magnitudes: at least the norm */
    for (ptrdiff_t j = 0; j < p->dimension; j++) {
        const ptrdiff_t at = (group * p->dimension + j) * p->positions + position;
        const uint32_t a = p->precision[p->scale[at]];
        least = a < least ? a : least;
        norm += (uint32_t)abs(p->offset[at]);
    }
    ptrdiff_t end = p->padded;
    if (need <= (uint64_t)INT32_MAX / (uint64_t)p->dimension - (1 << 14)) { /* no more than a clipped component costs */
        for (end = BLOCK; end < p->padded; end += BLOCK) {
            const uint64_t distance = p->radius[end / BLOCK] > norm ? p->radius[end / BLOCK] - norm : 0;
            if (least * distance * distance >= need)
                break;
        }
    }
    costs(p, group, position, BLOCK, end, cost);
    return end;
}

/* Logits, then weights of one symbol (a static prior's are those of its group). */
INLINE Row weights(const Prior *p, ptrdiff_t group, ptrdiff_t position)
{
    ptrdiff_t length = p->padded;
    const int32_t *restrict base = p->base;
    int32_t *restrict logit = p->logit;
    uint32_t *restrict weight = p->weight;

    int32_t largest = INT32_MIN;
    if (p->offset) {
        length = reachable_costs(p, group, position, weight);
        for (ptrdiff_t k = 0; k < length; k++) {
            logit[k] = base[k] - (int32_t)((weight[k] + 512u) >> 10);
            largest = logit[k] > largest ? logit[k] : largest;
        }
    } else {
        for (ptrdiff_t k = 0; k < length; k++) {
            logit[k] = base[k];
            largest = logit[k] > largest ? logit[k] : largest;
        }
    }

    uint32_t sum = 0, top = UINT32_MAX, near = 0;
    const uint32_t cutoff = p->cutoff;
    for (ptrdiff_t k = 0; k < length; k++) {
        const uint32_t f = (uint32_t)(largest - logit[k]), t = f & 63;
        const uint32_t n = f >> 6 < 31 ? f >> 6 : 31; /* p <= 2^15, so every shift by 16 or more gives 0 */
        const uint32_t p2 = 32768u - ((21997u * t) >> 6) + ((5613u * t * t) >> 12);
        const uint32_t here = (uint32_t)k | (f < 65536u ? f : 65536u) << 13; /* k < 2^13 where f = 0, else more */
        const uint32_t within = f < cutoff;
        weight[k] = p2 >> n;
        sum += weight[k];
        near += within;
        weight[k] |= within * NEAR;
        top = here < top ? here : top;
    }
    for (int k = 0; k < 2; k++) { /* no frequency may be 2^16 */
        near += !(weight[k] & NEAR);
        weight[k] |= NEAR;
    }
    const uint32_t inverse = (uint32_t)(((uint64_t)(TOTAL - near) << 31) / sum);
    return (Row){inverse >> 16, inverse & 0xffffu, top, length};
}

/* The frequency but for the rest that goes to the top: 1 if near, and (w * inv) >> 31 in 32-bit products: w <= 2^15,
 * w * inv < 2^47. */
INLINE uint32_t frequency(uint32_t weight, Row row)
{
    const uint32_t w = weight & (NEAR - 1);
    return weight / NEAR + ((w * row.high + ((w * row.low) >> 16)) >> 15);
}

/* Square root, rounded down. */
INLINE uint32_t root(uint32_t value)
{
    uint32_t found = 0;
    for (uint32_t bit = 1u << 15; bit; bit >>= 1)
        found |= (found | bit) * (found | bit) <= value ? bit : 0;
    return found;
}

/* Takes a group's tables; of a static prior also its one row. */
INLINE void load_group(Prior *p, ptrdiff_t group)
{
    const int16_t *codeword = p->codeword + group * p->codewords * p->dimension;
    for (ptrdiff_t j = 0; j < p->dimension; j++)
        for (ptrdiff_t k = 0; k < p->padded; k++)
            p->column[j * p->padded + k] = k < p->codewords ? codeword[k * p->dimension + j] : 0;
    for (ptrdiff_t k = 0; k < p->padded; k++)
        p->base[k] = k < p->codewords ? p->log_weight[group * p->codewords + k] : PADDING_LOGIT;
    if (p->offset) {
        p->most = INT32_MIN;
        uint32_t least = UINT32_MAX;
        for (ptrdiff_t k = p->codewords; k-- > 0;) {
            uint32_t square = 0; /* <= 64 * 2^20 */
            for (ptrdiff_t j = 0; j < p->dimension; j++)
                square += (uint32_t)(codeword[k * p->dimension + j] * codeword[k * p->dimension + j]);
            least = square < least ? square : least;
            if (k % BLOCK == 0)
                p->radius[k / BLOCK] = root(least);
            p->most = p->base[k] > p->most ? p->base[k] : p->most;
        }
        return;
    }
    const Row row = weights(p, group, 0);
    uint32_t total = 0;
    for (ptrdiff_t k = 0; k < p->codewords; k++)
        total += frequency(p->weight[k], row);
    p->cumulative[0] = 0;
    for (ptrdiff_t k = 0; k < p->codewords; k++) {
        const uint32_t rest = k == (ptrdiff_t)row.top ? TOTAL - total : 0;
        p->cumulative[k + 1] = p->cumulative[k] + frequency(p->weight[k], row) + rest;
    }
}

/* ------------------------------------------------------------------------------------------------ the work */

/* Returns the number of intervals written; -1: a code out of range or without a frequency, a skipped code that is not 0,
 * or no room. */
CLONES
static ptrdiff_t run_intervals(Prior *p, const int32_t *codes, uint16_t *start, uint16_t *freq, ptrdiff_t room)
{
    ptrdiff_t done = 0;
    for (ptrdiff_t group = 0; group < p->groups; group++) {
        load_group(p, group);
        for (ptrdiff_t i = 0; i < p->positions; i++) {
            const int32_t code = codes[group * p->positions + i];
            if (is_skipped(p, group, i)) {
                if (code)
                    return -1;
                continue;
            }
            if (code < 0 || code >= p->codewords || done == room)
                return -1;
            if (!p->offset) {
                start[done] = (uint16_t)p->cumulative[code];
                freq[done] = (uint16_t)(p->cumulative[code + 1] - p->cumulative[code]);
                if (!freq[done++])
                    return -1;
                continue;
            }
            const Row row = weights(p, group, i);
            if (code >= row.length)
                return -1;
            const uint32_t c = (uint32_t)code;
            uint32_t below = 0, total = 0;
            for (ptrdiff_t k = 0; k < row.length; k++) {
                const uint32_t q = frequency(p->weight[k], row);
                total += q;
                below += (uint32_t)k < c ? q : 0;
            }
            const uint32_t rest = TOTAL - total;
            start[done] = (uint16_t)(below + (row.top < c ? rest : 0));
            freq[done] = (uint16_t)(frequency(p->weight[c], row) + (row.top == c ? rest : 0));
            if (!freq[done++])
                return -1;
        }
    }
    return done;
}

/* The code whose interval holds `slot`; its interval goes to *start and *freq. */
INLINE uint32_t search_static(const Prior *p, uint32_t slot, uint32_t *start, uint32_t *freq)
{
    uint32_t low = 0, high = (uint32_t)p->codewords;
    while (high - low > 1) {
        const uint32_t middle = (low + high) / 2;
        if (p->cumulative[middle] <= slot)
            low = middle;
        else
            high = middle;
    }
    *start = p->cumulative[low];
    *freq = p->cumulative[low + 1] - p->cumulative[low];
    return low;
}

INLINE uint32_t search_row(const Prior *p, Row row, uint32_t slot, uint32_t *start, uint32_t *freq)
{
    uint32_t *restrict weight = p->weight;
    uint32_t sums[MAX_CODEWORDS / BLOCK], total = 0;
    const uint32_t blocks = (uint32_t)(row.length / BLOCK);
    for (uint32_t b = 0; b < blocks; b++) {
        uint32_t sum = 0;
        for (uint32_t k = b * BLOCK; k < (b + 1) * BLOCK; k++) {
            weight[k] = frequency(weight[k], row);
            sum += weight[k];
        }
        sums[b] = sum;
        total += sum;
    }
    const uint32_t rest = TOTAL - total;
    weight[row.top] += rest;
    sums[row.top / BLOCK] += rest;

    /* the row's sum is TOTAL > slot, so both loops would end by themselves; their bounds do not rely on it */
    uint32_t at = 0, b = 0;
    while (b + 1 < blocks && slot - at >= sums[b])
        at += sums[b++];
    uint32_t k = b * BLOCK;
    while (k + 1 < (uint32_t)p->codewords && slot - at >= weight[k])
        at += weight[k++];
    *start = at;
    *freq = weight[k];
    return k;
}

/* Returns the words read so far, or -1 where the stream ended early. */
CLONES
static ptrdiff_t run_decode(Prior *p, const uint8_t *words, ptrdiff_t count, uint64_t *states,
                             ptrdiff_t lanes, ptrdiff_t position, int32_t *codes)
{
    ptrdiff_t lane = 0;
    for (ptrdiff_t group = 0; group < p->groups; group++) {
        load_group(p, group);
        for (ptrdiff_t i = 0; i < p->positions; i++) {
            int32_t *code = codes + group * p->positions + i;
            *code = 0;
            if (is_skipped(p, group, i))
                continue;
            uint64_t x = states[lane];
            const uint32_t slot = (uint32_t)x & 0xffffu;
            uint32_t start, freq;
            if (p->offset)
                *code = (int32_t)search_row(p, weights(p, group, i), slot, &start, &freq);
            else
                *code = (int32_t)search_static(p, slot, &start, &freq);
            x = freq * (x >> 16) + slot - start;
            if (x < LOWEST) {
                if (position >= count)
                    return -1;
                x = x << 16 | (uint32_t)words[2 * position + 1] << 8 | words[2 * position];
                position++;
            }
            states[lane] = x;
            lane = lane + 1 < lanes ? lane + 1 : 0;
        }
    }
    return position;
}

/* Writes words from `end` downwards; returns how many, or -1 for an interval that is empty or too long. */
static ptrdiff_t run_encode(const uint16_t *start, const uint16_t *freq, const int64_t *counts, ptrdiff_t stages,
                             ptrdiff_t symbols, uint64_t *states, ptrdiff_t lanes, uint8_t *end)
{
    uint8_t *out = end;
    for (ptrdiff_t lane = 0; lane < lanes; lane++)
        states[lane] = LOWEST;
    ptrdiff_t at = symbols;
    for (ptrdiff_t stage = stages; stage-- > 0;) {
        for (ptrdiff_t i = (ptrdiff_t)counts[stage]; i-- > 0;) {
            at--;
            const uint32_t f = freq[at], s = start[at];
            if (!f || s + f > TOTAL)
                return -1;
            uint64_t x = states[i & (lanes - 1)];
            if (x >= (uint64_t)f << 32) {
                out -= 2;
                out[0] = (uint8_t)x;
                out[1] = (uint8_t)(x >> 8);
                x >>= 16;
            }
            states[i & (lanes - 1)] = ((x / f) << 16) + x % f + s;
        }
    }
    return (end - out) / 2;
}

/* codes = argmin_k beta |v - mu_k|^2 - ln p_k over the codewords with a frequency; `points` are the codewords as
 * [M, K, d] floats, `column` takes them. */
CLONES
static void run_assign(Prior *p, const float *latents, const float *points, float *restrict column,
                       float *restrict constant, float *restrict distance, float beta, int32_t *codes)
{
    const float nats = 0.010830424696249145f; /* ln 2 / 64: one logit unit */
    const ptrdiff_t padded = p->padded;
    for (ptrdiff_t group = 0; group < p->groups; group++) {
        load_group(p, group);
        const float *point = points + group * p->codewords * p->dimension;
        for (ptrdiff_t j = 0; j < p->dimension; j++)
            for (ptrdiff_t k = 0; k < padded; k++)
                column[j * padded + k] = k < p->codewords ? point[k * p->dimension + j] : 0;
        for (ptrdiff_t k = 0; k < padded; k++)
            constant[k] = k < p->codewords ? -nats * (float)p->base[k] : FLT_MAX; /* the padding never wins */
        memset(p->weight, 0, (size_t)padded * sizeof *p->weight);
        ptrdiff_t length = padded;

        for (ptrdiff_t i = 0; i < p->positions; i++) {
            int32_t *code = codes + group * p->positions + i;
            *code = 0;
            if (is_skipped(p, group, i))
                continue;
            if (p->offset)
                length = reachable_costs(p, group, i, p->weight);
            const float *latent = latents + group * p->dimension * p->positions + i;
            const uint32_t *restrict cost = p->weight;
            if (p->dimension == 2) {
                const float *restrict x = column, *restrict y = column + padded;
                const float vx = latent[0], vy = latent[p->positions];
                for (ptrdiff_t k = 0; k < length; k++)
                    distance[k] = (x[k] - vx) * (x[k] - vx) + (y[k] - vy) * (y[k] - vy);
            } else {
                memset(distance, 0, (size_t)length * sizeof *distance);
                for (ptrdiff_t j = 0; j < p->dimension; j++) {
                    const float *restrict x = column + j * padded;
                    const float v = latent[j * p->positions];
                    for (ptrdiff_t k = 0; k < length; k++)
                        distance[k] += (x[k] - v) * (x[k] - v);
                }
            }
            float best[LANES];
            int32_t index[LANES];
            for (int l = 0; l < LANES; l++) {
                best[l] = FLT_MAX;
                index[l] = INT32_MAX;
            }
            for (ptrdiff_t k = 0; k < length; k += LANES)
                for (ptrdiff_t l = 0; l < LANES; l++) {
                    const float rate = constant[k + l] + nats * (float)(int32_t)((cost[k + l] + 512u) >> 10);
                    const float value = beta * distance[k + l] + rate;
                    index[l] = value < best[l] ? (int32_t)(k + l) : index[l];
                    best[l] = value < best[l] ? value : best[l];
                }
            int32_t winner = index[0];
            float least = best[0];
            for (int l = 1; l < LANES; l++)
                if (best[l] < least || (best[l] == least && index[l] < winner)) {
                    least = best[l];
                    winner = index[l];
                }
            winner = winner < p->codewords ? winner : 0; /* no finite objective: 0 */
            if (winner > 1 && p->cutoff < EVERY) {
                const int32_t *restrict base = p->base;
                int32_t *restrict logit = p->logit;
                int32_t largest = INT32_MIN;
                for (ptrdiff_t k = 0; k < length; k++) {
                    logit[k] = base[k] - (int32_t)((cost[k] + 512u) >> 10);
                    largest = logit[k] > largest ? logit[k] : largest;
                }
                if ((uint32_t)(largest - logit[winner]) >= p->cutoff) { /* rare: once more without the others */
                    least = FLT_MAX;
                    for (int32_t k = winner = 0; k < length; k++) {
                        const float rate = constant[k] + nats * (float)(int32_t)((cost[k] + 512u) >> 10);
                        const float value = beta * distance[k] + rate;
                        if ((k < 2 || (uint32_t)(largest - logit[k]) < p->cutoff) && value < least) {
                            least = value;
                            winner = k;
                        }
                    }
                }
            }
            *code = winner;
        }
    }
}

#endif
