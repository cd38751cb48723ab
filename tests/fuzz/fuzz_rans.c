/* libFuzzer target: the compiled entropy coder on arbitrary tables, contexts and streams.
 *
 * Whatever the bytes, decoding must stay within its arrays, give codes in [0, K) or say that the stream ended early;
 * and codes that came out must encode, by the same tables, to a stream that gives them back. The input chooses the
 * shapes, then fills the coder's states and words, then the tables, then the latents of the encoder's choice: with every
 * value that their types hold, as values out of range must give wrong numbers and never a wrong address. Where the input
 * ends early a fixed generator goes on.
 *
 * With -DSTANDALONE the program runs the files it is given, once each, without libFuzzer. tests/fuzz/README.md
 */
#include "../../codec/entropy/rans_core.h"

#include <stdio.h>

enum { MAX_LANES = 8 };

typedef struct {
    const uint8_t *data;
    size_t left;
    uint32_t state;
} Input;

static uint8_t byte(Input *in)
{
    if (in->left) {
        in->left--;
        return *in->data++;
    }
    in->state = in->state * 1664525u + 1013904223u;
    return (uint8_t)(in->state >> 24);
}

static void fill(Input *in, void *to, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)to)[i] = byte(in);
}

/* Exactly as large as needed, so that the address sanitizer sees the first byte beyond. */
static void *filled(Input *in, size_t size)
{
    void *memory = malloc(size ? size : 1);
    if (!memory)
        abort();
    fill(in, memory, size);
    return memory;
}

static void demand(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "broken: %s\n", what);
    abort();
}

/* Encodes the codes, decodes them, and compares. */
static void round_trip(Prior *p, const int32_t *codes, ptrdiff_t symbols, ptrdiff_t lanes)
{
    uint16_t *start = malloc((size_t)symbols * 2 + 1), *freq = malloc((size_t)symbols * 2 + 1);
    int32_t *again = malloc((size_t)symbols * 4 + 1);
    if (!start || !freq || !again)
        abort();
    const int64_t coded = run_intervals(p, codes, start, freq, symbols);
    demand(coded >= 0, "decoded codes have no intervals");
    uint8_t *words = malloc(2 * (size_t)coded + 1);
    uint64_t states[MAX_LANES];
    if (!words)
        abort();
    const ptrdiff_t written = run_encode(start, freq, &coded, 1, coded, states, lanes, words + 2 * coded);
    demand(written >= 0 && written <= coded, "intervals cannot be encoded");
    uint8_t *stream = malloc(2 * (size_t)written + 1); /* so that reading before it is seen, too */
    if (!stream)
        abort();
    memcpy(stream, words + 2 * (coded - written), 2 * (size_t)written);
    demand(run_decode(p, stream, written, states, lanes, 0, again) == written, "an intact stream is not read whole");
    demand(!memcmp(codes, again, (size_t)symbols * 4), "codes come back changed");
    for (ptrdiff_t lane = 0; lane < lanes; lane++)
        demand(states[lane] == LOWEST, "a lane does not end where it began");
    free(start), free(freq), free(again), free(words), free(stream);
}

