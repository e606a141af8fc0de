#pragma once

// Read your own writes: weir.min_lsn, and the SQL functions around it.
//
// The session's transactions wait, on a standby, until weir.min_lsn is replayed, where they wait for a slot:
// at BEGIN or before their first statement, the statement's snapshot dropped and taken anew afterwards, for
// it was taken before the look. Once a token was seen replayed nothing is looked at any more. Where a wait
// is impossible and the token is not replayed yet there is an error, never a stale read.

#include "pg/settings.hpp"

extern "C" {
#include "executor/execdesc.h"
}

namespace weir
{

// Before the gate, for a client's backend while min_lsn_pending.
void HonourMinLsnBeforeQuery(QueryDesc *query_desc);
void HonourMinLsnBeforeUtility();
// After SET: a repeatable read transaction takes its snapshot before anybody could wait, so SET itself waits.
void HonourMinLsnAfterSet();

// This transaction runs a query or a utility statement that does work.
void NoteQuery();

// For this session was committed up to there: by a coalescing worker, or by COMMIT PREPARED, whose own
// transaction has no xid.
void NoteCommit(uint64_t lsn);

// The commit of the current transaction writes nothing that anybody could read.
void DisregardCommit();

void InstallReadYourWrites();

} // namespace weir
