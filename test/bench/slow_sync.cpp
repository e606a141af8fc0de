// A device whose flush takes longer, for a server that is started with this in LD_PRELOAD: each fdatasync(),
// which is how the WAL is flushed on Linux, takes SLOW_SYNC_US microseconds more. What others write meanwhile
// is not part of that flush, as on a real device; commit_delay, which sleeps before the flush, would take it
// along.

#include <cerrno>
#include <cstdlib>
#include <dlfcn.h>
#include <unistd.h>

extern "C" int fdatasync(int fd)
{
    static const auto real = reinterpret_cast<int (*)(int)>(dlsym(RTLD_NEXT, "fdatasync"));
    static const char *const more = getenv("SLOW_SYNC_US");
    const int result = real(fd);
    const int saved_errno = errno;
    if (more != nullptr)
        usleep(static_cast<useconds_t>(atoi(more)));
    errno = saved_errno;
    return result;
}
