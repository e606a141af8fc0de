#pragma once

// To wait at the gate, or for a coalescing worker, without a snapshot. A storm of waiting statements must not
// hold back the horizon that vacuum and the pruning of hot rows depend on, and a READ COMMITTED statement
// that waited should see what was committed meanwhile.
//
// What is known about each place where the server keeps the snapshot, for PostgreSQL 15 to 18:
// exec_simple_query() and exec_bind_message() pop the planning snapshot before PortalStart(); PortalStart()
// (PORTAL_ONE_SELECT) and ProcessQuery() push one, which the QueryDesc registers too, and afterwards pop
// whatever is on top; PortalRunUtility() keeps it in portal->portalSnapshot and asserts that this one is
// active. Where anything else holds a pointer, the snapshot stays.

#include "pg/prelude.hpp"

extern "C" {
#include "executor/execdesc.h"
#include "utils/portal.h"
}

namespace weir
{

// What was dropped, so that it can be taken anew. If the wait ends with an error, there is nothing to
// restore: the abort finds a portal and a QueryDesc without snapshots, which is a state it knows.
struct DroppedSnapshot {
    bool of_statement;
    bool of_utility;
    bool held_by_portal;
};

// In ExecutorStart, of the statement of the active portal. Does nothing where that is not safe.
DroppedSnapshot DropStatementSnapshot(QueryDesc *query_desc);
void RetakeStatementSnapshot(const DroppedSnapshot &dropped, QueryDesc *query_desc);

// The same in ExecutorRun, before anything is executed: the executor's state has it, too. Not for plans of
// which a node took it already.
DroppedSnapshot DropExecutionSnapshot(QueryDesc *query_desc);
void RetakeExecutionSnapshot(const DroppedSnapshot &dropped, QueryDesc *query_desc);

// In ProcessUtility, of the utility statement of the active portal.
DroppedSnapshot DropUtilitySnapshot();
void RetakeUtilitySnapshot(const DroppedSnapshot &dropped);

} // namespace weir
