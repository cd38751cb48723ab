/* Entropy coding, compiled: the functions of rans.py with the same names, arguments and results. This file checks
 * what comes from Python; the work is in rans_core.h.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rans_core.h"

/* Takes a C-contiguous buffer of `ndim` axes; shape[i] >= 0 must be met, -1 is filled in. Returns 0, or -1 with an
 * exception set and nothing held. */
static int take(PyObject *object, Py_buffer *view, const char *name, Py_ssize_t itemsize, int ndim, Py_ssize_t *shape,
                int writable)
{
    if (PyObject_GetBuffer(object, view, PyBUF_ND | (writable ? PyBUF_WRITABLE : 0)) < 0)
        return -1;
    int good = view->ndim == ndim && view->itemsize == itemsize && (uintptr_t)view->buf % (uintptr_t)itemsize == 0;
    for (int i = 0; good && i < ndim; i++) {
        if (shape[i] < 0)
            shape[i] = view->shape[i];
        good = shape[i] == view->shape[i];
    }
    if (good)
        return 0;
    PyBuffer_Release(view);
    PyErr_Format(PyExc_ValueError, "%s: wrong item size, alignment or shape", name);
    return -1;
}

/* Every function below takes its buffers here, so that one release serves all ways out. */
typedef struct {
    Py_buffer view[9];
    int held;
} Buffers;

static void *hold(Buffers *buffers, PyObject *object, const char *name, Py_ssize_t itemsize, int ndim,
                  Py_ssize_t *shape, int writable)
{
    static char nothing[8];
    Py_buffer *view = &buffers->view[buffers->held];
    if (take(object, view, name, itemsize, ndim, shape, writable) < 0)
        return NULL;
    buffers->held++;
    return view->buf ? view->buf : nothing; /* an empty buffer may have no address */
}

static void release(Buffers *buffers)
{
    while (buffers->held)
        PyBuffer_Release(&buffers->view[--buffers->held]);
}

/* The first six arguments of most functions. `p` is zero before; close_prior(p) is due even after a failure. */
static int open_prior(Prior *p, Buffers *buffers, PyObject *const *args)
{
    Py_ssize_t shape[3] = {-1, -1, -1};
    if (!(p->codeword = hold(buffers, args[0], "codewords", 2, 3, shape, 0)))
        return -1;
    p->groups = shape[0], p->codewords = shape[1], p->dimension = shape[2];
    if (!(p->log_weight = hold(buffers, args[1], "log_weights", 2, 2, shape, 0)))
        return -1;
    Py_ssize_t scales = -1;
    const int32_t *precision = hold(buffers, args[2], "precision", 4, 1, &scales, 0);
    if (!precision)
        return -1;
    const unsigned long cutoff = PyLong_AsUnsignedLong(args[3]);
    if (cutoff == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    p->cutoff = cutoff < EVERY ? (uint32_t)cutoff : EVERY;
    p->positions = -1;
    if ((args[4] == Py_None) != (args[5] == Py_None)) {
        PyErr_SetString(PyExc_ValueError, "offset and scale: one is None");
        return -1;
    }
    if (args[4] != Py_None) {
        Py_ssize_t grid[3] = {p->groups, p->dimension, -1};
        if (!(p->offset = hold(buffers, args[4], "offset", 2, 3, grid, 0)) ||
            !(p->scale = hold(buffers, args[5], "scale", 1, 3, grid, 0)))
            return -1;
        p->positions = grid[2];
    }
    switch (prepare_prior(p, precision, scales)) {
    case PRIOR_RANGE:
        PyErr_SetString(PyExc_ValueError, "codewords, precision or cutoff: K, d or a value out of range");
        return -1;
    case PRIOR_MEMORY:
        PyErr_NoMemory();
        return -1;
    case PRIOR_READY:
        break;
    }
    return 0;
}

static int check_arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", name, wanted, given);
    return -1;
}

static PyObject *py_intervals(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arguments("intervals", nargs, 9) < 0)
        return NULL;
    PyObject *result = NULL;
    Buffers buffers = {0};
    Prior prior = {0};
    const int32_t *codes;
    uint16_t *start, *freq;
    Py_ssize_t room = -1, done;
    if (open_prior(&prior, &buffers, args) < 0)
        goto end;
    Py_ssize_t shape[2] = {prior.groups, prior.positions};
    if (!(codes = hold(&buffers, args[6], "codes", 4, 2, shape, 0)) ||
        !(start = hold(&buffers, args[7], "start", 2, 1, &room, 1)) ||
        !(freq = hold(&buffers, args[8], "freq", 2, 1, &room, 1)))
        goto end;
    prior.positions = shape[1];
    Py_BEGIN_ALLOW_THREADS
    done = run_intervals(&prior, codes, start, freq, room);
    Py_END_ALLOW_THREADS
    if (done != room)
        PyErr_SetString(PyExc_ValueError, "codes: out of range, not 0 where skipped, or not as many as `start` takes");
    else
        result = Py_NewRef(Py_None);
end:
    close_prior(&prior);
    release(&buffers);
    return result;
}

