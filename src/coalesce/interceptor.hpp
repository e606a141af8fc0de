#pragma once

// The client's side of coalescing, in ExecutorRun: permissions are checked and the table is locked by then,
// nothing is executed. An eligible statement is handed to a worker, and its answer awaited; all others, and
// those that the worker gives back, run as always.
//
// INSERT: the rows are computed here, from the plan below ModifyTable, with defaults, checks and row security
// policies, and travel finished. Given back, they are fed into the same ModifyTable again: nextval() is not
// called twice, and every error is PostgreSQL's own.
// UPDATE and DELETE of one row: see shape.hpp.

#include "coalesce/coalescing.hpp"
#include "coalesce/opt_in.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "executor/execdesc.h"
}

namespace weir
{

// True: the statement has been executed, durably; ExecutorFinish and ExecutorEnd follow. False: run it. Not
// called for SELECT, nor when nothing has opted in.
bool RunCoalesced(QueryDesc *query_desc);

// Before ExecutorStart: whether the statement will, as far as can be told, be handed to a worker. Then it
// needs no slot of the transaction gate: what a batch does is bounded by the worker, and to queue twice would
// double the wake-ups.
bool MayBeCoalesced(const QueryDesc *query_desc);

// What would be decided about it now, were it a transaction by itself. Nothing is executed or counted.
Decline Foresee(QueryDesc *query_desc, Relation relation, const TableFacts &facts);

void InstallInterceptor();

// This transaction's rows are a worker's to write. The identity column's sequence may have got it an xid, and
// so a commit record that is nothing to wait for, neither here nor on a standby: what nextval() has logged is
// in the WAL before the rows.
void CommitWithoutFlush();

// ---- what weir.submit() needs, too ----------------------------------------------------------------

// Whether the transaction is nothing but this statement, so that its fate may be decided elsewhere.
Decline JudgeTransaction(const QueryDesc *query_desc);

// Hands the packed request over, and returns when its fate is known. Interrupts that came meanwhile are still
// pending; HeedInterrupts() says what of them is still to be heeded.
Verdict HandOver(RequestSlot *slot, Lane *lane, Histogram *waits);
void HeedInterrupts(Verdict verdict);

// Who abandoned his request ends here: the slot is not his any more.
void EndIfAbandoned();

// Warns, or raises, if the verdict is not a plain one.
void ReportUnusual(Verdict verdict);

} // namespace weir
