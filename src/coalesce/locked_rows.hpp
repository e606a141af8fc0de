#pragma once

// Rows that a worker could not lock in time, remembered for a second: requests that need them are given back
// at once, instead of keeping their batch waiting again. Rows that requests change, by their key; and rows
// that they refer to by a foreign key, by that.
//
// Local to the worker. A hash that two rows share costs one of them a trip the ordinary way.

#include "coalesce/request_slot.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "executor/tuptable.h"
#include "utils/relcache.h"
}

namespace weir
{

void RememberLockedRow(const RequestSlot &slot);
bool IsKeptLocked(const RequestSlot &slot);

// Whether rows of the table refer to others. To be called before the following ones, for each table and
// batch.
bool LookAtParents(Relation relation);

// Whether a row that this one refers to is kept locked.
bool HasLockedParent(TupleTableSlot *row);

// Which rows' parents are being locked, so that RememberLockedParents() knows them after an error.
void NoParents();
void NoteParents(TupleTableSlot *row);

// `context`: the error's; null: none. It names the table that could not be locked.
void RememberLockedParents(const char *context);

} // namespace weir
