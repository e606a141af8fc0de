#pragma once

// Where a client's transaction is judged: it gets a slot, waits for one, or is refused.
//
// The gate stands at BEGIN (nothing held yet), at a utility statement that does work, and in ExecutorStart
// for an autocommit statement; never at Parse, COMMIT, ROLLBACK, SET or SHOW, never inside a transaction that
// already did something, never in a process that is not a client's backend. A transaction is judged once: the
// virtual transaction id says whether it was.
//
// The slot is given back when the transaction's locks are gone (ResourceReleaseCallback, phase AFTER_LOCKS),
// also at PREPARE TRANSACTION and on abort, and at the exit of the process. A CALL, DO or VACUUM that commits
// inside keeps its slot until it ends: queueing again in the middle would be a wait with the procedure's own
// resources held.

#include "pg/prelude.hpp"

extern "C" {
#include "executor/execdesc.h"
}

namespace weir
{

void InstallTransactionGate();

// The process of a client, not a walsender or worker.
bool IsClientBackend();

// A statement that was not judged, because it was to be executed by a worker, is executed here after all: it
// waits for a slot now, with its snapshot.
void TakeSlotAfterAll(const QueryDesc *query_desc);

// Around a wait for another process: this transaction's slot, if it has one, is lent meanwhile.
void LendSlot();
void TakeSlotBack();

} // namespace weir
