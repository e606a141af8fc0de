#pragma once

// Which worker a table's requests go to, and how workers come and go.

#include "coalesce/coalescing.hpp"
#include "pg/prelude.hpp"

namespace weir
{

// The lane for a table of this database whose worker runs; null: there is none yet, the launcher was asked.
Lane *FindLane(Oid relation);

// The lane for units that this role submits in this database; null: as above, or too many other roles have
// theirs, or the role could not log in.
Lane *FindSubmitLane(Oid role);

uint32_t LaneIndex(const Lane &lane);

// The worker's first: false: the launcher has given up waiting for it, and the lane may be another's now.
bool EnterLane(Lane *lane, Oid role);

// The worker's, whose lane it is. CloseLane(): nothing is queued, and nothing more will be; false: something
// is. FreeLane(): it ends; what is queued still waits for the next worker. Returns how much that is.
bool CloseLane(Lane *lane);
uint32_t FreeLane(Lane *lane);

// No worker has the lane any more, or will. One in which something is queued stays its database's, and wants
// another worker then. Under lazy_lock, unless its state says that nothing can be queued.
uint32_t Leave(Lane *lane, int64_t not_before);

// A client has waited in vain for its request to be taken; and whether one has, not long ago.
void NoteStall(Lane *lane);
bool IsStalled(Lane *lane);

// Something to do for the worker.
void Ring(Lane *lane);

// The launcher's: starts workers that were asked for, and gives up on those that did not come. Returns
// whether some are still to come: then it should look again soon.
bool StartWantedWorkers(int64_t now);

// The database is about to be dropped, renamed, moved or copied, which its own workers must not prevent. Ends
// them, and waits for that a few seconds at most.
void EndWorkersOf(Oid database);

} // namespace weir
