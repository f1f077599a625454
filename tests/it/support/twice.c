/* A library with one custom operator, `test.Twice`: a FP32 tensor times two, or times TIMES. With -DCRASHES it ends the process when it
   is registered.
   ONNX Runtime's headers are not needed: its API is a table of functions, and their places in it never change. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef TIMES
#define TIMES 2
#endif

typedef void *Status; /* NULL: all is well */

/* onnxruntime_c_api.h: OrtApiBase and the places of the functions in OrtApi. */
struct base { const void *(*get_api)(uint32_t version); const char *(*version)(void); };
enum {
    GET_DATA = 51, DIMENSIONS_COUNT = 61, DIMENSIONS = 62, ELEMENT_COUNT = 64, TYPE_AND_SHAPE = 65, CREATE_DOMAIN = 26, DOMAIN_ADD = 27,
    ADD_DOMAIN = 28, GET_INPUT = 90, GET_OUTPUT = 91, RELEASE_TYPE_AND_SHAPE = 99
};
enum { FLOAT = 1, REQUIRED = 0, OP_VERSION = 10 };

typedef struct op op;
struct op {
    uint32_t version;
    void *(*create)(const op *, const void *api, const void *info);
    const char *(*name)(const op *);
    const char *(*provider)(const op *);
    int (*input_type)(const op *, size_t);
    size_t (*inputs)(const op *);
    int (*output_type)(const op *, size_t);
    size_t (*outputs)(const op *);
    void (*compute)(void *kernel, void *context);
    void (*destroy)(void *kernel);
    int (*input_characteristic)(const op *, size_t);
    int (*output_characteristic)(const op *, size_t);
};

static void *const *api;

static void *create(const op *self, const void *table, const void *info) { (void)self; (void)table; (void)info; return (void *)&api; }
static const char *name(const op *self) { (void)self; return "Twice"; }
static const char *provider(const op *self) { (void)self; return NULL; }
static int type(const op *self, size_t i) { (void)self; (void)i; return FLOAT; }
static size_t one(const op *self) { (void)self; return 1; }
static int required(const op *self, size_t i) { (void)self; (void)i; return REQUIRED; }
static void destroy(void *kernel) { (void)kernel; }

static void compute(void *kernel, void *context) {
    const void *input; void *output, *shape; size_t rank, count; int64_t dimensions[8]; float *from, *to;
    (void)kernel;
    ((Status (*)(const void *, size_t, const void **))api[GET_INPUT])(context, 0, &input);
    ((Status (*)(const void *, void **))api[TYPE_AND_SHAPE])(input, &shape);
    ((Status (*)(const void *, size_t *))api[DIMENSIONS_COUNT])(shape, &rank);
    if (rank > 8) abort();
    ((Status (*)(const void *, int64_t *, size_t))api[DIMENSIONS])(shape, dimensions, rank);
    ((Status (*)(const void *, size_t *))api[ELEMENT_COUNT])(shape, &count);
    ((void (*)(void *))api[RELEASE_TYPE_AND_SHAPE])(shape);
    ((Status (*)(void *, size_t, const int64_t *, size_t, void **))api[GET_OUTPUT])(context, 0, dimensions, rank, &output);
    ((Status (*)(const void *, void **))api[GET_DATA])(input, (void **)&from);
    ((Status (*)(const void *, void **))api[GET_DATA])(output, (void **)&to);
    for (size_t i = 0; i < count; i++) to[i] = TIMES * from[i];
}

static const op twice = {OP_VERSION, create, name, provider, type, one, type, one, compute, destroy, required, required};

Status RegisterCustomOps(void *options, const struct base *base) {
    void *domain;
    Status status;
#ifdef CRASHES
    abort();
#endif
    api = base->get_api(OP_VERSION);
    if ((status = ((Status (*)(const char *, void **))api[CREATE_DOMAIN])("test", &domain))) return status;
    if ((status = ((Status (*)(void *, const op *))api[DOMAIN_ADD])(domain, &twice))) return status;
    return ((Status (*)(void *, void *))api[ADD_DOMAIN])(options, domain);
}
