/* A clock that can jump: preloaded into processes, it adds the seconds that a mapped file holds to the time of day.

   Clocks that only count up are left alone. Who waits until a time of day has read it here, so the seconds come off again
   before the system is asked to wait; times of a counting clock are far too small to be meant. (Debian's libfaketime
   breaks time.sleep of Python 3.11, which waits on a counting clock.) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const long long DAYTIME = 1000000000; /* no machine has been up for so many seconds */

static long long offset(void) {
  static volatile long long *shared;
  static int looked;
  if (!looked) {
    looked = 1;
    const char *path = getenv("SLM_RAY_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
      void *at = mmap(0, sizeof *shared, PROT_READ, MAP_SHARED, file, 0);
      close(file);
      if (at != MAP_FAILED) shared = at;
    }
  }
  return shared ? *shared : 0;
}

static int is_daytime(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int status = real(clock, now);
  if (!status && is_daytime(clock)) now->tv_sec += offset();
  return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  static int (*real)(struct timeval *, void *);
  if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
  int status = real(now, zone);
  if (!status) now->tv_sec += offset();
  return status;
}

time_t time(time_t *out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}

static struct timespec system_time(const struct timespec *until) {
  struct timespec found = *until;
  if (found.tv_sec > DAYTIME) found.tv_sec -= offset();
  return found;
}

int pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  struct timespec found = system_time(until);
  return real(cond, mutex, &found);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *until) {
  static int (*real)(pthread_mutex_t *, const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "pthread_mutex_timedlock");
  struct timespec found = system_time(until);
  return real(mutex, &found);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  static int (*real)(sem_t *, const struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "sem_timedwait");
  struct timespec found = system_time(until);
  return real(semaphore, &found);
}
