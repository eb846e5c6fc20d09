/* The thread pool: one per process, started when first needed.
 *
 * An execution borrows idle workers as its *team*. A parallel step is cut into numbered *grabs*,
 * dealt out in contiguous *lanes*, one per member; a member works off its own lane (so that it
 * meets the same part of the data in every step) and then helps with the others.
 *
 * The invariant everything rests on: a lane's ticket holds (limit, next) in one atomic word, so a
 * fetch_add that returned next < limit *is* the proof of holding unfinished work of the step that
 * is open now; the caller cannot go on before that grab is counted off in `remaining`. Without such
 * a proof a worker reads nothing of a team but its size and tickets. So the caller waits for work,
 * never for threads: a worker that the system put aside delays nobody, a worker that comes late or
 * looks at a team that has long been handed to somebody else finds exhausted tickets or does useful
 * work there, and after a fork, where the workers are gone, the caller finishes by itself. Teams
 * are never freed, which makes the late look safe.
 *
 * A step costs two signals between cores, one there (the lane, with all that a worker needs to know
 * in its one cache line) and one back (`remaining`). */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define CACHE_LINE 64
#define SPINS_BEFORE_YIELD 2000
#define SPIN_NANOSECONDS 50000
#define SPINS_PER_CLOCK_READ 64

typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint64_t ticket; /* limit << 32 | next */
    planish_team_function function;
    void *job;
    const void *item;
} lane;

typedef struct worker {
    _Alignas(CACHE_LINE) _Atomic(planish_team *) seat; /* where to look for work */
    atomic_int lane;
    _Atomic uint32_t parked; /* 1 while asleep, or about to be */
    struct worker *next_idle;
    planish_scratch scratch;
} worker;

struct planish_team {
    _Alignas(CACHE_LINE) _Atomic int64_t remaining; /* grabs of the open step not yet finished */
    _Alignas(CACHE_LINE) atomic_int size;
    unsigned generation;
    planish_team *next_free;
    worker *members[PLANISH_MAX_THREADS];
    lane lanes[PLANISH_MAX_THREADS];
};

static struct {
    pthread_mutex_t mutex;
    worker *idle;
    planish_team *free_teams;
    int workers;
    unsigned generation; /* of forks: members of an older team no longer exist */
} pool = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static inline void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb");
#endif
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline int has_work(uint64_t ticket) { return (uint32_t)ticket < (uint32_t)(ticket >> 32); }

int64_t planish_team_claim(planish_team *team, int at) {
    _Atomic uint64_t *ticket = &team->lanes[at].ticket;
    if (!has_work(atomic_load_explicit(ticket, memory_order_relaxed))) return -1;
    uint64_t claimed = atomic_fetch_add_explicit(ticket, 1, memory_order_acq_rel);
    return has_work(claimed) ? (int64_t)(uint32_t)claimed : -1;
}

/* Runs a claimed grab and what else it can get in the same lane. */
static void work_in_lane(planish_team *team, int at, int64_t grab, planish_scratch *scratch) {
    const lane *open = &team->lanes[at];
    int64_t done = open->function(open->job, open->item, team, at, grab, scratch);
    atomic_fetch_sub_explicit(&team->remaining, done, memory_order_acq_rel);
}

/* Works off all lanes, the one at home first; 0 where there was nothing to do. */
static int work_on(planish_team *team, int home, planish_scratch *scratch) {
    int worked = 0, size = atomic_load_explicit(&team->size, memory_order_relaxed);
    for (int i = 0; i < size; i++) {
        int at = (home + i) % size;
        int64_t grab = planish_team_claim(team, at);
        if (grab < 0) continue;
        work_in_lane(team, at, grab, scratch);
        worked = 1;
    }
    return worked;
}

