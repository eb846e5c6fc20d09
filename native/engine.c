/* Engines: an LRU cache of programs by input signature, and arenas for several callers at once.
 *
 * Locks: `mutex` guards the lists and is held for moments only, never across a callback (Python
 * would wait for its own lock there); `bind_mutex` lets one thread make a missing program while
 * others keep running the ones that exist. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

#define MAX_SPARE_ARENAS 16

typedef struct entry {
    struct entry *next;
    planish_program *program;
    int64_t *key;
    size_t key_bytes;
    planish_signature outputs; /* its arrays belong to the entry */
    size_t *output_bytes;
    planish_counting *counting; /* NULL: none; its arrays belong to the entry */
    atomic_int references;
} entry;

typedef struct {
    void *memory;
    size_t bytes;
} arena;

struct planish_engine {
    int64_t id;
    int capacity, threads;
    atomic_int references;
    pthread_mutex_t mutex, bind_mutex;
    entry *entries; /* most recently used first */
    arena spare[MAX_SPARE_ARENAS];
    int spare_count;
    planish_engine *next, *previous; /* of all engines, for fork */
};

static _Atomic(planish_bind) on_bind;
static _Atomic(planish_can_bind) on_can_bind;

void planish_on_bind(planish_bind bind, planish_can_bind can_bind) {
    atomic_store(&on_bind, bind);
    atomic_store(&on_can_bind, can_bind);
}

/* ---- fork: a child gets every engine with its lists whole and its locks free ---- */

static pthread_mutex_t all_mutex = PTHREAD_MUTEX_INITIALIZER;
static planish_engine *all_engines;

static void init_bind_mutex(planish_engine *engine) {
    pthread_mutexattr_t attributes; /* recursive: bind may run the engine it extends */
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&engine->bind_mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
}

static void lock_all(void) {
    pthread_mutex_lock(&all_mutex);
    for (planish_engine *e = all_engines; e; e = e->next) pthread_mutex_lock(&e->mutex);
}

static void unlock_all(void) {
    for (planish_engine *e = all_engines; e; e = e->next) pthread_mutex_unlock(&e->mutex);
    pthread_mutex_unlock(&all_mutex);
}

static void unlock_all_in_child(void) {
    for (planish_engine *e = all_engines; e; e = e->next) init_bind_mutex(e);
    unlock_all();
}

static void register_fork_handlers(void) {
    pthread_atfork(lock_all, unlock_all, unlock_all_in_child);
}

/* ---- signatures ---- */

size_t planish_dtype_bytes(int dtype) {
    static const unsigned char bytes[] = {
        [1] = 4,  [2] = 8,  [3] = 4,  [4] = 1,  [5] = 2,  [6] = 1,
        [9] = 8,  [10] = 1, [14] = 2, [17] = 2, [19] = 2, [22] = 4, [23] = 8,
    };
    return dtype > 0 && dtype < (int)sizeof bytes ? bytes[dtype] : 0;
}

static size_t dim_count(const planish_signature *signature) {
    size_t count = 0;
    for (int i = 0; i < signature->count; i++) count += (size_t)signature->ranks[i];
    return count;
}

static size_t key_length(const planish_signature *s) { return 2 * (size_t)s->count + dim_count(s); }

static void write_key(const planish_signature *s, int64_t *key) {
    const int64_t *dims = s->dims;
    for (int i = 0; i < s->count; i++) {
        *key++ = s->dtypes[i];
        *key++ = s->ranks[i];
        for (int d = 0; d < s->ranks[i]; d++) *key++ = *dims++;
    }
}

/* ---- entries ---- */

static void release_entry(entry *dropped) {
    if (atomic_fetch_sub_explicit(&dropped->references, 1, memory_order_acq_rel) != 1) return;
    planish_program_release(dropped->program);
    free(dropped->key);
    free((void *)dropped->outputs.ranks);
    free((void *)dropped->outputs.dims);
    free((void *)dropped->outputs.dtypes);
    free(dropped->output_bytes);
    planish_counting_free(dropped->counting);
    free(dropped);
}

static void *copy(const void *from, size_t bytes) {
    void *to = malloc(bytes + 1);
    if (to && bytes) memcpy(to, from, bytes);
    return to;
}

