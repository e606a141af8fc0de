#pragma once

// In which order a batch's requests are executed. Requests of one table stand together, its inserts before
// its updates and deletes, and those of one row stand together, in the order of arrival. All workers sort
// alike, so that two of them, should they meet on a table, lock its rows in the same order.
//
// Which serial order of its requests a batch realises is free: they all ran at the same time, each in a
// transaction of its own. What must hold is that there is one.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>

#include "coalesce/request_slot.hpp"

namespace weir
{

struct PlannedRequest {
    const RequestSlot *slot;
    uint32_t order; // of arrival
};

void SortBatch(PlannedRequest *requests, uint32_t count) noexcept;

// The end of the run of requests that begins at `from`: of one table and, if `by_row`, one row.
uint32_t RunEnd(const PlannedRequest *requests, uint32_t count, uint32_t from, bool by_row) noexcept;

bool OfOneRow(const RequestSlot &a, const RequestSlot &b) noexcept;

} // namespace weir
