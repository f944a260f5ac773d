/* Time: the monotonic clock, and the process' age from /proc. */
#include "core/clock.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double clock_now(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

double hdi_clock_seconds(void)
{
    return clock_now(CLOCK_MONOTONIC);
}

double hdi_clock_process_age(void)
{
    int file = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    if (file < 0) return -1;
    char line[1024];
    ssize_t length = read(file, line, sizeof line - 1);
    close(file);
    if (length <= 0) return -1;
    line[length] = '\0';

    /* Field 22 is the start in ticks since boot. Field 2, the program's name in parentheses, may
     * hold blanks and parentheses itself, so fields are counted from the last one. */
    const char *after_name = strrchr(line, ')');
    unsigned long long start_ticks;
    if (!after_name ||
        sscanf(after_name + 1,
               " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
               &start_ticks) != 1)
        return -1;
    double age = clock_now(CLOCK_BOOTTIME) - (double)start_ticks / (double)sysconf(_SC_CLK_TCK);
    return age < 0 ? 0 : age;
}
