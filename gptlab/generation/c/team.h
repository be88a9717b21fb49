// Threads that carry out the same steps, each its share of every one.
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 4000, MOST_THREADS = 256 };

// A number for which threads wait: one that waits long sleeps, and leaves its core to the one that it waits for. Where
// other processes run, that is the difference between slow and a standstill.
typedef struct {
    atomic_int number, asleep;
} Signal;

static void change(Signal *s, int number) {
    atomic_store(&s->number, number);
    if (atomic_load(&s->asleep)) syscall(SYS_futex, &s->number, FUTEX_WAKE_PRIVATE, MOST_THREADS, 0, 0, 0);
}

static void wait_for_change(Signal *s, int before) {
    for (int spins = 0; spins < SPINS; spins++) {
        if (atomic_load(&s->number) != before) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
    atomic_fetch_add(&s->asleep, 1);
    while (atomic_load(&s->number) == before) syscall(SYS_futex, &s->number, FUTEX_WAIT_PRIVATE, before, 0, 0, 0);
    atomic_fetch_sub(&s->asleep, 1);
}

// What one thread knows of the work.
typedef struct {
    int thread, threads;
} Member;

typedef void Work(const void *about, Member me);

static struct {
    pthread_mutex_t busy;
    pid_t process;  // whose threads they are: a child of fork has none of them
    int size;       // the caller among them
    int born[MOST_THREADS];  // what `begun` was when a thread was made
    Signal begun;   // counts works, and has in its last bits how many threads take part: so both are read at once
    Signal met;
    atomic_int arrived;
    Work *work;
    const void *about;
} team = {.busy = PTHREAD_MUTEX_INITIALIZER};

// Wait for all threads of a work.
static void meet(Member me) {
    if (me.threads == 1) return;
    int round = atomic_load(&team.met.number);
    if (atomic_fetch_add(&team.arrived, 1) + 1 == me.threads) {
        atomic_store(&team.arrived, 0);
        change(&team.met, round + 1);
    } else {
        wait_for_change(&team.met, round);
    }
}

static void *stand_by(void *number) {
    int thread = (int)(intptr_t)number, begun = team.born[thread];
    for (;;) {
        wait_for_change(&team.begun, begun);
        begun = atomic_load(&team.begun.number);
        Member me = {thread, begun % (2 * MOST_THREADS)};
        if (me.thread >= me.threads) continue;
        team.work(team.about, me);
        meet(me);
    }
    return 0;
}

// Returns how many threads there are, at most as many as are wanted.
static int gather(int threads) {
    if (team.process != getpid()) {
        team.process = getpid(), team.size = 1;
        team.begun = team.met = (Signal){0, 0};
        atomic_store(&team.arrived, 0);
    }
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (pthread_t thread; team.size < threads && team.size < MOST_THREADS; team.size++) {
        team.born[team.size] = atomic_load(&team.begun.number);
        if (pthread_create(&thread, &detached, stand_by, (void *)(intptr_t)team.size)) break;
    }
    pthread_attr_destroy(&detached);
    return team.size < threads ? team.size : threads;
}

// Let as many threads, if they can be had, carry out a work; by the caller alone while another caller's is under way.
static void work_together(Work *work, const void *about, long threads) {
    if (threads < 2 || pthread_mutex_trylock(&team.busy)) {
        work(about, (Member){0, 1});
        return;
    }
    Member me = {0, gather(threads)};
    if (me.threads > 1) {
        team.work = work, team.about = about;
        unsigned works = (unsigned)atomic_load(&team.begun.number) / (2 * MOST_THREADS) + 1;
        change(&team.begun, (int)(works % (1 << 21) * (2 * MOST_THREADS) + me.threads));
    }
    work(about, me);
    meet(me);
    pthread_mutex_unlock(&team.busy);
}

// A thread's part of `count` like things, side by side.
typedef struct {
    long begin, end;
} Part;

static inline Part part_of(long count, Member me) {
    return (Part){count * me.thread / me.threads, count * (me.thread + 1) / me.threads};
}