static void park(worker *self, planish_team *team, _Atomic uint64_t *ticket) {
    atomic_store(&self->parked, 1);
    /* Paired with the fence in wake(): either we see the new seat or ticket, or it sees us. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&self->seat) == team && (!ticket || !has_work(atomic_load(ticket))))
        syscall(SYS_futex, &self->parked, FUTEX_WAIT_PRIVATE, 1, NULL, NULL, 0);
    atomic_store(&self->parked, 0);
}

static void wake(worker *sleeper) {
    if (atomic_load_explicit(&sleeper->parked, memory_order_relaxed) &&
        atomic_exchange(&sleeper->parked, 0))
        syscall(SYS_futex, &sleeper->parked, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void wait_for_work(worker *self, planish_team *team, _Atomic uint64_t *ticket) {
    int64_t deadline = now() + SPIN_NANOSECONDS;
    for (unsigned spins = 1;; spins++) {
        if (atomic_load_explicit(&self->seat, memory_order_relaxed) != team) return;
        if (ticket && has_work(atomic_load_explicit(ticket, memory_order_relaxed))) return;
        pause_briefly();
        if (spins % SPINS_PER_CLOCK_READ == 0 && now() > deadline) break;
    }
    park(self, team, ticket);
}

static void *work_forever(void *argument) {
    worker *self = argument;
    for (;;) {
        planish_team *team = atomic_load_explicit(&self->seat, memory_order_acquire);
        int home = atomic_load_explicit(&self->lane, memory_order_relaxed);
        if (team && work_on(team, home, &self->scratch)) continue;
        wait_for_work(self, team, team ? &team->lanes[home].ticket : NULL);
    }
    return NULL;
}

static void forget_workers_after_fork(void) {
    pool.mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    pool.idle = NULL;
    pool.free_teams = NULL;
    pool.workers = 0;
    pool.generation++;
}

static void *allocate_lines(size_t bytes) {
    void *memory = aligned_alloc(CACHE_LINE, (bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
    if (memory) memset(memory, 0, bytes);
    return memory;
}

static void register_fork_handler(void) { pthread_atfork(NULL, NULL, forget_workers_after_fork); }

/* With the mutex held. */
static int start_worker(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, register_fork_handler);
    worker *fresh = allocate_lines(sizeof *fresh);
    if (!fresh) return 0;
    /* Signals are for the threads of the host program, Python's main thread above all. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    int failed = pthread_create(&thread, &attributes, work_forever, fresh);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        free(fresh);
        return 0;
    }
    pthread_setname_np(thread, "planish");
    fresh->next_idle = pool.idle;
    pool.idle = fresh;
    pool.workers++;
    return 1;
}

/* With the mutex held. */
static planish_team *take_team(void) {
    planish_team *team = pool.free_teams;
    if (team)
        pool.free_teams = team->next_free;
    else
        team = allocate_lines(sizeof *team);
    return team;
}

planish_team *planish_team_acquire(int threads) {
    if (threads > PLANISH_MAX_THREADS) threads = PLANISH_MAX_THREADS;
    if (threads < 2) return NULL;
    pthread_mutex_lock(&pool.mutex);
    while (pool.workers < threads - 1 && start_worker()) {
    }
    planish_team *team = pool.idle ? take_team() : NULL;
    if (!team) {
        pthread_mutex_unlock(&pool.mutex);
        return NULL;
    }
    int size = 1;
    for (; size < threads && pool.idle; size++) {
        team->members[size] = pool.idle;
        pool.idle = pool.idle->next_idle;
    }
    team->generation = pool.generation;
    pthread_mutex_unlock(&pool.mutex);

    atomic_store_explicit(&team->size, size, memory_order_relaxed);
    for (int i = 1; i < size; i++) {
        worker *member = team->members[i];
        atomic_store_explicit(&member->lane, i, memory_order_relaxed);
        if (atomic_load_explicit(&member->seat, memory_order_relaxed) != team)
            atomic_store_explicit(&member->seat, team, memory_order_release);
    }
    return team;
}

void planish_team_release(planish_team *team) {
    int size = atomic_load_explicit(&team->size, memory_order_relaxed);
    pthread_mutex_lock(&pool.mutex);
    if (team->generation == pool.generation) {
        /* Last in, first out, in lane order: the next execution of this thread finds the same
         * team with the same workers in the same lanes. */
        for (int i = size - 1; i >= 1; i--) {
            team->members[i]->next_idle = pool.idle;
            pool.idle = team->members[i];
        }
        team->next_free = pool.free_teams;
        pool.free_teams = team;
    }
    pthread_mutex_unlock(&pool.mutex);
}

static void wake_members(planish_team *team, int lanes) {
    for (int i = 1; i < lanes; i++) wake(team->members[i]);
}

void planish_team_run(planish_team *team, int64_t grabs, planish_team_function function, void *job,
                      const void *item, planish_scratch *scratch) {
    int size = atomic_load_explicit(&team->size, memory_order_relaxed);
    int lanes = grabs < size ? (int)grabs : size;
    atomic_store_explicit(&team->remaining, grabs, memory_order_relaxed);
    for (int i = lanes - 1; i >= 0; i--) {
        lane *open = &team->lanes[i];
        uint64_t first = (uint64_t)grabs * (uint64_t)i / (uint64_t)lanes;
        uint64_t limit = (uint64_t)grabs * (uint64_t)(i + 1) / (uint64_t)lanes;
        open->function = function;
        open->job = job;
        open->item = item;
        if (i == 0) first = 1; /* the caller keeps grab 0 for itself */
        atomic_store_explicit(&open->ticket, limit << 32 | first, memory_order_release);
    }
    /* The fence that makes this look at the sleepers exact would hold the caller up until its
     * stores have reached the other cores, so it comes after the first grab. */
    wake_members(team, lanes);
    work_in_lane(team, 0, 0, scratch);
    atomic_thread_fence(memory_order_seq_cst);
    wake_members(team, lanes);

    work_on(team, 0, scratch);
    for (unsigned spins = 1; atomic_load_explicit(&team->remaining, memory_order_acquire); spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            pause_briefly();
        else
            sched_yield();
    }
}
