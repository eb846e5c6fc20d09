/* Outputs whose size depends on the data: the program makes them as large as they can become, and
 * what of them means something is copied to memory of the right size. */
#include <stdlib.h>
#include <string.h>

#include "internal.h"

enum { INT32 = 3, INT64 = 9 }; /* of TensorFlow's DataType */

int planish_counting_check(const planish_counting *counting, const planish_signature *outputs,
                           char *error, size_t error_size) {
    int fits = counting->visible_count >= 0 && counting->trim_count >= 0;
    for (int i = 0; fits && i < counting->visible_count; i++)
        fits = counting->visible[i] >= 0 && counting->visible[i] < outputs->count;
    for (int i = 0; fits && i < counting->trim_count; i++) {
        const planish_trim *trim = &counting->trims[i];
        fits = trim->output >= 0 && trim->output < outputs->count && trim->axis >= 0 &&
               trim->axis < outputs->ranks[trim->output] && trim->count >= 0 &&
               trim->count < outputs->count && trim->factor >= 0 &&
               (outputs->dtypes[trim->count] == INT32 || outputs->dtypes[trim->count] == INT64);
    }
    if (fits) return PLANISH_OK;
    return planish_error(PLANISH_INVALID, error, error_size,
                         "the outputs cannot be cut as the program says");
}

static void *copy(const void *from, size_t bytes) {
    void *to = malloc(bytes + 1);
    if (to && bytes) memcpy(to, from, bytes);
    return to;
}

planish_counting *planish_counting_copy(const planish_counting *from) {
    planish_counting *fresh = copy(from, sizeof *from);
    if (!fresh) return NULL;
    fresh->visible = copy(from->visible, (size_t)from->visible_count * sizeof *from->visible);
    fresh->trims = copy(from->trims, (size_t)from->trim_count * sizeof *from->trims);
    if (fresh->visible && fresh->trims) return fresh;
    planish_counting_free(fresh);
    return NULL;
}

void planish_counting_free(planish_counting *counting) {
    if (!counting) return;
    free((void *)counting->visible);
    free((void *)counting->trims);
    free(counting);
}

static int is_cut(const planish_counting *counting, int output) {
    for (int i = 0; i < counting->trim_count; i++)
        if (counting->trims[i].output == output) return 1;
    return 0;
}

int planish_counting_place(const planish_counting *counting, int index) {
    for (int i = 0; i < counting->visible_count; i++)
        if (counting->visible[i] == index) return is_cut(counting, index) ? -1 : i;
    return -1;
}

static int64_t read_count(const planish_signature *made, void *const *outputs, int index) {
    if (made->dtypes[index] == INT32) return *(const int32_t *)outputs[index];
    return *(const int64_t *)outputs[index];
}

/* Copies the first `dims` elements along every axis of a dense tensor of shape `whole`. */
static void copy_part(char *to, const char *from, int rank, const int64_t *dims,
                      const int64_t *whole, size_t element) {
    int inner = rank; /* from here on everything is copied */
    while (inner > 0 && dims[inner - 1] == whole[inner - 1]) inner--;
    size_t row = element, step = element; /* bytes of a run, and from one to the next */
    for (int axis = inner; axis < rank; axis++) row *= (size_t)whole[axis];
    if (inner > 0) {
        step = row * (size_t)whole[inner - 1];
        row *= (size_t)dims[inner - 1];
    }
    int64_t runs = 1;
    for (int axis = 0; axis < inner - 1; axis++) runs *= dims[axis];
    for (int64_t run = 0; row && run < runs; run++, to += row) {
        int64_t rest = run, place = 0, size = 1;
        for (int axis = inner - 2; axis >= 0; axis--) {
            place += rest % dims[axis] * size;
            rest /= dims[axis];
            size *= whole[axis];
        }
        memcpy(to, from + (size_t)place * step, row);
    }
}

int planish_counting_cut(const planish_counting *counting, const planish_signature *made,
                         void *const *outputs, planish_allocate_output allocate, void *context,
                         char *error, size_t error_size) {
    for (int i = 0; i < counting->visible_count; i++) {
        int output = counting->visible[i], rank = made->ranks[output];
        if (!is_cut(counting, output)) continue;
        const int64_t *whole = made->dims;
        for (int before = 0; before < output; before++) whole += made->ranks[before];
        int64_t dims[rank + 1];
        memcpy(dims, whole, (size_t)rank * sizeof *dims);
        for (int t = 0; t < counting->trim_count; t++) {
            const planish_trim *trim = &counting->trims[t];
            if (trim->output != output) continue;
            int64_t count = read_count(made, outputs, trim->count), size;
            if (count < 0 || __builtin_mul_overflow(count, trim->factor, &size) ||
                size > whole[trim->axis])
                return planish_error(PLANISH_INVALID, error, error_size,
                                     "the model computed %lld for the size of a dimension that has "
                                     "room for %lld",
                                     (long long)count, (long long)whole[trim->axis]);
            dims[trim->axis] = size;
        }
        size_t element = planish_dtype_bytes(made->dtypes[output]), bytes = element;
        for (int axis = 0; axis < rank; axis++) bytes *= (size_t)dims[axis];
        void *data = NULL;
        int status = allocate(context, i, made->dtypes[output], rank, dims, bytes, &data, error,
                              error_size);
        if (status) return status;
        if (bytes) copy_part(data, outputs[output], rank, dims, whole, element);
    }
    return PLANISH_OK;
}
