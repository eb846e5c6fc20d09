/* Programs, aligned memory and error texts: everything that is not on the hot path. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "internal.h"

#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_PAGES_FROM ((size_t)4 << 20)

typedef void (*released_function)(int64_t owner);
static _Atomic(released_function) on_released;

void planish_on_released(released_function released) { atomic_store(&on_released, released); }

int planish_error(int status, char *error, size_t error_size, const char *format, ...) {
    if (error && error_size) {
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error, error_size, format, arguments);
        va_end(arguments);
    }
    return status;
}

/* ---- memory ---- */

void *planish_aligned_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * HUGE_PAGE) return NULL;
    if (bytes < HUGE_PAGES_FROM)
        return aligned_alloc(ALIGNMENT, bytes ? (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
                                              : ALIGNMENT);
    size_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    char *mapped = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)mapped % HUGE_PAGE) % HUGE_PAGE;
    if (before) munmap(mapped, before);
    munmap(mapped + before + size, HUGE_PAGE - before);
    madvise(mapped + before, size, MADV_HUGEPAGE);
    return mapped + before;
}

void planish_aligned_free(void *memory, size_t bytes) {
    if (!memory) return;
    if (bytes < HUGE_PAGES_FROM)
        free(memory);
    else
        munmap(memory, (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE);
}

void *planish_scratch_get(planish_scratch *scratch, int64_t bytes) {
    if ((size_t)bytes <= scratch->bytes) return scratch->memory;
    planish_aligned_free(scratch->memory, scratch->bytes);
    scratch->memory = planish_aligned_alloc((size_t)bytes);
    scratch->bytes = scratch->memory ? (size_t)bytes : 0;
    return scratch->memory;
}

/* ---- programs ---- */

static int check_step(const planish_program_description *from, int64_t index, char *error,
                      size_t error_size) {
    const planish_step *step = &from->steps[index];
    const char *wrong = NULL;
    if (!step->kernel)
        wrong = "has no kernel";
    else if (step->tasks < 0 || step->grain < 1)
        wrong = "needs tasks >= 0 and grain >= 1";
    else if (step->pointer_count < 0 || step->pointer_count > PLANISH_MAX_POINTERS)
        wrong = "has too many pointers";
    else if (step->first_pointer < 0 || step->first_pointer > from->pointer_count ||
             step->pointer_count > from->pointer_count - step->first_pointer)
        wrong = "points outside the pointer table";
    else if (step->first_param < 0 || step->first_param > from->param_count)
        wrong = "points outside the parameter table";
    if (!wrong) return PLANISH_OK;
    return planish_error(PLANISH_INVALID, error, error_size, "step %lld %s", (long long)index,
                         wrong);
}

static int check_pointer(const planish_program_description *from, int64_t index, char *error,
                         size_t error_size) {
    const planish_pointer *pointer = &from->pointers[index];
    int64_t bases = PLANISH_BASE_INPUT + from->input_count + from->output_count;
    if (pointer->base < 0 || pointer->base >= bases)
        return planish_error(PLANISH_INVALID, error, error_size, "pointer %lld has no base %d",
                             (long long)index, (int)pointer->base);
    if (pointer->base != PLANISH_BASE_ABSOLUTE && pointer->offset < 0)
        return planish_error(PLANISH_INVALID, error, error_size, "pointer %lld: offset below zero",
                             (long long)index);
    if (pointer->base == PLANISH_BASE_ARENA && pointer->offset > from->arena_bytes)
        return planish_error(PLANISH_INVALID, error, error_size,
                             "pointer %lld lies outside the arena", (long long)index);
    return PLANISH_OK;
}

static int check(const planish_program_description *from, char *error, size_t error_size) {
    if (from->step_count < 0 || from->pointer_count < 0 || from->param_count < 0 ||
        from->input_count < 0 || from->output_count < 0 || from->arena_bytes < 0 ||
        from->scratch_bytes < 0 || from->input_count > INT32_MAX / 4 ||
        from->output_count > INT32_MAX / 4)
        return planish_error(PLANISH_INVALID, error, error_size, "a count is out of range");
    for (int64_t i = 0; i < from->step_count; i++)
        if (check_step(from, i, error, error_size)) return PLANISH_INVALID;
    for (int64_t i = 0; i < from->pointer_count; i++)
        if (check_pointer(from, i, error, error_size)) return PLANISH_INVALID;
    return PLANISH_OK;
}

static void *copy(const void *from, int64_t count, size_t size) {
    void *to = malloc((size_t)count * size + 1); /* never a malloc of zero bytes */
    if (to && count) memcpy(to, from, (size_t)count * size);
    return to;
}

static void destroy(planish_program *program) {
    free(program->steps);
    free(program->pointers);
    free(program->params);
    free(program);
}

planish_program *planish_program_create(const planish_program_description *from, char *error,
                                        size_t error_size) {
    if (check(from, error, error_size)) return NULL;
    planish_program *program = calloc(1, sizeof *program);
    if (program) {
        program->steps = copy(from->steps, from->step_count, sizeof *from->steps);
        program->pointers = copy(from->pointers, from->pointer_count, sizeof *from->pointers);
        program->params = copy(from->params, from->param_count, sizeof *from->params);
    }
    if (!program || !program->steps || !program->pointers || !program->params) {
        if (program) destroy(program);
        planish_error(PLANISH_NO_MEMORY, error, error_size, "out of memory");
        return NULL;
    }
    program->step_count = from->step_count;
    program->input_count = from->input_count;
    program->output_count = from->output_count;
    program->arena_bytes = from->arena_bytes;
    program->scratch_bytes = from->scratch_bytes;
    program->owner = from->owner;
    atomic_init(&program->references, 1);
    for (int64_t i = 0; i < program->step_count; i++) {
        planish_step *step = &program->steps[i];
        int64_t least = step->tasks / PLANISH_MAX_GRABS + 1;
        if (step->grain < least) step->grain = least;
        program->parallel |= !planish_is_serial(step);
    }
    return program;
}

void planish_program_retain(planish_program *program) {
    atomic_fetch_add_explicit(&program->references, 1, memory_order_relaxed);
}

void planish_program_release(planish_program *program) {
    if (!program || atomic_fetch_sub_explicit(&program->references, 1, memory_order_acq_rel) != 1)
        return;
    int64_t owner = program->owner;
    destroy(program);
    released_function released = atomic_load(&on_released);
    if (released) released(owner);
}
