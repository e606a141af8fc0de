#pragma once

// A standby that is too far behind refuses new ordinary connections with SQLSTATE 57P03, upon which libpq and
// JDBC go on to the next host of theirs; sessions that are there go on. The sampler decides
// (quarantine.hpp), with weir.quarantine_lag; connections are judged after their authentication. Promotion
// ends it at once. A primary decides the same, by its own settings, for each of its standbys: who refuses
// readers is not offered to them.

#include "pg/prelude.hpp"

namespace weir
{

// After each sample, by the sampler, which holds no lock.
void MindQuarantines(int64_t now);

// Whether new sessions are refused here now, so that health checks can say it before. Never with
// weir.mode = observe, nor by numbers of a sampler that is gone. Reads shared memory only.
bool RefusesNewSessions(int64_t now);

// In authentication, of one that succeeded: does not return if this server refuses it. Never refused:
// superusers, replication, members of pg_monitor and pg_use_reserved_connections.
void RefuseInQuarantine(const char *role);

} // namespace weir
