/* The TensorFlow ops of Planish, in plain C on TensorFlow's C API, so that one library serves every
 * TensorFlow 2.x: no C++ ABI is involved, and TensorFlow's symbols are found when it loads us.
 *
 *   PlanishEngine   runs an engine
 *   PlanishReady    whether an engine has, or can make, a program for these inputs
 *   PlanishWeight   a weight out of a plan, so that a native segment need not store it again
 *
 * Python comes in once per kernel, to find the engine that belongs to a plan, and once per unseen
 * shape. This library is not linked with the runtime; planish_tf_connect brings them together. */
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "planish.h"

/* ---- the part of TensorFlow's C API that is used here ---- */

typedef struct TF_Status TF_Status;
typedef struct TF_Tensor TF_Tensor;
typedef struct TF_KernelBuilder TF_KernelBuilder;
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_OpKernelConstruction TF_OpKernelConstruction;
typedef struct TF_OpKernelContext TF_OpKernelContext;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;

enum { TF_OK = 0, TF_INVALID_ARGUMENT = 3, TF_RESOURCE_EXHAUSTED = 8, TF_FAILED_PRECONDITION = 9,
       TF_INTERNAL = 13 };
enum { TF_STRING = 7, TF_BOOL = 10 };

TF_Status *TF_NewStatus(void);
void TF_DeleteStatus(TF_Status *);
void TF_SetStatus(TF_Status *, int code, const char *message);
int TF_GetCode(const TF_Status *);
const char *TF_Message(const TF_Status *);

