/* The C face of the Planish runtime: programs, their execution, and engines for callers in C.
 *
 * Python compiles a plan into a Program (a flat table of kernels and pointers); this library runs
 * it. Everything here is thread-safe unless it says otherwise. Functions that can fail return one
 * of planish_status and write a sentence for the user into the caller's `error` buffer, or, where
 * they take none, leave it for planish_last_error(). */
#ifndef PLANISH_H
#define PLANISH_H

#include <stddef.h>
#include <stdint.h>

#define PLANISH_EXPORT __attribute__((visibility("default")))

#define PLANISH_MAX_POINTERS 32 /* of one step */
#define PLANISH_MAX_THREADS 128

typedef enum {
    PLANISH_OK = 0,
    PLANISH_INVALID = 1,   /* the caller's inputs do not fit */
    PLANISH_FAILED = 2,    /* a host step or a callback reported failure */
    PLANISH_NO_MEMORY = 3
} planish_status;

/* Runs the tasks [begin, end) of a step. Tasks are independent: any thread, any order, any split. */
typedef void (*planish_kernel)(void *const *pointers, const int64_t *params, int64_t begin,
                               int64_t end, void *scratch);

enum {
    PLANISH_STEP_HOST = 1,  /* calls back into Python: one call on the calling thread, no scratch */
    PLANISH_STEP_SERIAL = 2 /* a plain kernel: one call on the calling thread */
};

typedef struct {
    planish_kernel kernel;
    int64_t tasks;
    int64_t grain; /* tasks a thread takes at once */
    int64_t first_pointer;
    int64_t first_param;
    int32_t pointer_count;
    int32_t flags;
} planish_step;

enum { PLANISH_BASE_ABSOLUTE = 0, PLANISH_BASE_ARENA = 1, PLANISH_BASE_INPUT = 2 };

/* base 0: `offset` is an address; 1: into the arena; 2...: into the inputs, then the outputs. */
typedef struct {
    int32_t base;
    int32_t reserved;
    int64_t offset;
} planish_pointer;

/* What planish_program_create copies. */
typedef struct {
    const planish_step *steps;
    int64_t step_count;
    const planish_pointer *pointers;
    int64_t pointer_count;
    const int64_t *params;
    int64_t param_count;
    int64_t input_count;
    int64_t output_count;
    int64_t arena_bytes;
    int64_t scratch_bytes; /* per thread */
    int64_t owner;         /* handed to planish_on_released's function in the end */
} planish_program_description;

typedef struct planish_program planish_program;
typedef struct planish_engine planish_engine;

/* ---- programs: immutable, reference-counted ---- */

/* The new program holds one reference; NULL with `error` filled where the description is wrong. */
PLANISH_EXPORT planish_program *planish_program_create(const planish_program_description *from,
                                                       char *error, size_t error_size);
PLANISH_EXPORT void planish_program_retain(planish_program *program);
PLANISH_EXPORT void planish_program_release(planish_program *program);

/* `released` is called when the last reference of a program is gone: what it pointed to may go too.
 * NULL withdraws it (at exit). */
PLANISH_EXPORT void planish_on_released(void (*released)(int64_t owner));

/* Runs every step in order. `arena` has at least arena_bytes, aligned to 64. `profile` is NULL or
 * receives start and end (CLOCK_MONOTONIC, nanoseconds) of each step. */
PLANISH_EXPORT int planish_execute(const planish_program *program, void *arena,
                                   void *const *inputs, void *const *outputs, int threads,
                                   int64_t *profile);

typedef struct {
    const void *start;
    int64_t bytes;
} planish_memory;

/* Executes `repeats` times; seconds[i] is the wall time of the i-th execution. Before each one the
 * threads read `touched`, one after the other: what of it fits is then in the caches, and what was
 * there before is not. */
PLANISH_EXPORT int planish_measure(const planish_program *program, void *arena,
                                   void *const *inputs, void *const *outputs, int threads,
                                   int repeats, const planish_memory *touched, int touched_count,
                                   double *seconds);

