// The SQL functions behind the views. They read counters that others write meanwhile: each number is true,
// their sum may be a transaction off.

#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
}

namespace weir
{

namespace
{

// One row in the making: a cursor over its columns.
struct Row {
    static constexpr int kMaxColumns = 32;
    Datum values[kMaxColumns];
    bool nulls[kMaxColumns];
    int count = 0;

    void Put(Datum value)
    {
        nulls[count] = false;
        values[count++] = value;
    }
    void PutNull()
    {
        nulls[count] = true;
        values[count++] = 0;
    }
    void PutText(const char *text) { Put(CStringGetTextDatum(text)); }
    void PutBool(bool value) { Put(BoolGetDatum(value)); }
    void PutInt(uint32_t value) { Put(Int32GetDatum(static_cast<int32>(value))); }
    void PutIntOrNull(bool known, uint32_t value) { known ? PutInt(value) : PutNull(); }
    void PutCount(uint64_t value) { Put(Int64GetDatum(static_cast<int64>(value))); }
    void PutReal(float value) { Put(Float4GetDatum(value)); }
    void PutTime(TimestampTz value) { Put(TimestampTzGetDatum(value)); }
    void PutInterval(int64_t us)
    {
        auto *interval = static_cast<Interval *>(palloc0(sizeof(Interval)));
        interval->time = us;
        Put(IntervalPGetDatum(interval));
    }
};

struct ClassTotals {
    uint64_t admitted;
    uint64_t queued;
    uint64_t departures[static_cast<size_t>(Departure::kCount)];
    uint64_t bypassed;
    uint64_t over;
    uint64_t lendings;
    HistogramSnapshot waits;
};

void AddTotals(ClassTotals *to, const GateClass &c)
{
    to->admitted += Gate::ClassAdmitted(c) - c.admitted_base.load(std::memory_order_relaxed);
    to->queued += c.queued.load(std::memory_order_relaxed);
    for (size_t i = 0; i < static_cast<size_t>(Departure::kCount); i++)
        to->departures[i] += c.departures[i].load(std::memory_order_relaxed);
    to->bypassed += c.bypassed.load(std::memory_order_relaxed);
    to->over += c.over.load(std::memory_order_relaxed);
    to->lendings += c.lendings.load(std::memory_order_relaxed);
    to->waits.Add(c.waits.Snapshot());
}

// Lent slots, of a class or of all (kMaxClasses). Counted, not kept: nobody needs the number but a reader.
uint32_t CountLent(uint32_t class_id)
{
    uint32_t lent = 0;
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        const Ticket &t = gate.ticket(id);
        lent += gate.State(id) == TicketState::kLent &&
                (class_id == kMaxClasses || t.class_id.load() == class_id);
    }
    return lent;
}

void PutDeparture(Row *row, const ClassTotals &totals, Departure departure)
{
    row->PutCount(totals.departures[static_cast<size_t>(departure)]);
}

// The columns that the views of the whole and of a class share.
void PutCounters(Row *row, const ClassTotals &totals)
{
    row->PutCount(totals.admitted);
    row->PutCount(totals.queued);
    PutDeparture(row, totals, Departure::kRefused);
    PutDeparture(row, totals, Departure::kTimedOut);
    PutDeparture(row, totals, Departure::kCancelled);
    PutDeparture(row, totals, Departure::kStatementTimeout);
    PutDeparture(row, totals, Departure::kTerminated);
    PutDeparture(row, totals, Departure::kClientGone);
    row->PutCount(totals.bypassed);
    row->PutCount(totals.over);
    row->PutCount(totals.lendings);
}

void PutWaits(Row *row, const HistogramSnapshot &waits)
{
    if (waits.Count() == 0) {
        for (int i = 0; i < 4; i++)
            row->PutNull();
        return;
    }
    const double fractions[] = {0.5, 0.95, 0.99};
    for (const double fraction : fractions)
        row->PutInterval(static_cast<int64_t>(waits.Percentile(fraction)));
    row->PutInterval(static_cast<int64_t>(waits.MaxUs()));
}

// The preloaded library, not one that a session loaded: then there would be no shared memory.
void RequireShared()
{
    if (shared == nullptr)
        ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE), errmsg("pg_weir is not loaded"),
                        errhint("Add pg_weir to shared_preload_libraries and restart the server.")));
}

Datum ReturnRow(FunctionCallInfo fcinfo, Row *row)
{
    TupleDesc descriptor;
    if (get_call_result_type(fcinfo, nullptr, &descriptor) != TYPEFUNC_COMPOSITE ||
        descriptor->natts != row->count)
        elog(ERROR, "pg_weir: the library and the SQL objects are of different versions");
    return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(descriptor), row->values, row->nulls));
}

ReturnSetInfo *BeginRows(FunctionCallInfo fcinfo)
{
    RequireShared();
    InitMaterializedSRF(fcinfo, 0);
    return reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
}

void AddRow(ReturnSetInfo *result, Row *row)
{
    if (result->setDesc->natts != row->count)
        elog(ERROR, "pg_weir: the library and the SQL objects are of different versions");
    tuplestore_putvalues(result->setResult, result->setDesc, row->values, row->nulls);
}

