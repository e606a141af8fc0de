#pragma once

// The coalescing worker: takes the requests that wait in its lane, executes them in one transaction, and
// answers all of them when that is committed. What arrives meanwhile is the next batch.
//
// Every batch that was begun is ended: by its commit, or by giving its requests back. An error ends the
// transaction, and the batch is tried again without whom it concerned; the second and third time without
// whom it concerned then; then all go back. When the process exits in the middle, its exit callback ends the
// batch, and the batch's xid says how.

#include "coalesce/request_slot.hpp"
#include "pg/prelude.hpp"

namespace weir
{

// What every worker needs that commits for others: how durably, and what has come of it.
void UseSynchronousCommit(int level);
bool IsReplicated();
Verdict VerdictOfCommit(); // of the transaction just committed

} // namespace weir

_Pragma("GCC visibility push(default)") extern "C" void weir_coalescer_main(Datum lane);
_Pragma("GCC visibility pop")
