#pragma once

// Load shedding by query digest: the rules of query_rules.hpp in force in this server. The executor's and the
// utility hook call these; each costs one branch while there is no rule and nothing is held.
//
// A refused execution gets SQLSTATE 53300 at once. It never waits: it may hold locks.

#include "pg/shared.hpp"

namespace weir
{

// Places that this backend holds. An execution beyond kMaxPlacesHeld is judged, but takes none.
constexpr uint32_t kMaxPlacesHeld = 16;
extern uint32_t places_held;

inline bool QueryRulesInForce()
{
    return shared->rules.count.load(std::memory_order_relaxed) != 0;
}

inline bool HoldsQueries()
{
    return places_held != 0;
}

// Before the executor starts, in a mode other than off. May ereport. `query_desc` is what LeaveQuery() will
// be told.
void EnterQuery(uint64 query_id, const void *query_desc);

// When the executor ends.
void LeaveQuery(const void *query_desc);

// Before a utility statement that does work. May ereport. True: it holds a place, so its frame must call
// LeaveUtility() on every way out (PG_FINALLY).
bool EnterUtility(uint64 query_id);
void LeaveUtility();

// At the end of a top transaction: what an error left behind. Not at a COMMIT or ROLLBACK within a procedure.
// A subtransaction's abort and the process's exit are seen to here.
void LeaveAllQueries();

// At a ROLLBACK within a procedure, which ends its cursors without ExecutorEnd: all but utility statements.
void LeaveExecutions();

// At server start, and at a restart after a crash, by the postmaster alone. Never fails: a damaged file is
// reported and set aside.
void LoadQueryRules();

} // namespace weir
