#pragma once

// The heartbeat: an empty transaction with an xid, so a commit record of 40 bytes of WAL and nothing else,
// each weir.heartbeat_interval while a standby is connected.
//
// A commit record, because it is what moves pg_last_xact_replay_timestamp() on a standby, with or without
// this library: whoever computes lag from that becomes right, too. It costs an xid a second, 32 million a
// year, of which autovacuum takes care as of any others. A custom WAL record would be smaller, and a server
// without the library could not replay it.

#include "pg/prelude.hpp"

namespace weir
{

// Writes one if it is time. Outside of transactions.
void BeatIfDue(int64_t now);

int64_t UntilBeatUs(int64_t now); // INT64_MAX: none is to be written

} // namespace weir