/* The encoder's choice from latents, codewords and a weight of any floats, NaN and infinity among them. */
static void choose(Input *in, Prior *p, ptrdiff_t symbols, int32_t *codes)
{
    float beta;
    fill(in, &beta, sizeof beta);
    float *latents = filled(in, (size_t)(symbols * p->dimension) * sizeof *latents);
    float *points = filled(in, (size_t)(p->groups * p->codewords * p->dimension) * sizeof *points);
    float *scratch = malloc((size_t)((p->dimension + 2) * p->padded) * sizeof *scratch);
    if (!scratch)
        abort();
    float *constant = scratch + p->dimension * p->padded, *distance = constant + p->padded;
    run_assign(p, latents, points, scratch, constant, distance, beta, codes);
    free(latents), free(points), free(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Input in = {data, size, 1};
    Prior p = {0};
    const uint8_t shape = byte(&in), flags = byte(&in);
    p.groups = 1 + (shape & 1);
    p.dimension = 1 + (shape >> 1 & 3);
    p.positions = shape >> 3;
    const uint8_t size_and_choice = byte(&in);
    p.codewords = 2 + (size_and_choice & 127);
    const ptrdiff_t count = byte(&in) & (flags & 1 ? 7 : 255); /* words; few: the stream ends early */
    const ptrdiff_t lanes = (ptrdiff_t)1 << (flags >> 1 & 3), scales = 1 + (flags >> 3 & 7);
    const int with_context = flags >> 6 & 1, in_range = flags >> 7;
    const size_t grid = (size_t)(p.groups * p.dimension * p.positions);

    uint64_t states[MAX_LANES] = {0};
    for (ptrdiff_t lane = 0; lane < lanes; lane++) {
        fill(&in, &states[lane], STATE_BYTES);
        states[lane] = states[lane] % (((uint64_t)1 << 48) - LOWEST) + LOWEST; /* as the head's check asks */
    }
    uint8_t *words = filled(&in, 2 * (size_t)count);

    int32_t precision[8];
    for (ptrdiff_t i = 0; i < scales; i++)
        precision[i] = 1 + (byte(&in) | (byte(&in) & 63) << 8);
    int16_t *codeword = filled(&in, (size_t)(p.groups * p.codewords * p.dimension) * 2);
    int16_t *log_weight = filled(&in, (size_t)(p.groups * p.codewords) * 2);
    int16_t *offset = filled(&in, grid * 2);
    uint8_t *scale = filled(&in, grid);
    if (in_range) { /* what coder.py lets through */
        for (ptrdiff_t i = 0; i < p.groups * p.codewords * p.dimension; i++)
            codeword[i] %= 1024;
        for (size_t i = 0; i < grid; i++)
            offset[i] %= 1024, scale[i] %= (uint8_t)scales;
    }
    const uint8_t reach = byte(&in); /* 0: all codewords have a frequency */
    p.cutoff = reach ? LEAST_CUTOFF + 32u * reach : EVERY;
    p.codeword = codeword, p.log_weight = log_weight;
    if (with_context)
        p.offset = offset, p.scale = scale;
    demand(prepare_prior(&p, precision, scales) == PRIOR_READY, "a prior within its limits is refused");

    const ptrdiff_t symbols = p.groups * p.positions;
    int32_t *codes = malloc((size_t)symbols * 4 + 1);
    if (!codes)
        abort();
    const ptrdiff_t read = run_decode(&p, words, count, states, lanes, 0, codes);
    demand(read >= -1 && read <= count, "more words read than there are");
    if (read >= 0) {
        for (ptrdiff_t i = 0; i < symbols; i++)
            demand(codes[i] >= 0 && codes[i] < p.codewords, "a code out of range");
        if (in_range || !with_context) {
            for (ptrdiff_t lane = 0; lane < lanes; lane++)
                demand(states[lane] >= LOWEST && states[lane] < (uint64_t)1 << 48, "a state out of range");
            round_trip(&p, codes, symbols, lanes);
        }
    }
    if (size_and_choice & 128) {
        choose(&in, &p, symbols, codes);
        for (ptrdiff_t i = 0; i < symbols; i++)
            demand(codes[i] >= 0 && codes[i] < p.codewords, "a code is chosen out of range");
        if (in_range || !with_context)
            round_trip(&p, codes, symbols, lanes);
    }
    free(codeword), free(log_weight), free(offset), free(scale), free(words), free(codes);
    close_prior(&p);
    return 0;
}

#ifdef STANDALONE
int main(int count, char **names)
{
    static uint8_t data[1 << 20];
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(names[i], "rb");
        if (!file) {
            perror(names[i]);
            return 1;
        }
        const size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        uint8_t *exact = malloc(size + 1);
        if (!exact)
            abort();
        memcpy(exact, data, size);
        LLVMFuzzerTestOneInput(exact, size);
        free(exact);
    }
    printf("%d inputs\n", count - 1);
    return 0;
}
#endif
