#include "pg/machine.hpp"

#include <cstdio>
#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

namespace weir
{

uint32_t UsableCores()
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        return static_cast<uint32_t>(CPU_COUNT(&set));
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? static_cast<uint32_t>(online) : 1;
}

double CpuIdleShare()
{
#ifdef __linux__
    static int file = -1;
    static uint64_t last_idle = 0;
    static uint64_t last_total = 0;

    if (file < 0)
        file = open("/proc/stat", O_RDONLY | O_CLOEXEC);
    char line[256];
    const ssize_t length = file < 0 ? -1 : pread(file, line, sizeof(line) - 1, 0);
    if (length <= 0)
        return -1;
    line[length] = '\0';
    unsigned long long t[8]; // user nice system idle iowait irq softirq steal
    if (sscanf(line, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &t[0], &t[1], &t[2], &t[3], &t[4], &t[5],
               &t[6], &t[7]) != 8)
        return -1;
    uint64_t total = 0;
    for (const unsigned long long part : t)
        total += part;
    const uint64_t idle = t[3] + t[4];
    const bool first = last_total == 0;
    const uint64_t passed = total - last_total;
    const uint64_t idled = idle > last_idle ? idle - last_idle : 0; // iowait may fall: proc(5)
    last_total = total;
    last_idle = idle;
    if (first || passed == 0)
        return -1;
    return idled < passed ? static_cast<double>(idled) / static_cast<double>(passed) : 1;
#else
    return -1;
#endif
}

} // namespace weir
