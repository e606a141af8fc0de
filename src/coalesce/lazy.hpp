#pragma once

// weir.coalesce_ack = queued: INSERTs that are answered when they are queued. A worker writes them soon; a
// crash in between loses them; what cannot be written is logged, counted, and kept in weir.coalesce_failures.
//
// Only an INSERT's answer is known before it is written: how many rows an UPDATE finds is not.
//
// A session's own writes keep their order: before any that is not queued it waits for its queued ones. A
// table's columns do not change under a queued row: who runs DDL raises a fence, so that nothing more is
// queued in the database until his transaction has ended, and waits for what is.

#include "coalesce/coalescing.hpp"
#include "coalesce/opt_in.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "executor/execdesc.h"
#include "nodes/nodes.h"
#include "utils/rel.h"
}

namespace weir
{

// So many are worth a batch at once; for fewer a worker waits a moment.
constexpr uint32_t kQueuedCompany = 64;

// ---- the client's side ----

// Whether the INSERT may be answered when it is queued, if there is room.
bool MayBeQueued(const QueryDesc *query_desc);

// False: it was not queued, and has to be waited for.
bool QueueRequest(const RequestSlot &request, Lane *lane, const TableFacts &facts);

// Whether this session may have queued what is not written yet.
bool HasQueued();

// Before this session writes anything that is not queued. Not for longer than a second: what is in the way
// may be a lock of its own.
void AwaitOwnQueued();

// Before a utility statement: see above.
void MindQueued(const Node *statement);

// A database has been dropped.
void DropQueuedOf(Oid database);

// ---- the worker's side ----

// What the columns of a table are, as a number.
uint32_t RowTypeOf(TupleDesc descriptor);

// Takes requests that are done, or have failed, out of the lane's list.
void ReleaseQueued(Lane *lane, const uint32_t *indexes, uint32_t count);

// After an error that the request would meet again. In no transaction.
void ReportFailure(uint32_t index, const ErrorData *error, const char *schema, const char *table);

void InstallLazy();

} // namespace weir
