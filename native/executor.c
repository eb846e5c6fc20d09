/* Runs a program: walks its steps on the calling thread, and hands each step that is worth it to
 * the team (pool.c). One team for the whole program. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "internal.h"

typedef struct {
    const planish_program *program;
    void *arena;
    void *const *inputs;
    void *const *outputs;
    atomic_int no_memory;
} job;

/* Executions nest: a host step may run another program on its thread. */
typedef struct execution {
    struct execution *outer;
    int aborted;
} execution;

static _Thread_local execution *current;
static _Thread_local char last_error[1024];
static _Thread_local planish_scratch own_scratch;

static pthread_key_t scratch_key;
static pthread_once_t scratch_key_once = PTHREAD_ONCE_INIT;

static void free_scratch(void *scratch) {
    planish_scratch *own = scratch;
    planish_aligned_free(own->memory, own->bytes);
    *own = (planish_scratch){0};
}

static void create_scratch_key(void) { pthread_key_create(&scratch_key, free_scratch); }

/* The calling thread's scratch, freed when the thread ends. */
static void *get_own_scratch(int64_t bytes) {
    if ((size_t)bytes <= own_scratch.bytes) return own_scratch.memory;
    pthread_once(&scratch_key_once, create_scratch_key);
    pthread_setspecific(scratch_key, &own_scratch);
    return planish_scratch_get(&own_scratch, bytes);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void planish_abort(const char *message) {
    if (!current || current->aborted) return;
    current->aborted = 1;
    snprintf(last_error, sizeof last_error, "%s", message ? message : "");
}

const char *planish_last_error(void) { return last_error; }

static inline void resolve(const job *work, const planish_step *step, void **pointers) {
    const planish_program *program = work->program;
    const planish_pointer *from = program->pointers + step->first_pointer;
    for (int i = 0; i < step->pointer_count; i++) {
        int64_t base = from[i].base, offset = from[i].offset;
        if (base == PLANISH_BASE_ABSOLUTE)
            pointers[i] = (void *)(intptr_t)offset;
        else if (base == PLANISH_BASE_ARENA)
            pointers[i] = (char *)work->arena + offset;
        else if ((base -= PLANISH_BASE_INPUT) < program->input_count)
            pointers[i] = (char *)work->inputs[base] + offset;
        else
            pointers[i] = (char *)work->outputs[base - program->input_count] + offset;
    }
}

static int64_t run_grabs(void *argument, const void *item, planish_team *team, int lane,
                         int64_t grab, planish_scratch *own) {
    job *work = argument;
    const planish_step *step = item;
    void *pointers[PLANISH_MAX_POINTERS];
    resolve(work, step, pointers);
    const int64_t *params = work->program->params + step->first_param;
    void *scratch = planish_scratch_get(own, work->program->scratch_bytes);
    int usable = scratch || !work->program->scratch_bytes;
    if (!usable) atomic_store(&work->no_memory, 1);
    int64_t done = 0;
    do {
        int64_t begin = grab * step->grain, end = begin + step->grain;
        if (usable)
            step->kernel(pointers, params, begin, end < step->tasks ? end : step->tasks, scratch);
        done++;
    } while ((grab = planish_team_claim(team, lane)) >= 0);
    return done;
}

static void run_alone(job *work, const planish_step *step) {
    void *pointers[PLANISH_MAX_POINTERS];
    void *scratch = NULL;
    if (!step->tasks) return;
    resolve(work, step, pointers);
    if (!(step->flags & PLANISH_STEP_HOST)) {
        /* Looked up anew for each step: a host step before may have run a program with more. */
        scratch = get_own_scratch(work->program->scratch_bytes);
        if (!scratch && work->program->scratch_bytes) {
            atomic_store(&work->no_memory, 1);
            return;
        }
    }
    step->kernel(pointers, work->program->params + step->first_param, 0, step->tasks, scratch);
}

int planish_execute(const planish_program *program, void *arena, void *const *inputs,
                    void *const *outputs, int threads, int64_t *profile) {
    job work = {.program = program, .arena = arena, .inputs = inputs, .outputs = outputs};
    execution this = {.outer = current};
    planish_team *team = program->parallel ? planish_team_acquire(threads) : NULL;
    current = &this;
    for (int64_t i = 0; i < program->step_count; i++) {
        const planish_step *step = &program->steps[i];
        if (profile) profile[2 * i] = now();
        if (!team || planish_is_serial(step)) {
            run_alone(&work, step);
        } else if (get_own_scratch(program->scratch_bytes) || !program->scratch_bytes) {
            int64_t grabs = (step->tasks + step->grain - 1) / step->grain;
            planish_team_run(team, grabs, run_grabs, &work, step, &own_scratch);
        } else {
            atomic_store(&work.no_memory, 1);
        }
        if (profile) profile[2 * i + 1] = now();
        if (this.aborted || atomic_load_explicit(&work.no_memory, memory_order_relaxed)) break;
    }
    current = this.outer;
    if (team) planish_team_release(team);
    if (this.aborted) return PLANISH_FAILED;
    if (!atomic_load(&work.no_memory)) return PLANISH_OK;
    return planish_error(PLANISH_NO_MEMORY, last_error, sizeof last_error,
                         "no memory for %lld bytes of scratch per thread",
                         (long long)program->scratch_bytes);
}

enum { TOUCH_GRAIN = 1 << 16, LINE = 64 }; /* bytes a thread reads at once, of a cache line */

static void touch_lines(const planish_memory *memory, int64_t grab) {
    int64_t end = (grab + 1) * TOUCH_GRAIN < memory->bytes ? (grab + 1) * TOUCH_GRAIN : memory->bytes;
    for (int64_t i = grab * TOUCH_GRAIN; i < end; i += LINE)
        (void)((const volatile char *)memory->start)[i];
}

static int64_t touch_grabs(void *job, const void *item, planish_team *team, int lane, int64_t grab,
                           planish_scratch *own) {
    int64_t done = 0;
    (void)job, (void)own;
    do {
        touch_lines(item, grab);
        done++;
    } while ((grab = planish_team_claim(team, lane)) >= 0);
    return done;
}

static void touch(const planish_memory *memory, int threads) {
    int64_t grabs = (memory->bytes + TOUCH_GRAIN - 1) / TOUCH_GRAIN;
    planish_team *team = grabs > 1 ? planish_team_acquire(threads) : NULL;
    if (team) {
        planish_team_run(team, grabs, touch_grabs, NULL, memory, &own_scratch);
        planish_team_release(team);
    } else {
        for (int64_t grab = 0; grab < grabs; grab++) touch_lines(memory, grab);
    }
}

int planish_measure(const planish_program *program, void *arena, void *const *inputs,
                    void *const *outputs, int threads, int repeats, const planish_memory *touched,
                    int touched_count, double *seconds) {
    for (int i = 0; i < repeats; i++) {
        for (int n = 0; n < touched_count; n++) touch(&touched[n], threads);
        int64_t start = now();
        int status = planish_execute(program, arena, inputs, outputs, threads, NULL);
        if (status) return status;
        seconds[i] = (double)(now() - start) * 1e-9;
    }
    return PLANISH_OK;
}
