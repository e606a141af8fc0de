// The SQL functions behind the views of coalescing.

#include "coalesce/coalescing.hpp"
#include "coalesce/large_payload.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "lib/stringinfo.h"
#include "utils/jsonb.h"
}

namespace weir
{

namespace
{

// Names and counts of what was counted, as jsonb. Adds them up in `*sum`.
template <typename Reason, size_t kCount>
Datum ByReason(const std::atomic<uint64_t> (&counters)[kCount], const char *(*name)(Reason) noexcept,
               uint64_t *sum)
{
    StringInfoData text;
    initStringInfo(&text);
    appendStringInfoChar(&text, '{');
    *sum = 0;
    for (size_t i = 0; i < kCount; i++) {
        const uint64_t count = counters[i].load(std::memory_order_relaxed);
        if (count == 0)
            continue;
        appendStringInfo(&text, "%s\"%s\": " UINT64_FORMAT, *sum == 0 ? "" : ", ",
                         name(static_cast<Reason>(i)), count);
        *sum += count;
    }
    appendStringInfoChar(&text, '}');
    return DirectFunctionCall1(jsonb_in, CStringGetDatum(text.data));
}

// The sum, and its parts.
template <typename Reason, size_t kCount>
void PutReasons(Row *row, const std::atomic<uint64_t> (&counters)[kCount],
                const char *(*name)(Reason) noexcept)
{
    uint64_t sum;
    const Datum parts = ByReason(counters, name, &sum);
    row->PutCount(sum);
    row->Put(parts);
}

void PutSizes(Row *row, const HistogramSnapshot &sizes)
{
    const bool known = sizes.Count() > 0;
    const double fractions[] = {0.5, 0.95, 0.99};
    for (const double fraction : fractions)
        row->PutIntOrNull(known, static_cast<uint32_t>(sizes.Percentile(fraction)));
    row->PutIntOrNull(known, static_cast<uint32_t>(sizes.MaxUs()));
}

void AddTable(ReturnSetInfo *result, const TableStatistics &table)
{
    const Oid relation = table.relation.load();
    Row row;
    if (OidIsValid(relation))
        row.Put(ObjectIdGetDatum(relation));
    else
        row.PutNull();
    row.PutCount(table.requests.load(std::memory_order_relaxed));
    row.PutCount(table.rows.load(std::memory_order_relaxed));
    row.PutCount(table.batches.load(std::memory_order_relaxed));
    row.PutCount(table.folded.load(std::memory_order_relaxed));
    row.PutCount(table.bytes.load(std::memory_order_relaxed));
    row.PutCount(table.queued.load(std::memory_order_relaxed));
    row.PutCount(table.queue_full.load(std::memory_order_relaxed));
    row.PutInt(table.unwritten.load(std::memory_order_relaxed));
    row.PutCount(table.failed.load(std::memory_order_relaxed));
    PutReasons<Decline>(&row, table.declined, DeclineName);
    PutReasons<GiveBack>(&row, table.given_back, GiveBackName);
    uint64_t batches; // shown above, as they were then
    row.Put(ByReason(table.flushes, FlushReasonName, &batches));
    // A histogram is long: not on the stack beside the executor.
    auto *snapshot = static_cast<HistogramSnapshot *>(palloc(sizeof(HistogramSnapshot)));
    *snapshot = table.batch_requests.Snapshot();
    PutSizes(&row, *snapshot);
    *snapshot = table.waits.Snapshot();
    PutWaits(&row, *snapshot);
    AddRow(result, &row);
    pfree(snapshot);
}

} // namespace

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_stat_coalesce)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    for (const TableStatistics &table : shared->coalescing.tables)
        if (table.database.load() == MyDatabaseId)
            AddTable(result, table);
    return 0;
}

WEIR_SQL_FUNCTION(weir_coalesce_memory)
{
    RequireShared();
    const LargeMemory &memory = shared->coalescing.large;
    const bool is_there = memory.state.load() == static_cast<uint32_t>(LargeMemoryState::kThere);
    Row row;
    row.PutCount(is_there ? static_cast<uint64_t>(settings.coalesce_memory_kb) * 1024 : 0);
    row.PutCount(memory.chunks.load(std::memory_order_relaxed));
    row.PutCount(memory.allocated.load(std::memory_order_relaxed));
    row.PutCount(memory.refused.load(std::memory_order_relaxed));
    return ReturnRow(fcinfo, &row);
}

WEIR_SQL_FUNCTION(weir_coalesce_failures)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    auto *ring = static_cast<FailureRing *>(palloc(sizeof(FailureRing)));
    LWLockAcquire(lazy_lock, LW_SHARED);
    *ring = shared->coalescing.failures;
    LWLockRelease(lazy_lock);
    const uint64_t oldest = ring->count > kFailures ? ring->count - kFailures : 0;
    for (uint64_t i = ring->count; i-- > oldest;) {
        const CoalesceFailure &failure = ring->last[i % kFailures];
        Row row;
        row.PutCount(i + 1);
        row.PutTime(failure.at);
        row.Put(ObjectIdGetDatum(failure.database));
        row.PutText(failure.schema);
        row.PutText(failure.table);
        row.Put(ObjectIdGetDatum(failure.role));
        row.PutInt(failure.rows);
        row.PutText(failure.sqlstate);
        if (failure.constraint[0] != '\0')
            row.PutText(failure.constraint);
        else
            row.PutNull();
        row.PutText(failure.message);
        AddRow(result, &row);
    }
    return 0;
}

WEIR_SQL_FUNCTION(weir_stat_submit)
{
    RequireShared();
    const SubmitShared &submits = shared->submits;
    Row row;
    row.PutCount(submits.units.load(std::memory_order_relaxed));
    row.PutCount(submits.rows.load(std::memory_order_relaxed));
    row.PutCount(submits.batches.load(std::memory_order_relaxed));
    row.PutCount(submits.replayed.load(std::memory_order_relaxed));
    PutReasons<Decline>(&row, submits.in_place, DeclineName);
    PutReasons<GiveBack>(&row, submits.given_back, GiveBackName);
    auto *snapshot = static_cast<HistogramSnapshot *>(palloc(sizeof(HistogramSnapshot)));
    *snapshot = submits.batch_units.Snapshot();
    PutSizes(&row, *snapshot);
    *snapshot = submits.waits.Snapshot();
    PutWaits(&row, *snapshot);
    return ReturnRow(fcinfo, &row);
}
