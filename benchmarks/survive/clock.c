/* A clock that jumps: each second of real time moves it by a day, ahead and back. Clocks that never jump are left alone.
   cc -shared -fPIC -o clock.so clock.c -ldl, and LD_PRELOAD=clock.so */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>

static int real(clockid_t id, struct timespec *t) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
    return next(id, t);
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int code = real(id, t);
    if (id == CLOCK_REALTIME && !code) t->tv_sec += (t->tv_sec % 2 ? 86400 : -86400);
    return code;
}

time_t time(time_t *out) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    if (out) *out = t.tv_sec;
    return t.tv_sec;
}

int gettimeofday(struct timeval *restrict v, void *restrict zone) {
    struct timespec t;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &t);
    v->tv_sec = t.tv_sec;
    v->tv_usec = t.tv_nsec / 1000;
    return 0;
}