static int measure_outputs(const planish_signature *outputs, size_t *bytes, char *error,
                           size_t error_size) {
    const int64_t *dims = outputs->dims;
    for (int i = 0; i < outputs->count; i++) {
        bytes[i] = planish_dtype_bytes(outputs->dtypes[i]);
        if (!bytes[i])
            return planish_error(PLANISH_INVALID, error, error_size,
                                 "output %d has the unknown dtype %d", i, outputs->dtypes[i]);
        for (int d = 0; d < outputs->ranks[i]; d++, dims++)
            if (*dims < 0 || __builtin_mul_overflow(bytes[i], (size_t)*dims, &bytes[i]))
                return planish_error(PLANISH_INVALID, error, error_size,
                                     "output %d has an impossible shape", i);
    }
    return PLANISH_OK;
}

static entry *create_entry(const planish_signature *inputs, const planish_signature *outputs,
                           planish_program *program, const planish_counting *counting, char *error,
                           size_t error_size) {
    entry *fresh = calloc(1, sizeof *fresh);
    if (!fresh) {
        planish_error(PLANISH_NO_MEMORY, error, error_size, "out of memory");
        return NULL;
    }
    size_t count = (size_t)outputs->count;
    atomic_init(&fresh->references, 1);
    planish_program_retain(program);
    fresh->program = program;
    fresh->key_bytes = key_length(inputs) * sizeof(int64_t);
    fresh->key = malloc(fresh->key_bytes + 1);
    fresh->output_bytes = malloc(count * sizeof(size_t) + 1);
    fresh->outputs.count = outputs->count;
    fresh->outputs.ranks = copy(outputs->ranks, count * sizeof(int));
    fresh->outputs.dtypes = copy(outputs->dtypes, count * sizeof(int));
    fresh->outputs.dims = copy(outputs->dims, dim_count(outputs) * sizeof(int64_t));
    fresh->counting = counting ? planish_counting_copy(counting) : NULL;
    int complete = fresh->key && fresh->output_bytes && fresh->outputs.ranks &&
                   fresh->outputs.dtypes && fresh->outputs.dims && (fresh->counting || !counting);
    if (!complete) planish_error(PLANISH_NO_MEMORY, error, error_size, "out of memory");
    if (!complete || measure_outputs(outputs, fresh->output_bytes, error, error_size)) {
        release_entry(fresh);
        return NULL;
    }
    write_key(inputs, fresh->key);
    return fresh;
}

/* With the mutex held: takes the entry out of the list, NULL where there is none. */
static entry *unlink_entry(planish_engine *engine, const int64_t *key, size_t key_bytes) {
    for (entry **at = &engine->entries; *at; at = &(*at)->next) {
        entry *found = *at;
        if (found->key_bytes == key_bytes && !memcmp(found->key, key, key_bytes)) {
            *at = found->next;
            return found;
        }
    }
    return NULL;
}

static void put_first(planish_engine *engine, entry *first) {
    first->next = engine->entries;
    engine->entries = first;
}

/* The entry with a reference for the caller, now the most recently used. */
static entry *find(planish_engine *engine, const int64_t *key, size_t key_bytes) {
    pthread_mutex_lock(&engine->mutex);
    entry *found = unlink_entry(engine, key, key_bytes);
    if (found) {
        put_first(engine, found);
        atomic_fetch_add_explicit(&found->references, 1, memory_order_relaxed);
    }
    pthread_mutex_unlock(&engine->mutex);
    return found;
}

/* ---- engines ---- */

planish_engine *planish_engine_create(int64_t engine_id, int capacity, int threads) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handlers);
    planish_engine *engine = calloc(1, sizeof *engine);
    if (!engine) return NULL;
    engine->id = engine_id;
    engine->capacity = capacity > 0 ? capacity : 1;
    engine->threads = threads;
    atomic_init(&engine->references, 1);
    pthread_mutex_init(&engine->mutex, NULL);
    init_bind_mutex(engine);
    pthread_mutex_lock(&all_mutex);
    engine->next = all_engines;
    if (all_engines) all_engines->previous = engine;
    all_engines = engine;
    pthread_mutex_unlock(&all_mutex);
    return engine;
}

void planish_engine_retain(planish_engine *engine) {
    atomic_fetch_add_explicit(&engine->references, 1, memory_order_relaxed);
}

