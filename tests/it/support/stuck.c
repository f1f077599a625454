/* Preloaded into a server and its processes: a disk that does not answer. Opening a file waits while there is another one with its name and ".stuck". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

int open64(const char *path, int flags, ...) {
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    const struct timespec step = {0, 10000000};
    char stuck[PATH_MAX];
    va_list rest;
    int length = snprintf(stuck, sizeof stuck, "%s.stuck", path);
    while (length > 0 && length < (int)sizeof stuck && !access(stuck, F_OK)) nanosleep(&step, NULL);
    va_start(rest, flags);
    int mode = va_arg(rest, int);
    va_end(rest);
    return real(path, flags, mode);
}
