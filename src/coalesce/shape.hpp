#pragma once

// An UPDATE or DELETE of one row, taken apart so that a worker can execute it: its expressions (the shape,
// the same for all executions of a statement), their values, and the key that says which row.
//
// What travels must mean the same in every session. In a shape only columns of the table, values, and
// built-in immutable functions are left; constants, parameters, now() and current_user became values,
// computed in the client's own backend. Functions that somebody created stay at home even if they are
// immutable: a worker runs with the table owner's rights.
//
// Payload of a request: [key][shape][values]; values that do not fit are in memory for large ones.
//   key     KeyHeader, its KeyColumns, and for each a serialized value. Equal bytes: the same row.
//   shape   the text of a node tree: (SET expressions, their columns, conditions)
//   values  for each parameter of the shape: type, serialized value

#include "coalesce/coalescing.hpp"
#include "coalesce/opt_in.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "access/skey.h"
#include "executor/execdesc.h"
#include "nodes/execnodes.h"
#include "nodes/params.h"
}

namespace weir
{

constexpr uint32_t kMaxKeyColumns = 4;
constexpr uint32_t kMaxValues = 64;

struct KeyColumn {
    Oid function; // of the operator `column = value`
    Oid type;     // of the value
    Oid collation;
    int16_t number;    // in the index, from 1
    int16_t parameter; // of the shape, from 0: its value
};

struct KeyHeader {
    Oid index;
    uint32_t count;
    KeyColumn columns[kMaxKeyColumns];
};

// ---- the client's side ----

// Writes the statement into the slot (kind, key, shape, values), or says why it cannot. In the statement's
// memory context. Without a slot it is only judged, whatever its parameters.
Decline PackUpdateOrDelete(QueryDesc *query_desc, Relation relation, const TableFacts &facts,
                           RequestSlot *slot);

// ---- the worker's side ----

struct Shape {
    List *expressions; // the SET list
    List *columns;     // their attribute numbers, integers
    List *conditions;
};

// Into the current memory context.
Shape ReadShape(const RequestSlot &slot);
ParamListInfo ReadValues(const RequestSlot &slot);

// The scan keys for the row; the values are copied into the current memory context. Returns the index.
Oid ReadKey(const RequestSlot &slot, ScanKeyData *keys, int *count);

} // namespace weir