void planish_engine_release(planish_engine *engine) {
    if (!engine || atomic_fetch_sub_explicit(&engine->references, 1, memory_order_acq_rel) != 1)
        return;
    pthread_mutex_lock(&all_mutex);
    if (engine->next) engine->next->previous = engine->previous;
    if (engine->previous)
        engine->previous->next = engine->next;
    else
        all_engines = engine->next;
    pthread_mutex_unlock(&all_mutex);
    while (engine->entries) {
        entry *dropped = engine->entries;
        engine->entries = dropped->next;
        release_entry(dropped);
    }
    for (int i = 0; i < engine->spare_count; i++)
        planish_aligned_free(engine->spare[i].memory, engine->spare[i].bytes);
    pthread_mutex_destroy(&engine->mutex);
    pthread_mutex_destroy(&engine->bind_mutex);
    free(engine);
}

int planish_engine_size(planish_engine *engine) {
    int size = 0;
    pthread_mutex_lock(&engine->mutex);
    for (entry *e = engine->entries; e; e = e->next) size++;
    pthread_mutex_unlock(&engine->mutex);
    return size;
}

int planish_engine_add_program(planish_engine *engine, const planish_signature *inputs,
                               const planish_signature *outputs, planish_program *program,
                               char *error, size_t error_size) {
    return planish_engine_add_counted_program(engine, inputs, outputs, program, NULL, error,
                                              error_size);
}

int planish_engine_add_counted_program(planish_engine *engine, const planish_signature *inputs,
                                       const planish_signature *outputs, planish_program *program,
                                       const planish_counting *counting, char *error,
                                       size_t error_size) {
    if (inputs->count != program->input_count || outputs->count != program->output_count)
        return planish_error(PLANISH_INVALID, error, error_size,
                             "the program has %lld inputs and %lld outputs, the signature %d and %d",
                             (long long)program->input_count, (long long)program->output_count,
                             inputs->count, outputs->count);
    if (counting && planish_counting_check(counting, outputs, error, error_size))
        return PLANISH_INVALID;
    entry *fresh = create_entry(inputs, outputs, program, counting, error, error_size);
    if (!fresh) return PLANISH_INVALID;
    pthread_mutex_lock(&engine->mutex);
    entry *dropped = unlink_entry(engine, fresh->key, fresh->key_bytes);
    put_first(engine, fresh);
    if (!dropped) {
        entry **at = &engine->entries;
        for (int i = 0; i < engine->capacity && *at; i++) at = &(*at)->next;
        dropped = *at; /* at most one: the list never was longer than the capacity */
        *at = NULL;
    }
    pthread_mutex_unlock(&engine->mutex);
    if (dropped) release_entry(dropped);
    return PLANISH_OK;
}

/* The entry for these inputs, made if need be, with a reference for the caller. */
static entry *find_or_bind(planish_engine *engine, const planish_signature *signature,
                           int *status, char *error, size_t error_size) {
    size_t length = key_length(signature);
    int64_t key[length + 1];
    write_key(signature, key);
    entry *found = find(engine, key, length * sizeof *key);
    if (found) return found;
    pthread_mutex_lock(&engine->bind_mutex);
    found = find(engine, key, length * sizeof *key); /* another thread may have made it meanwhile */
    if (!found) {
        planish_bind bind = atomic_load(&on_bind);
        if (!bind)
            *status = planish_error(PLANISH_FAILED, error, error_size,
                                    "the engine has no program for these shapes, and Python, which "
                                    "could make one, is shutting down");
        else
            *status = bind(engine->id, signature, error, error_size);
        if (*status == PLANISH_OK) {
            found = find(engine, key, length * sizeof *key);
            if (!found)
                *status = planish_error(PLANISH_FAILED, error, error_size,
                                        "bind added no program for these shapes");
        }
    }
    pthread_mutex_unlock(&engine->bind_mutex);
    return found;
}

static arena take_arena(planish_engine *engine, size_t bytes) {
    arena taken = {0}, outgrown = {0};
    pthread_mutex_lock(&engine->mutex);
    for (int i = engine->spare_count - 1; i >= 0; i--)
        if (engine->spare[i].bytes >= bytes) {
            taken = engine->spare[i];
            engine->spare[i] = engine->spare[--engine->spare_count];
            break;
        }
    if (!taken.memory && engine->spare_count) outgrown = engine->spare[--engine->spare_count];
    pthread_mutex_unlock(&engine->mutex);
    planish_aligned_free(outgrown.memory, outgrown.bytes);
    if (!taken.memory) {
        taken.memory = planish_aligned_alloc(bytes);
        taken.bytes = bytes;
    }
    return taken;
}

