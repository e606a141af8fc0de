#pragma once

// A submitter: executes the units of one role in one database. It has connected as that role, and so can do
// what the role can do; there is no other to become, and nothing to leave behind for another role.
//
// A batch is one transaction. At first its units share it: an error ends all of it, and the batch begins
// again with a subtransaction around each unit, so that those that fail, wait or are slow are left out, and
// given back to their sessions. After a failure subtransactions are used for a while, and fewer units at
// once: more than 64 would cost every other session's snapshots.
//
// Each unit is as if alone: its settings, and those that it sets, end with it; its deferred constraints are
// checked at its end; it takes the newest committed rows, and those of the units before it. What a unit
// leaves in the session otherwise (prepared statements, cursors, session-level advisory locks, currval())
// goes before the next unit. Temporary tables belong to the caller's session: a unit that touches one is
// given back.
//
// A unit in which anything was an error is given back, even if its own code caught the error and went on:
// some errors are the worker's alone, as that of a lock that it does not wait for.

#include "pg/prelude.hpp"

extern "C" {
#include "nodes/nodes.h"
}

namespace weir
{

// Before a utility statement in a function of a unit, in a submitter; anywhere else it does nothing. Raises
// an error if it would be about the batch's other units, too.
void CheckUtilityOfUnit(const Node *statement);

} // namespace weir

_Pragma("GCC visibility push(default)") extern "C" void weir_submitter_main(Datum lane);
_Pragma("GCC visibility pop")
