/* Runs programs of the native runtime and checks every element of their results; see
 * `test_native.py`. Steps pass data from thread to thread: each element of a step's result depends
 * on elements that other threads wrote in the step before, so that a missing acquire or release
 * shows as a wrong result (on a weakly ordered machine) or as a race (under ThreadSanitizer).
 *
 *   native_check ROUNDS CALLERS */
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "planish.h"

#define COUNT 601
#define STEPS 12
#define INPUT (PLANISH_BASE_INPUT + 0)
#define OUTPUT (PLANISH_BASE_INPUT + 1)

/* to[i] = 3 from[n - 1 - i] + i, through scratch memory */
static void turn(void *const *pointers, const int64_t *params, int64_t begin, int64_t end,
                 void *scratch) {
    const uint64_t *from = pointers[0];
    uint64_t *to = pointers[1], *own = scratch;
    for (int64_t i = begin; i < end; i++) {
        own[0] = from[params[0] - 1 - i];
        own[1] = own[0] * 3;
        if (i % 97 == 96) sched_yield(); /* now and then the caller finishes before others do */
        to[i] = own[1] + (uint64_t)i;
    }
}

static void expect(uint64_t start, uint64_t *result) {
    uint64_t from[COUNT];
    for (int i = 0; i < COUNT; i++) result[i] = start + (uint64_t)i * 7;
    for (int s = 0; s < STEPS; s++) {
        memcpy(from, result, sizeof from);
        for (int i = 0; i < COUNT; i++) result[i] = from[COUNT - 1 - i] * 3 + (uint64_t)i;
    }
}

static planish_program *create(void) {
    planish_step steps[STEPS];
    planish_pointer pointers[2 * STEPS];
    int64_t params[1] = {COUNT};
    char error[256];
    for (int s = 0; s < STEPS; s++) {
        int flags = s == 5 ? PLANISH_STEP_SERIAL : 0;
        int64_t grain = s % 4 == 3 ? 50 : 1 + s % 3;
        steps[s] = (planish_step){turn, COUNT, grain, 2 * s, 0, 2, flags};
        int64_t half = COUNT * 8 + 24;
        pointers[2 * s] = (planish_pointer){PLANISH_BASE_ARENA, 0, (s % 2) * half};
        pointers[2 * s + 1] = (planish_pointer){PLANISH_BASE_ARENA, 0, (1 - s % 2) * half};
    }
    pointers[0] = (planish_pointer){INPUT, 0, 0};
    pointers[2 * STEPS - 1] = (planish_pointer){OUTPUT, 0, 0};
    planish_program_description description = {
        steps, STEPS, pointers, 2 * STEPS, params, 1, 1, 1, 4 * COUNT * 8, 64, 1};
    planish_program *program = planish_program_create(&description, error, sizeof error);
    if (!program) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    return program;
}

static planish_program *shared;
static int rounds;

static void *call(void *argument) {
    uint64_t seed = (uint64_t)(intptr_t)argument * 1000003;
    uint64_t input[COUNT], output[COUNT], wanted[COUNT];
    void *arena = planish_aligned_alloc(4 * COUNT * 8);
    for (int r = 0; r < rounds; r++) {
        uint64_t start = seed + (uint64_t)r;
        for (int i = 0; i < COUNT; i++) input[i] = start + (uint64_t)i * 7;
        memset(output, 0xA5, sizeof output);
        void *inputs[1] = {input}, *outputs[1] = {output};
        if (planish_execute(shared, arena, inputs, outputs, 1 + r % 5, NULL)) return "failed";
        expect(start, wanted);
        if (memcmp(output, wanted, sizeof wanted)) return "gave a wrong result";
    }
    planish_aligned_free(arena, 4 * COUNT * 8);
    return NULL;
}

static int allocate(void *context, int index, int dtype, int rank, const int64_t *dims,
                    size_t bytes, void **data, char *error, size_t error_size) {
    (void)index, (void)dtype, (void)rank, (void)dims, (void)bytes, (void)error, (void)error_size;
    *data = context;
    return 0;
}

static const char *run_engine(void) {
    static const int ranks[] = {1}, dtypes[] = {23};
    static const int64_t dims[] = {COUNT};
    planish_signature signature = {1, ranks, dims, dtypes};
    uint64_t input[COUNT], output[COUNT], wanted[COUNT];
    void *inputs[1] = {input};
    char error[256] = "";
    planish_engine *engine = planish_engine_create(1, 2, 3);
    if (planish_engine_add_program(engine, &signature, &signature, shared, error, sizeof error))
        return "refused a program";
    for (int i = 0; i < COUNT; i++) input[i] = 5 + (uint64_t)i * 7;
    expect(5, wanted);
    for (int r = 0; r < 10; r++) {
        memset(output, 0, sizeof output);
        if (planish_engine_run(engine, &signature, inputs, allocate, output, error, sizeof error))
            return "did not run its program";
        if (memcmp(output, wanted, sizeof wanted)) return "gave a wrong result";
    }
    planish_engine_release(engine);
    return NULL;
}

int main(int count, char **arguments) {
    pthread_t threads[64];
    int callers = count > 2 ? atoi(arguments[2]) : 1, wrong = 0;
    rounds = count > 1 ? atoi(arguments[1]) : 1;
    shared = create();
    for (int i = 0; i < callers; i++)
        pthread_create(&threads[i], NULL, call, (void *)(intptr_t)(i + 1));
    for (int i = 0; i < callers; i++) {
        void *said;
        pthread_join(threads[i], &said);
        if (said) {
            fprintf(stderr, "caller %d: an execution %s\n", i, (char *)said);
            wrong = 1;
        }
    }
    const char *said = run_engine();
    if (said) fprintf(stderr, "an engine %s\n", said);
    planish_program_release(shared);
    if (!wrong && !said) puts("as expected");
    return wrong || said;
}
