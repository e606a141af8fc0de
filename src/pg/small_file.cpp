#include "pg/small_file.hpp"

#include <cerrno>
#include <fcntl.h>
#include <unistd.h>

extern "C" {
#include "storage/fd.h"
}

namespace weir
{

namespace
{

[[noreturn]] void FailToWrite(const SmallFile &file, int error)
{
    unlink(file.temporary);
    errno = error != 0 ? error : ENOSPC;
    ereport(ERROR, (errcode_for_file_access(), errmsg("could not write file \"%s\": %m", file.temporary),
                    errdetail("The %s are as they were.", file.holds)));
    pg_unreachable();
}

} // namespace

void WriteSmallFile(const SmallFile &file, const char *bytes, size_t size)
{
    const int fd = OpenTransientFile(file.temporary, O_WRONLY | O_CREAT | O_TRUNC | PG_BINARY);
    if (fd < 0)
        FailToWrite(file, errno);
    errno = 0;
    const bool written = write(fd, bytes, size) == static_cast<ssize_t>(size);
    const int error = errno;
    if (CloseTransientFile(fd) != 0 || !written)
        FailToWrite(file, written ? errno : error);
    durable_rename(file.temporary, file.name, ERROR);
}

const char *ReadSmallFile(const SmallFile &file, char *bytes, size_t capacity, size_t *size, bool *found)
{
    const int fd = OpenTransientFile(file.name, O_RDONLY | PG_BINARY);
    *found = fd >= 0 || errno != ENOENT;
    *size = 0;
    if (fd < 0)
        return *found ? strerror(errno) : nullptr;
    const ssize_t length = read(fd, bytes, capacity);
    const int error = errno;
    CloseTransientFile(fd);
    if (length < 0)
        return strerror(error);
    *size = static_cast<size_t>(length);
    return nullptr;
}

void SetAside(const SmallFile &file, const char *trouble)
{
    const bool renamed = rename(file.name, file.damaged) == 0;
    ereport(WARNING, (errcode(ERRCODE_DATA_CORRUPTED),
                      errmsg("pg_weir: no %s are in force: could not use file \"%s\": %s", file.holds,
                             file.name, trouble),
                      renamed ? errdetail("It was renamed to \"%s\".", file.damaged)
                              : errdetail("It could not be renamed to \"%s\": %m.", file.damaged),
                      errhint("%s", file.hint)));
}

} // namespace weir