static void return_arena(planish_engine *engine, arena spare) {
    pthread_mutex_lock(&engine->mutex);
    if (engine->spare_count < MAX_SPARE_ARENAS) {
        engine->spare[engine->spare_count++] = spare;
        spare.memory = NULL;
    }
    pthread_mutex_unlock(&engine->mutex);
    planish_aligned_free(spare.memory, spare.bytes);
}

/* Gives the outputs that are as large as their signature says their memory; NULL for the others. */
static int allocate_whole(const entry *found, void **outputs, planish_allocate_output allocate,
                          void *context, char *error, size_t error_size) {
    const planish_signature *made = &found->outputs;
    const int64_t *dims = made->dims;
    for (int i = 0; i < made->count; dims += made->ranks[i++]) {
        outputs[i] = NULL;
        int place = found->counting ? planish_counting_place(found->counting, i) : i;
        if (place < 0) continue;
        int status = allocate(context, place, made->dtypes[i], made->ranks[i], dims,
                              found->output_bytes[i], &outputs[i], error, error_size);
        if (status) return status;
    }
    return PLANISH_OK;
}

/* Takes memory for the outputs that have none, which are counts or are still to be cut to size. */
static int take_room(planish_engine *engine, const entry *found, void **outputs, arena *room,
                     char *error, size_t error_size) {
    size_t bytes = 0;
    for (int i = 0; i < found->outputs.count; i++)
        if (planish_counting_place(found->counting, i) < 0)
            bytes += (found->output_bytes[i] + 63) & ~(size_t)63;
    *room = take_arena(engine, bytes);
    if (!room->memory)
        return planish_error(PLANISH_NO_MEMORY, error, error_size, "no memory for %zu bytes", bytes);
    char *next = room->memory;
    for (int i = 0; i < found->outputs.count; i++)
        if (planish_counting_place(found->counting, i) < 0) {
            outputs[i] = next;
            next += (found->output_bytes[i] + 63) & ~(size_t)63;
        }
    return PLANISH_OK;
}

static int run_entry(planish_engine *engine, const entry *found, void *const *inputs,
                     planish_allocate_output allocate, void *context, char *error,
                     size_t error_size) {
    void *outputs[found->outputs.count + 1];
    int status = allocate_whole(found, outputs, allocate, context, error, error_size);
    if (status) return status;
    arena room = {0};
    if (found->counting) {
        status = take_room(engine, found, outputs, &room, error, error_size);
        if (status) return status;
    }
    arena own = take_arena(engine, (size_t)found->program->arena_bytes);
    if (own.memory) {
        status =
            planish_execute(found->program, own.memory, inputs, outputs, engine->threads, NULL);
        if (status) planish_error(status, error, error_size, "%s", planish_last_error());
        return_arena(engine, own);
    } else {
        status = planish_error(PLANISH_NO_MEMORY, error, error_size, "no memory for %lld bytes",
                               (long long)found->program->arena_bytes);
    }
    if (!status && found->counting)
        status = planish_counting_cut(found->counting, &found->outputs, outputs, allocate, context,
                                      error, error_size);
    if (room.memory) return_arena(engine, room);
    return status;
}

int planish_engine_run(planish_engine *engine, const planish_signature *signature,
                       void *const *inputs, planish_allocate_output allocate, void *context,
                       char *error, size_t error_size) {
    int status = PLANISH_OK;
    entry *found = find_or_bind(engine, signature, &status, error, error_size);
    if (!found) return status;
    status = run_entry(engine, found, inputs, allocate, context, error, error_size);
    release_entry(found);
    return status;
}

int planish_engine_ready(planish_engine *engine, const planish_signature *signature) {
    size_t length = key_length(signature);
    int64_t key[length + 1];
    write_key(signature, key);
    entry *found = find(engine, key, length * sizeof *key);
    if (found) {
        release_entry(found);
        return 1;
    }
    planish_can_bind can_bind = atomic_load(&on_can_bind);
    return can_bind && can_bind(engine->id, signature) == 1;
}

const planish_engine_functions *planish_engine_table(void) {
    static const planish_engine_functions table = {planish_engine_release, planish_engine_run,
                                                   planish_engine_ready};
    return &table;
}