TF_OpDefinitionBuilder *TF_NewOpDefinitionBuilder(const char *name);
void TF_OpDefinitionBuilderAddAttr(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderAddInput(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderAddOutput(TF_OpDefinitionBuilder *, const char *spec);
void TF_OpDefinitionBuilderSetIsStateful(TF_OpDefinitionBuilder *, bool);
void TF_OpDefinitionBuilderSetShapeInferenceFunction(
    TF_OpDefinitionBuilder *, void (*)(TF_ShapeInferenceContext *, TF_Status *));
void TF_RegisterOpDefinition(TF_OpDefinitionBuilder *, TF_Status *);
void TF_ShapeInferenceContextSetUnknownShape(TF_ShapeInferenceContext *, TF_Status *);
TF_ShapeHandle *TF_ShapeInferenceContextScalar(TF_ShapeInferenceContext *);
void TF_ShapeInferenceContextSetOutput(TF_ShapeInferenceContext *, int, TF_ShapeHandle *,
                                       TF_Status *);
void TF_DeleteShapeHandle(TF_ShapeHandle *);

TF_KernelBuilder *TF_NewKernelBuilder(const char *op, const char *device,
                                      void *(*create)(TF_OpKernelConstruction *),
                                      void (*compute)(void *, TF_OpKernelContext *),
                                      void (*destroy)(void *));
void TF_RegisterKernelBuilder(const char *name, TF_KernelBuilder *, TF_Status *);
void TF_OpKernelConstruction_GetAttrSize(TF_OpKernelConstruction *, const char *name,
                                         int32_t *list_size, int32_t *total_size, TF_Status *);
void TF_OpKernelConstruction_GetAttrString(TF_OpKernelConstruction *, const char *name,
                                           char *value, size_t size, TF_Status *);
void TF_OpKernelConstruction_GetAttrType(TF_OpKernelConstruction *, const char *name, int *value,
                                         TF_Status *);
void TF_OpKernelConstruction_GetAttrInt64List(TF_OpKernelConstruction *, const char *name,
                                              int64_t *values, int count, TF_Status *);
void TF_OpKernelConstruction_Failure(TF_OpKernelConstruction *, TF_Status *);

int TF_NumInputs(TF_OpKernelContext *);
int TF_NumOutputs(TF_OpKernelContext *);
void TF_GetInput(TF_OpKernelContext *, int index, TF_Tensor **, TF_Status *);
void TF_SetOutput(TF_OpKernelContext *, int index, const TF_Tensor *, TF_Status *);
TF_Tensor *TF_AllocateOutput(TF_OpKernelContext *, int index, int dtype, const int64_t *dims,
                             int rank, size_t bytes, TF_Status *);
int TF_ExpectedOutputDataType(TF_OpKernelContext *, int index);
void TF_OpKernelContext_Failure(TF_OpKernelContext *, TF_Status *);

TF_Tensor *TF_AllocateTensor(int dtype, const int64_t *dims, int rank, size_t bytes);
void TF_DeleteTensor(TF_Tensor *);
int TF_TensorType(const TF_Tensor *);
int TF_NumDims(const TF_Tensor *);
int64_t TF_Dim(const TF_Tensor *, int);
void *TF_TensorData(const TF_Tensor *);
size_t TF_DataTypeSize(int dtype);

/* ---- what Python connects ---- */

typedef struct {
    planish_engine_functions engine;
    /* The engine of this node, with a reference that the kernel gives back; 0 with `error`. */
    int64_t (*resolve)(const char *engine, const char *plan, size_t plan_size,
                       const char *settings, char *error, size_t error_size);
    /* Copies a weight; a planish_status. */
    int (*weight)(const char *weight, const char *plan, size_t plan_size, int dtype, int rank,
                  const int64_t *dims, void *data, size_t bytes, char *error, size_t error_size);
} connection;

static _Atomic(const connection *) connected;

/* `engine` is what planish_engine_table() returns; NULL disconnects (at exit). */
PLANISH_EXPORT int planish_tf_connect(const planish_engine_functions *engine,
                                      __typeof__(((connection *)0)->resolve) resolve,
                                      __typeof__(((connection *)0)->weight) weight) {
    connection *fresh = NULL;
    if (engine) {
        fresh = malloc(sizeof *fresh);
        if (!fresh) return PLANISH_NO_MEMORY;
        *fresh = (connection){*engine, resolve, weight};
    }
    /* The old one is not freed: a kernel may be using it. */
    atomic_store(&connected, fresh);
    return PLANISH_OK;
}

static const char *const NOT_CONNECTED =
    "This model holds engines of Planish: import planish.tensorflow before running it.";

/* ---- statuses ---- */

#define ERROR_SIZE 4096

static int code_of(int status) {
    switch (status) {
        case PLANISH_OK: return TF_OK;
        case PLANISH_INVALID: return TF_INVALID_ARGUMENT;
        case PLANISH_NO_MEMORY: return TF_RESOURCE_EXHAUSTED;
        default: return TF_INTERNAL;
    }
}

static void fail(TF_Status *status, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void fail(TF_Status *status, int code, const char *format, ...) {
    char text[ERROR_SIZE + 512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    TF_SetStatus(status, code, text);
}

static int failed(const TF_Status *status) { return TF_GetCode(status) != TF_OK; }

/* ---- kernels ---- */

typedef struct {
    char *name; /* of the engine, or of the weight */
    char *settings;
    int dtype; /* of the weight */
    int rank;
    int64_t *dims;
    pthread_mutex_t mutex;
    _Atomic(planish_engine *) engine;
    _Atomic(TF_Tensor *) weight;
} kernel;

static char *string_attr(TF_OpKernelConstruction *construction, const char *name,
                         TF_Status *status) {
    int32_t list = 0, size = 0;
    TF_OpKernelConstruction_GetAttrSize(construction, name, &list, &size, status);
    if (failed(status)) return NULL;
    char *value = calloc((size_t)size + 1, 1);
    if (!value)
        fail(status, TF_RESOURCE_EXHAUSTED, "out of memory");
    else
        TF_OpKernelConstruction_GetAttrString(construction, name, value, (size_t)size, status);
    return value;
}

static void destroy_kernel(void *pointer) {
    kernel *self = pointer;
    if (!self) return;
    planish_engine *engine = atomic_load(&self->engine);
    const connection *link = atomic_load(&connected);
    /* Disconnected means that the process is ending: nothing is left to be freed for anybody. */
    if (engine && link) link->engine.release(engine);
    TF_Tensor *weight = atomic_load(&self->weight);
    if (weight) TF_DeleteTensor(weight);
    pthread_mutex_destroy(&self->mutex);
    free(self->name);
    free(self->settings);
    free(self->dims);
    free(self);
}

static kernel *create_kernel(TF_OpKernelConstruction *construction, const char *name_attr,
                             TF_Status *status) {
    kernel *self = calloc(1, sizeof *self);
    if (!self) {
        fail(status, TF_RESOURCE_EXHAUSTED, "out of memory");
        return NULL;
    }
    pthread_mutex_init(&self->mutex, NULL);
    self->name = string_attr(construction, name_attr, status);
    return self;
}

/* Reports `status` to TensorFlow where it is an error, and frees it. */
static void *finish_create(TF_OpKernelConstruction *construction, kernel *self,
                           TF_Status *status) {
    if (failed(status)) TF_OpKernelConstruction_Failure(construction, status);
    TF_DeleteStatus(status);
    return self;
}

static void *create_engine_kernel(TF_OpKernelConstruction *construction) {
    TF_Status *status = TF_NewStatus();
    kernel *self = create_kernel(construction, "engine", status);
    if (!failed(status)) self->settings = string_attr(construction, "settings", status);
    return finish_create(construction, self, status);
}

static void *create_weight_kernel(TF_OpKernelConstruction *construction) {
    TF_Status *status = TF_NewStatus();
    kernel *self = create_kernel(construction, "weight", status);
    int32_t rank = 0, total = 0;
    if (!failed(status))
        TF_OpKernelConstruction_GetAttrType(construction, "dtype", &self->dtype, status);
    if (!failed(status))
        TF_OpKernelConstruction_GetAttrSize(construction, "shape", &rank, &total, status);
    if (!failed(status)) {
        self->rank = rank;
        self->dims = calloc((size_t)rank + 1, sizeof(int64_t));
        if (!self->dims)
            fail(status, TF_RESOURCE_EXHAUSTED, "out of memory");
        else
            TF_OpKernelConstruction_GetAttrInt64List(construction, "shape", self->dims, rank,
                                                     status);
    }
    return finish_create(construction, self, status);
}

/* ---- inputs ---- */

typedef struct {
    const char *data;
    size_t size;
} string;

/* A TensorFlow string where it lies: 24 bytes, whose lowest two bits tell which of four forms they
 * have; the size follows them. TensorFlow 2.18 and older export no functions for this. */
static string string_at(const void *place) {
    const char *bytes = place;
    uint64_t word;
    uint32_t half, offset;
    memcpy(&word, bytes, sizeof word);
    memcpy(&half, bytes, sizeof half);
    string text = {bytes + 1, (unsigned char)bytes[0] >> 2}; /* in the bytes themselves */
    switch (bytes[0] & 3) {
    case 1: /* on the heap: size, capacity, address */
        text.size = word >> 2;
        memcpy(&text.data, bytes + 16, sizeof text.data);
        break;
    case 2: /* beside it: size and distance of 32 bits each */
        memcpy(&offset, bytes + 4, sizeof offset);
        text.size = half >> 2;
        text.data = bytes + offset;
        break;
    case 3: /* elsewhere: size, address */
        text.size = word >> 2;
        memcpy(&text.data, bytes + 8, sizeof text.data);
        break;
    }
    return text;
}

/* The `plan` input: a scalar string, valid as long as its tensor; without data if it is none. */
static string plan_string(const TF_Tensor *tensor, TF_Status *status) {
    if (TF_TensorType(tensor) == TF_STRING && TF_NumDims(tensor) == 0)
        return string_at(TF_TensorData(tensor));
    fail(status, TF_INVALID_ARGUMENT, "the input `plan` must be a scalar string");
    return (string){NULL, 0};
}

typedef struct {
    TF_Tensor **tensors; /* the plan, then the inputs of the engine */
    int count;
    planish_signature signature;
    void *const *data;
} inputs;

static void free_inputs(inputs *all) {
    for (int i = 0; i < all->count; i++)
        if (all->tensors[i]) TF_DeleteTensor(all->tensors[i]);
    free(all->tensors);
    free((void *)all->signature.ranks);
    free((void *)all->signature.dtypes);
    free((void *)all->signature.dims);
    free((void *)all->data);
}

static void get_inputs(TF_OpKernelContext *context, inputs *all, TF_Status *status) {
    int count = TF_NumInputs(context);
    size_t rank_sum = 0, n = (size_t)count;
    *all = (inputs){.tensors = calloc(n, sizeof(TF_Tensor *)), .count = count};
    int *ranks = calloc(n, sizeof *ranks), *dtypes = calloc(n, sizeof *dtypes);
    void **data = calloc(n, sizeof *data);
    all->signature = (planish_signature){count - 1, ranks, NULL, dtypes};
    all->data = data;
    if (!all->tensors || !ranks || !dtypes || !data) {
        all->count = all->tensors ? count : 0;
        fail(status, TF_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    for (int i = 0; i < count && !failed(status); i++) {
        TF_GetInput(context, i, &all->tensors[i], status);
        if (failed(status)) return;
        if (i == 0) continue;
        ranks[i - 1] = TF_NumDims(all->tensors[i]);
        dtypes[i - 1] = TF_TensorType(all->tensors[i]);
        data[i - 1] = TF_TensorData(all->tensors[i]);
        rank_sum += (size_t)ranks[i - 1];
    }
    int64_t *dims = calloc(rank_sum + 1, sizeof *dims);
    all->signature.dims = dims;
    if (!dims) {
        fail(status, TF_RESOURCE_EXHAUSTED, "out of memory");
        return;
    }
    for (int i = 1; i < count; i++)
        for (int d = 0; d < ranks[i - 1]; d++) *dims++ = TF_Dim(all->tensors[i], d);
}

/* ---- PlanishEngine and PlanishReady ---- */

static planish_engine *resolve(kernel *self, const TF_Tensor *plan, const connection *link,
                               TF_Status *status) {
    planish_engine *engine = atomic_load_explicit(&self->engine, memory_order_acquire);
    if (engine) return engine;
    string text = plan_string(plan, status);
    if (!text.data) return NULL;
    pthread_mutex_lock(&self->mutex);
    engine = atomic_load(&self->engine);
    if (!engine) {
        char error[ERROR_SIZE] = "";
        engine = (planish_engine *)(intptr_t)link->resolve(
            self->name, text.data, text.size, self->settings,
            error, sizeof error);
        if (engine)
            atomic_store_explicit(&self->engine, engine, memory_order_release);
        else
            fail(status, TF_FAILED_PRECONDITION, "Engine %s cannot be loaded: %s", self->name,
                 error);
    }
    pthread_mutex_unlock(&self->mutex);
    return engine;
}

typedef struct {
    TF_OpKernelContext *context;
    TF_Status *status;
} output_context;

static int allocate_output(void *pointer, int index, int dtype, int rank, const int64_t *dims,
                           size_t bytes, void **data, char *error, size_t error_size) {
    output_context *to = pointer;
    if (index >= TF_NumOutputs(to->context) ||
        TF_ExpectedOutputDataType(to->context, index) != dtype) {
        snprintf(error, error_size, "its outputs are not those that the node declares (OutT)");
        return PLANISH_FAILED;
    }
    TF_Tensor *tensor =
        TF_AllocateOutput(to->context, index, dtype, dims, rank, bytes, to->status);
    if (failed(to->status)) {
        snprintf(error, error_size, "%s", TF_Message(to->status));
        if (tensor) TF_DeleteTensor(tensor);
        return PLANISH_NO_MEMORY;
    }
    *data = TF_TensorData(tensor);
    TF_DeleteTensor(tensor); /* the context holds the memory until the op is done */
    return PLANISH_OK;
}

typedef void (*engine_action)(kernel *, planish_engine *, const connection *, const inputs *,
                              TF_OpKernelContext *, TF_Status *);

static void with_engine(kernel *self, TF_OpKernelContext *context, engine_action act) {
    TF_Status *status = TF_NewStatus();
    const connection *link = atomic_load(&connected);
    if (!link) {
        fail(status, TF_FAILED_PRECONDITION, "%s", NOT_CONNECTED);
    } else {
        inputs all;
        get_inputs(context, &all, status);
        planish_engine *engine =
            failed(status) ? NULL : resolve(self, all.tensors[0], link, status);
        if (engine) act(self, engine, link, &all, context, status);
        free_inputs(&all);
    }
    if (failed(status)) TF_OpKernelContext_Failure(context, status);
    TF_DeleteStatus(status);
}

static void run_engine(kernel *self, planish_engine *engine, const connection *link,
                       const inputs *all, TF_OpKernelContext *context, TF_Status *status) {
    char error[ERROR_SIZE] = "";
    output_context to = {context, TF_NewStatus()};
    int result = link->engine.run(engine, &all->signature, all->data, allocate_output, &to, error,
                                  sizeof error);
    TF_DeleteStatus(to.status);
    if (result) fail(status, code_of(result), "Engine %s: %s", self->name, error);
}

static void answer_ready(kernel *self, planish_engine *engine, const connection *link,
                         const inputs *all, TF_OpKernelContext *context, TF_Status *status) {
    (void)self;
    TF_Tensor *answer = TF_AllocateOutput(context, 0, TF_BOOL, NULL, 0, 1, status);
    if (!failed(status))
        *(unsigned char *)TF_TensorData(answer) =
            (unsigned char)link->engine.ready(engine, &all->signature);
    if (answer) TF_DeleteTensor(answer);
}

static void compute_engine(void *self, TF_OpKernelContext *context) {
    with_engine(self, context, run_engine);
}

static void compute_ready(void *self, TF_OpKernelContext *context) {
    with_engine(self, context, answer_ready);
}

/* ---- PlanishWeight ---- */

static TF_Tensor *load_weight(kernel *self, const TF_Tensor *plan, TF_Status *status) {
    const connection *link = atomic_load(&connected);
    string text = plan_string(plan, status);
    if (!text.data) return NULL;
    if (!link) {
        fail(status, TF_FAILED_PRECONDITION, "%s", NOT_CONNECTED);
        return NULL;
    }
    size_t bytes = TF_DataTypeSize(self->dtype);
    int possible = bytes > 0;
    for (int d = 0; d < self->rank; d++)
        possible &= self->dims[d] >= 0 &&
                    !__builtin_mul_overflow(bytes, (size_t)self->dims[d], &bytes);
    if (!possible) {
        fail(status, TF_INVALID_ARGUMENT, "Weight %s has an impossible shape or dtype", self->name);
        return NULL;
    }
    TF_Tensor *tensor = TF_AllocateTensor(self->dtype, self->dims, self->rank, bytes);
    char error[ERROR_SIZE] = "out of memory";
    int result = PLANISH_NO_MEMORY;
    if (tensor)
        result = link->weight(self->name, text.data, text.size,
                              self->dtype, self->rank, self->dims, TF_TensorData(tensor), bytes,
                              error, sizeof error);
    if (result == PLANISH_OK) return tensor;
    fail(status, code_of(result), "Weight %s: %s", self->name, error);
    if (tensor) TF_DeleteTensor(tensor);
    return NULL;
}

/* The kernel keeps the tensor, so that later runs neither copy nor call Python. */
static void compute_weight(void *pointer, TF_OpKernelContext *context) {
    kernel *self = pointer;
    TF_Status *status = TF_NewStatus();
    TF_Tensor *weight = atomic_load_explicit(&self->weight, memory_order_acquire);
    if (!weight) {
        TF_Tensor *plan = NULL;
        pthread_mutex_lock(&self->mutex);
        weight = atomic_load(&self->weight);
        if (!weight) {
            TF_GetInput(context, 0, &plan, status);
            if (!failed(status)) weight = load_weight(self, plan, status);
            atomic_store_explicit(&self->weight, weight, memory_order_release);
        }
        pthread_mutex_unlock(&self->mutex);
        if (plan) TF_DeleteTensor(plan);
    }
    if (weight) TF_SetOutput(context, 0, weight, status);
    if (failed(status)) TF_OpKernelContext_Failure(context, status);
    TF_DeleteStatus(status);
}

/* ---- registration ---- */

/* The C API gives shape functions no way to read lists, so shapes stay unknown here; the converter
 * sets those it knows in the graph. */
static void unknown_shapes(TF_ShapeInferenceContext *context, TF_Status *status) {
    TF_ShapeInferenceContextSetUnknownShape(context, status);
}

static void scalar_shape(TF_ShapeInferenceContext *context, TF_Status *status) {
    TF_ShapeHandle *scalar = TF_ShapeInferenceContextScalar(context);
    TF_ShapeInferenceContextSetOutput(context, 0, scalar, status);
    TF_DeleteShapeHandle(scalar);
}

typedef struct {
    const char *name, *inputs[3], *output, *attrs[6];
    int stateful;
    void (*shape)(TF_ShapeInferenceContext *, TF_Status *);
    void *(*create)(TF_OpKernelConstruction *);
    void (*compute)(void *, TF_OpKernelContext *);
} op;

static const op OPS[] = {
    {"PlanishEngine", {"plan: string", "inputs: InT"}, "outputs: OutT",
     {"InT: list(type) >= 0", "OutT: list(type) >= 1", "engine: string",
      "output_shapes: list(shape) = []", "settings: string = '{}'"},
     0, unknown_shapes, create_engine_kernel, compute_engine},
    {"PlanishReady", {"plan: string", "inputs: InT"}, "ready: bool",
     {"InT: list(type) >= 0", "engine: string", "settings: string = '{}'"},
     0, scalar_shape, create_engine_kernel, compute_ready},
    /* Stateful, lest constant folding put a copy of the weight into the graph. */
    {"PlanishWeight", {"plan: string"}, "value: dtype",
     {"weight: string", "dtype: type", "shape: list(int)"},
     1, unknown_shapes, create_weight_kernel, compute_weight},
};

static void complain(const op *which, TF_Status *status) {
    if (failed(status))
        fprintf(stderr, "Planish: cannot register the op %s with TensorFlow: %s\n", which->name,
                TF_Message(status));
}

static void register_op(const op *which, TF_Status *status) {
    TF_OpDefinitionBuilder *definition = TF_NewOpDefinitionBuilder(which->name);
    for (int i = 0; which->inputs[i]; i++)
        TF_OpDefinitionBuilderAddInput(definition, which->inputs[i]);
    TF_OpDefinitionBuilderAddOutput(definition, which->output);
    for (int i = 0; which->attrs[i]; i++) TF_OpDefinitionBuilderAddAttr(definition, which->attrs[i]);
    TF_OpDefinitionBuilderSetIsStateful(definition, which->stateful);
    TF_OpDefinitionBuilderSetShapeInferenceFunction(definition, which->shape);
    TF_RegisterOpDefinition(definition, status);
    complain(which, status);
    TF_RegisterKernelBuilder(
        which->name,
        TF_NewKernelBuilder(which->name, "CPU", which->create, which->compute, destroy_kernel),
        status);
    complain(which, status);
}

__attribute__((constructor)) static void register_ops(void) {
    TF_Status *status = TF_NewStatus();
    for (size_t i = 0; i < sizeof OPS / sizeof *OPS; i++) register_op(&OPS[i], status);
    TF_DeleteStatus(status);
}
