/* What the files of the runtime share among themselves. */
#ifndef PLANISH_INTERNAL_H
#define PLANISH_INTERNAL_H

#include <stdatomic.h>

#include "planish.h"

struct planish_program {
    planish_step *steps;
    planish_pointer *pointers;
    int64_t *params;
    int64_t step_count, input_count, output_count, arena_bytes, scratch_bytes, owner;
    int parallel; /* whether any step is worth more than one thread */
    atomic_int references;
};

/* Memory that grows on demand and belongs to one thread. */
typedef struct {
    void *memory;
    size_t bytes;
} planish_scratch;

/* At least `bytes`, or NULL; what it held before is lost. */
void *planish_scratch_get(planish_scratch *scratch, int64_t bytes);

/* A step that runs on one thread only. */
static inline int planish_is_serial(const planish_step *step) {
    return (step->flags & (PLANISH_STEP_HOST | PLANISH_STEP_SERIAL)) || step->tasks <= step->grain;
}

/* ---- the pool ---- */

typedef struct planish_team planish_team;

/* Runs `grab` and then all that planish_team_claim yields in this lane; returns how many it ran. */
typedef int64_t (*planish_team_function)(void *job, const void *item, planish_team *team, int lane,
                                         int64_t grab, planish_scratch *scratch);

/* The caller and up to threads - 1 idle workers; NULL where there is none to be had. */
planish_team *planish_team_acquire(int threads);
void planish_team_release(planish_team *team);
/* Runs `function` over grabs [0, grabs), grabs > 0, on the team; the caller works with its own
 * `scratch`. `job` and `item` are for the function. */
void planish_team_run(planish_team *team, int64_t grabs, planish_team_function function, void *job,
                      const void *item, planish_scratch *scratch);
/* The next grab in a lane, or -1. */
int64_t planish_team_claim(planish_team *team, int lane);

#define PLANISH_MAX_GRABS (1 << 30) /* of one step: grab numbers are 32 bits wide */

/* ---- outputs that are cut to size ---- */

/* Bytes of an element by TensorFlow's DataType number, 0 for what the runtime does not know. */
size_t planish_dtype_bytes(int dtype);

/* PLANISH_INVALID where it does not fit the outputs. */
int planish_counting_check(const planish_counting *counting, const planish_signature *outputs,
                           char *error, size_t error_size);
planish_counting *planish_counting_copy(const planish_counting *from); /* NULL: out of memory */
void planish_counting_free(planish_counting *counting);
/* Which of the caller's outputs output `index` of the program is, as it is; else -1. */
int planish_counting_place(const planish_counting *counting, int index);
/* After the run: allocates the caller's outputs that are cut to size, and fills them. */
int planish_counting_cut(const planish_counting *counting, const planish_signature *made,
                         void *const *outputs, planish_allocate_output allocate, void *context,
                         char *error, size_t error_size);

/* Writes a message and returns `status`. */
int planish_error(int status, char *error, size_t error_size, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
