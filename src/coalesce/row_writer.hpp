#pragma once

// Executes a batch's requests in the worker's transaction: inserts by the table's multi-insert and index by
// index, updates and deletes folded, one row version for all that a batch does to a row.
//
// Whatever a request does wrong is not judged here. Either it is seen before anything is written (a NOT NULL,
// a CHECK): then the request is left out, and its client runs it. Or an error ends the transaction: `culprit`
// says whose it was, and the batch is tried again without it.
//
// Rows that others have locked come last, so that the batch's other rows are not kept waiting, and are waited
// for under lock_timeout.

#include "coalesce/batch_plan.hpp"
#include "coalesce/coalescing.hpp"
#include "pg/prelude.hpp"

namespace weir
{

struct BatchEntry {
    RequestSlot *slot;
    uint32_t session; // PGPROC number
    uint32_t affected;
    GiveBack give_back; // not kNone: left out
    bool postponed;     // its row was locked
    bool folded;        // an update or delete after it made the version for it, too
    bool queued;        // its client has been answered: `session` is the slot's index in lazy_slots
    bool failed;        // ... and it is not to be tried again
};

struct Batch {
    uint32_t count;
    uint32_t number;
    BatchEntry *entries;     // in the order of arrival; room for kMaxCoalesceBatch
    PlannedRequest *planned; // sorted; `order` is the index in entries

    // The requests, of `planned`, that are being executed.
    uint32_t culprit;
    uint32_t culprits;
    bool checks_unique; // duplicates were seen lately: look before inserting

    BatchEntry &EntryOf(uint32_t planned_index) const { return entries[planned[planned_index].order]; }
};

// In a transaction, with a snapshot pushed.
void WriteBatch(Batch *batch);

} // namespace weir
