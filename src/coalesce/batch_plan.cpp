#include "coalesce/batch_plan.hpp"

#include <algorithm>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

int CompareRows(const RequestSlot &a, const RequestSlot &b) noexcept
{
    if (a.relation != b.relation)
        return a.relation < b.relation ? -1 : 1;
    const bool a_inserts = a.kind == RequestKind::kInsert;
    if (a_inserts != (b.kind == RequestKind::kInsert))
        return a_inserts ? -1 : 1;
    if (a.key_size != b.key_size)
        return a.key_size < b.key_size ? -1 : 1;
    return memcmp(a.payload + a.key_offset, b.payload + b.key_offset, a.key_size);
}

} // namespace

void SortBatch(PlannedRequest *requests, uint32_t count) noexcept
{
    std::sort(requests, requests + count, [](const PlannedRequest &a, const PlannedRequest &b) {
        const int rows = CompareRows(*a.slot, *b.slot);
        return rows != 0 ? rows < 0 : a.order < b.order;
    });
}

bool OfOneRow(const RequestSlot &a, const RequestSlot &b) noexcept
{
    return CompareRows(a, b) == 0;
}

uint32_t RunEnd(const PlannedRequest *requests, uint32_t count, uint32_t from, bool by_row) noexcept
{
    const RequestSlot &first = *requests[from].slot;
    uint32_t end = from + 1;
    while (end < count &&
           (by_row ? OfOneRow(first, *requests[end].slot) : first.relation == requests[end].slot->relation))
        end++;
    return end;
}

} // namespace weir
