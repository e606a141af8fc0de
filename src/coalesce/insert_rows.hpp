#pragma once

// The rows of an INSERT ... VALUES: computed in the client's backend by the plan below ModifyTable, as they
// would be anyway; packed for a worker as finished tuples; and fed back into ModifyTable if the worker did
// not execute them.
//
// Payload of a request, or in memory for large ones: for each row a RowHeader and a MinimalTuple, both at
// multiples of 8.

#include "coalesce/coalescing.hpp"
#include "coalesce/large_payload.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "access/htup_details.h"
#include "executor/execdesc.h"
}

namespace weir
{

// Before anything is evaluated.
Decline JudgeInsert(const QueryDesc *query_desc);

// Evaluates all rows, with every check that an INSERT makes before it writes, and packs them. Whatever it
// returns, PulledRowsBack() must follow if the statement is to run after all.
Decline PullRows(QueryDesc *query_desc, RequestSlot *slot);

// Whether the rows that were pulled point into a table, where the snapshot keeps what they point to.
bool PulledRowsNeedSnapshot();

// ModifyTable will get the rows that were pulled, and then those that were not.
void PulledRowsBack(QueryDesc *query_desc);

// The columns that RETURNING asks for, if it can be served: see RequestSlot.
uint64_t ReturnedColumns(const QueryDesc *query_desc);

// Whether RETURNING can be served from the finished row: only columns. An expression that fails would fail
// after the commit.
bool ReturnsColumnsOnly(const QueryDesc *query_desc);

// The request was committed: sends what RETURNING asks for.
void SendReturning(QueryDesc *query_desc, const RequestSlot &slot);

struct alignas(MAXIMUM_ALIGNOF) RowHeader {
    uint32_t relation; // the table, or the partition that the row belongs to
    uint32_t skipped;  // by the worker: not inserted, ON CONFLICT DO NOTHING
};

// Calls `f(header, tuple)` for each row from there on.
template <typename F> void ForEachRow(char *at, uint32_t rows, F f)
{
    for (uint32_t i = 0; i < rows; i++) {
        auto *header = reinterpret_cast<RowHeader *>(at);
        auto *tuple = reinterpret_cast<MinimalTuple>(at + sizeof(RowHeader));
        at += sizeof(RowHeader) + MAXALIGN(tuple->t_len);
        f(header, tuple);
    }
}

template <typename F> void ForEachRow(const RequestSlot &slot, F f)
{
    ForEachRow(BodyOf(slot), slot.rows, f);
}

} // namespace weir