/* Called by a kernel on the calling thread (a host step): the execution ends after this step with
 * PLANISH_FAILED. Only the first message is kept. */
PLANISH_EXPORT void planish_abort(const char *message);

/* Why the last execution on this thread failed. */
PLANISH_EXPORT const char *planish_last_error(void);

/* ---- memory ---- */

/* Uninitialised memory aligned to 64 bytes; 4 MiB and more come in huge pages where the system has
 * them. `bytes` must be given again to free it. */
PLANISH_EXPORT void *planish_aligned_alloc(size_t bytes);
PLANISH_EXPORT void planish_aligned_free(void *memory, size_t bytes);

/* ---- engines: programs per input shape, for callers in C ---- */

/* Shapes are `ranks` and the concatenated `dims`; dtypes are the numbers of TensorFlow's DataType
 * (any numbering would do, and that one never changes). */
typedef struct {
    int count;
    const int *ranks;
    const int64_t *dims;
    const int *dtypes;
} planish_signature;

/* What Python does for engines; a call with NULLs withdraws it (at exit).
 * bind: makes a program for these inputs and hands it to planish_engine_add_program.
 * can_bind: 1 where bind would succeed, and may be called now. */
typedef int (*planish_bind)(int64_t engine_id, const planish_signature *inputs, char *error,
                            size_t error_size);
typedef int (*planish_can_bind)(int64_t engine_id, const planish_signature *inputs);
PLANISH_EXPORT void planish_on_bind(planish_bind bind, planish_can_bind can_bind);

/* Gives output `index` of the run its memory; non-zero with `error` filled on failure. */
typedef int (*planish_allocate_output)(void *context, int index, int dtype, int rank,
                                       const int64_t *dims, size_t bytes, void **data, char *error,
                                       size_t error_size);

PLANISH_EXPORT planish_engine *planish_engine_create(int64_t engine_id, int capacity, int threads);
PLANISH_EXPORT void planish_engine_retain(planish_engine *engine);
PLANISH_EXPORT void planish_engine_release(planish_engine *engine);

/* A dimension of an output that is known only after the run: what output `count` holds (one int32
 * or int64), times `factor`. The output is made as large as it can become, and cut to that. */
typedef struct {
    int output, axis, count;
    int64_t factor;
} planish_trim;

/* Which outputs of a program its caller gets, in order, and how they are cut to size. */
typedef struct {
    int visible_count, trim_count;
    const int *visible;
    const planish_trim *trims;
} planish_counting;

/* Takes its own reference of `program`. Where the engine is full, the least recently used program
 * goes; one that is still running lives until it is done. */
PLANISH_EXPORT int planish_engine_add_program(planish_engine *engine,
                                              const planish_signature *inputs,
                                              const planish_signature *outputs,
                                              planish_program *program, char *error,
                                              size_t error_size);

/* The same for a program whose outputs are cut to size; `outputs` are as the program makes them. */
PLANISH_EXPORT int planish_engine_add_counted_program(planish_engine *engine,
                                                      const planish_signature *inputs,
                                                      const planish_signature *outputs,
                                                      planish_program *program,
                                                      const planish_counting *counting,
                                                      char *error, size_t error_size);

PLANISH_EXPORT int planish_engine_run(planish_engine *engine, const planish_signature *signature,
                                      void *const *inputs, planish_allocate_output allocate,
                                      void *context, char *error, size_t error_size);

/* 1 where a program for this signature exists or may be made, else 0. */
PLANISH_EXPORT int planish_engine_ready(planish_engine *engine, const planish_signature *signature);

/* How many programs the engine holds. */
PLANISH_EXPORT int planish_engine_size(planish_engine *engine);

/* What a library that is not linked with this one needs of it (the TensorFlow op). */
typedef struct {
    void (*release)(planish_engine *);
    int (*run)(planish_engine *, const planish_signature *, void *const *, planish_allocate_output,
               void *, char *, size_t);
    int (*ready)(planish_engine *, const planish_signature *);
} planish_engine_functions;
PLANISH_EXPORT const planish_engine_functions *planish_engine_table(void);

#endif