void AddClassRow(ReturnSetInfo *result, uint32_t class_id)
{
    const GateClass &c = gate.group(class_id);
    // Too large for a stack frame beside the executor's; and the caller's context is short-lived.
    auto *totals = static_cast<ClassTotals *>(palloc0(sizeof(ClassTotals)));
    AddTotals(totals, c);
    const int32_t timeout_ms = gate.QueueTimeoutMs(class_id);
    Row row;
    row.PutText(c.name);
    row.PutInt(c.weight);
    row.PutInt(c.reserved);
    row.PutIntOrNull(c.max_active != 0, c.max_active);
    row.PutIntOrNull(c.queue_size != 0, c.queue_size);
    if (timeout_ms > 0)
        row.PutInterval(timeout_ms * INT64CONST(1000));
    else
        row.PutNull();
    row.PutInt(Gate::ClassActive(c));
    row.PutInt(CountLent(class_id));
    row.PutInt(c.waiting.load());
    PutCounters(&row, *totals);
    PutWaits(&row, totals->waits);
    AddRow(result, &row);
    pfree(totals);
}

const char *TicketStateName(TicketState state)
{
    switch (state) {
    case TicketState::kFree:
        return "free";
    case TicketState::kWaiting:
        return "waiting";
    case TicketState::kHeld:
        return "active";
    case TicketState::kLent:
        return "lent";
    }
    return "unknown";
}

} // namespace

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_stat_admission)
{
    RequireShared();
    auto *totals = static_cast<ClassTotals *>(palloc0(sizeof(ClassTotals)));
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = gate.group(i);
        // Most entries were never used; a histogram is long.
        if (c.in_use.load(std::memory_order_acquire) != 0 || Gate::ClassAdmitted(c) != 0)
            AddTotals(totals, c);
    }
    const uint32_t limit = gate.shared().limit.load();
    const bool adaptive = shared->supervision.adapting;
    Row row;
    row.PutText(ModeName(static_cast<int>(CurrentMode())));
    row.PutBool(adaptive);
    row.PutIntOrNull(limit < kUnlimited, limit);
    if (adaptive)
        row.PutText(AdaptiveReasonName(shared->supervision.adaptive.reason));
    else
        row.PutNull();
    row.PutInt(gate.Active());
    row.PutInt(CountLent(kMaxClasses));
    row.PutInt(gate.Waiting());
    PutCounters(&row, *totals);
    row.PutCount(shared->supervision.suspensions.load());
    row.PutInt(shared->supervision.suspended.load());
    PutWaits(&row, totals->waits);
    row.PutTime(shared->statistics_since.load());
    return ReturnRow(fcinfo, &row);
}

WEIR_SQL_FUNCTION(weir_stat_class)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    for (uint32_t i = 0; i < kMaxClasses; i++)
        if (gate.group(i).in_use.load(std::memory_order_acquire) != 0)
            AddClassRow(result, i);
    return 0;
}

WEIR_SQL_FUNCTION(weir_admission_history)
{
    using Samples = LimitSample[kHistorySamples];
    ReturnSetInfo *result = BeginRows(fcinfo);
    auto *samples = static_cast<LimitSample *>(palloc(sizeof(Samples)));
    const uint32_t count = shared->supervision.history.Copy(*reinterpret_cast<Samples *>(samples));
    for (uint32_t i = 0; i < count; i++) {
        const LimitSample &s = samples[i];
        Row row;
        row.PutTime(s.at_us);
        row.PutIntOrNull(s.limit < kUnlimited, s.limit);
        row.PutText(AdaptiveReasonName(s.reason));
        row.PutReal(s.active);
        row.PutReal(s.running);
        row.PutReal(s.lock_waiting);
        row.PutReal(s.waiting);
        row.PutReal(s.admitted_per_second);
        row.PutInterval(static_cast<int64_t>(s.oldest_wait_ms * 1000));
        AddRow(result, &row);
    }
    return 0;
}

WEIR_SQL_FUNCTION(weir_activity)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    // Position by counting forward: for all waiters together that is one walk of each queue.
    auto *positions = static_cast<uint32_t *>(palloc0(sizeof(uint32_t) * gate.ticket_count()));
    LWLockAcquire(gate_lock, LW_SHARED);
    for (uint32_t i = 0; i < kMaxClasses; i++)
        gate.PositionsOf(i, positions);
    LWLockRelease(gate_lock);
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        const Ticket &t = gate.ticket(id);
        const TicketState state = gate.State(id);
        if (state == TicketState::kFree)
            continue;
        Row row;
        row.PutInt(static_cast<uint32_t>(t.pid.load()));
        row.PutText(gate.group(t.class_id.load()).name);
        row.PutText(TicketStateName(state));
        row.PutTime(t.since_us.load());
        row.PutIntOrNull(state == TicketState::kWaiting, positions[id]);
        AddRow(result, &row);
    }
    return 0;
}

WEIR_SQL_FUNCTION(weir_reset)
{
    RequireShared();
    gate.ResetStatistics();
    shared->statistics_since.store(GetCurrentTimestamp());
    PG_RETURN_VOID();
}
