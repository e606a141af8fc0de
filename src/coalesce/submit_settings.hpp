#pragma once

// A session's settings, so that another process can have the same.
//
// What is compared and taken over: every setting that came from the role, the database, the connection or a
// SET, with its value; and which custom settings there are at all (one that was ever set reads as '', not as
// NULL). What comes from postgresql.conf both have by themselves. Left out are the timeouts, whose clocks run
// in the session, synchronous_commit, which a batch has in common, and the defaults of a transaction's mode,
// which begins before.

#include "pg/prelude.hpp"

namespace weir
{

// Writes for each a letter (S: set with a superuser's rights; U: it was the session's own to set), its name,
// a zero byte, its value, a zero byte. Returns the size; more than `room`: it did not fit.
size_t CollectSettings(char *to, size_t room);

// Makes this process's settings these, and its SET ROLE this (InvalidOid: none), until the GUC nesting level
// ends. False: it could not; some may be changed.
bool TakeOverSettings(const char *settings, size_t size, Oid role);

} // namespace weir
