#pragma once

// A small file in the data directory, which is every server process's working directory: rules that survive a
// restart. It is written as a whole, to a second name first, and renamed: a crash leaves the old or the new
// one. A base backup takes it along.

#include "pg/prelude.hpp"

namespace weir
{

struct SmallFile {
    const char *name;
    const char *temporary;
    const char *damaged;
    const char *holds; // "query rules"
    const char *hint;  // how to have them again
};

// Raises an error if that fails; then the file is as it was. (But when only the directory could not be
// flushed after the rename, a restart may find either.)
void WriteSmallFile(const SmallFile &file, const char *bytes, size_t size);

// Null, or why it cannot be read. *found is false if there is none.
const char *ReadSmallFile(const SmallFile &file, char *bytes, size_t capacity, size_t *size, bool *found);

// It is of no use: renames it, and warns.
void SetAside(const SmallFile &file, const char *trouble);

} // namespace weir
