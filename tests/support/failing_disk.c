// A disk with bad blocks, for LD_PRELOAD: FAIL_CALL (write or fsync) on files whose path contains FAIL_PATH gives EIO, but for the
// first FAIL_AFTER times.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(const char * call, int fd) {
    static atomic_long met;
    const char * which = getenv("FAIL_CALL"), * part = getenv("FAIL_PATH"), * after = getenv("FAIL_AFTER");
    if (!which || !part || !after || strcmp(which, call) != 0) {
        return 0;
    }
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) {
        return 0;
    }
    path[n] = 0;
    return strstr(path, part) && atomic_fetch_add(&met, 1) >= atol(after);
}

ssize_t write(int fd, const void * bytes, size_t n) {
    ssize_t (*real)(int, const void *, size_t) = (ssize_t (*)(int, const void *, size_t)) dlsym(RTLD_NEXT, "write");
    if (fails("write", fd)) {
        errno = EIO;
        return -1;
    }
    return real(fd, bytes, n);
}

int fsync(int fd) {
    int (*real)(int) = (int (*)(int)) dlsym(RTLD_NEXT, "fsync");
    if (fails("fsync", fd)) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}