static PyObject *py_decode_stage(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arguments("decode_stage", nargs, 10) < 0)
        return NULL;
    PyObject *result = NULL;
    Buffers buffers = {0};
    Prior prior = {0};
    const uint8_t *words;
    uint64_t *states;
    int32_t *codes;
    Py_ssize_t size = -1, lanes = -1, position;
    if (open_prior(&prior, &buffers, args) < 0)
        goto end;
    Py_ssize_t shape[2] = {prior.groups, prior.positions};
    if (!(words = hold(&buffers, args[6], "words", 1, 1, &size, 0)) ||
        !(states = hold(&buffers, args[7], "states", 8, 1, &lanes, 1)))
        goto end;
    position = PyLong_AsSsize_t(args[8]);
    if (position == -1 && PyErr_Occurred())
        goto end;
    if (lanes < 1 || position < 0 || position > size / 2) {
        PyErr_SetString(PyExc_ValueError, "states or position: out of range");
        goto end;
    }
    if (!(codes = hold(&buffers, args[9], "codes", 4, 2, shape, 1)))
        goto end;
    prior.positions = shape[1];
    Py_BEGIN_ALLOW_THREADS
    position = run_decode(&prior, words, size / 2, states, lanes, position, codes);
    Py_END_ALLOW_THREADS
    result = PyLong_FromSsize_t(position);
end:
    close_prior(&prior);
    release(&buffers);
    return result;
}

static PyObject *py_rans_encode(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arguments("rans_encode", nargs, 4) < 0)
        return NULL;
    PyObject *result = NULL;
    Buffers buffers = {0};
    uint8_t *words = NULL;
    uint64_t states[MAX_STREAM_LANES];
    Py_ssize_t symbols = -1, stages = -1, written;
    const uint16_t *start = hold(&buffers, args[0], "start", 2, 1, &symbols, 0);
    const uint16_t *freq = start ? hold(&buffers, args[1], "freq", 2, 1, &symbols, 0) : NULL;
    const int64_t *counts = freq ? hold(&buffers, args[2], "counts", 8, 1, &stages, 0) : NULL;
    if (!counts)
        goto end;
    const Py_ssize_t lanes = PyLong_AsSsize_t(args[3]);
    if (lanes == -1 && PyErr_Occurred())
        goto end;
    Py_ssize_t left = symbols;
    int good = lanes >= 1 && lanes <= MAX_STREAM_LANES && (lanes & (lanes - 1)) == 0;
    for (Py_ssize_t i = 0; good && i < stages; i++) {
        good = counts[i] >= 0 && counts[i] <= left;
        left -= good ? (Py_ssize_t)counts[i] : 0;
    }
    if (!good || left) {
        PyErr_SetString(PyExc_ValueError, "counts or lanes: out of range");
        goto end;
    }
    if (!(words = malloc(2 * (size_t)symbols + 1))) { /* a symbol gives one word at most */
        PyErr_NoMemory();
        goto end;
    }
    Py_BEGIN_ALLOW_THREADS
    written = run_encode(start, freq, counts, stages, symbols, states, lanes, words + 2 * symbols);
    Py_END_ALLOW_THREADS
    if (written < 0) {
        PyErr_SetString(PyExc_ValueError, "start or freq: not an interval of [0, 65536)");
        goto end;
    }
    if (!(result = PyBytes_FromStringAndSize(NULL, STATE_BYTES * lanes + 2 * written)))
        goto end;
    uint8_t *out = (uint8_t *)PyBytes_AsString(result);
    for (Py_ssize_t lane = 0; lane < lanes; lane++)
        for (int byte = 0; byte < STATE_BYTES; byte++)
            *out++ = (uint8_t)(states[lane] >> (8 * byte));
    memcpy(out, words + 2 * (symbols - written), 2 * (size_t)written);
end:
    free(words);
    release(&buffers);
    return result;
}

static PyObject *py_assign(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs)
{
    if (check_arguments("assign", nargs, 10) < 0)
        return NULL;
    PyObject *result = NULL;
    Buffers buffers = {0};
    Prior prior = {0};
    float *scratch = NULL;
    const float *latents, *points;
    int32_t *codes;
    if (open_prior(&prior, &buffers, args) < 0)
        goto end;
    Py_ssize_t grid[3] = {prior.groups, prior.dimension, prior.positions};
    Py_ssize_t book[3] = {prior.groups, prior.codewords, prior.dimension};
    if (!(latents = hold(&buffers, args[6], "latents", 4, 3, grid, 0)) ||
        !(points = hold(&buffers, args[7], "points", 4, 3, book, 0)))
        goto end;
    const double beta = PyFloat_AsDouble(args[8]);
    if (beta == -1.0 && PyErr_Occurred())
        goto end;
    Py_ssize_t shape[2] = {prior.groups, grid[2]};
    if (!(codes = hold(&buffers, args[9], "codes", 4, 2, shape, 1)))
        goto end;
    prior.positions = grid[2];
    if (!(scratch = malloc((size_t)(prior.dimension + 2) * (size_t)prior.padded * sizeof *scratch))) {
        PyErr_NoMemory();
        goto end;
    }
    float *constant = scratch + prior.dimension * prior.padded, *distance = constant + prior.padded;
    Py_BEGIN_ALLOW_THREADS
    run_assign(&prior, latents, points, scratch, constant, distance, (float)beta, codes);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
end:
    free(scratch);
    close_prior(&prior);
    release(&buffers);
    return result;
}

#define FUNCTION(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, "See mcodec.entropy.rans."}

static PyMethodDef methods[] = {
    FUNCTION(intervals), FUNCTION(rans_encode), FUNCTION(decode_stage), FUNCTION(assign), {NULL, NULL, 0, NULL},
};

static PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_rans", "Entropy coding, compiled; see mcodec.entropy.rans.", 0, methods, NULL, NULL, NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__rans(void)
{
    return PyModuleDef_Init(&module);
}
