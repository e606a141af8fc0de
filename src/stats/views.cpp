// The SQL functions behind the views. They read counters that others write meanwhile: each number is true,
// their sum may be a transaction off.

#include "stats/rows.hpp"

namespace weir
{

namespace
{

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

void CopyPositions(const Gate &from, LWLock *lock, uint32_t *positions)
{
    LWLockAcquire(lock, LW_SHARED);
    for (uint32_t i = 0; i < kMaxClasses; i++)
        from.PositionsOf(i, positions);
    LWLockRelease(lock);
}

void AddSession(ReturnSetInfo *result, uint32_t id, uint32_t position)
{
    const Ticket &t = gate.ticket(id);
    const TicketState state = gate.State(id);
    Row row;
    row.PutInt(static_cast<uint32_t>(t.pid.load()));
    row.PutText(gate.group(t.class_id.load()).name);
    row.PutText(TicketStateName(state));
    row.PutTime(t.since_us.load());
    row.PutIntOrNull(state == TicketState::kWaiting, position);
    for (int i = 0; i < 4; i++)
        row.PutNull(); // pg_stat_activity knows them
    AddRow(result, &row);
}

void AddConnection(ReturnSetInfo *result, uint32_t id, uint32_t position)
{
    const Ticket &t = startup_gate.ticket(id);
    const StartupInfo &info = startup_infos[id];
    const TicketState state = startup_gate.State(id);
    const int64_t held_since = info.held_since_us.load();
    char address[kAddressTextSize];
    Row row;
    row.PutInt(static_cast<uint32_t>(t.pid.load()));
    row.PutText(held_since != 0 ? kFailedLoginClassName : startup_gate.group(t.class_id.load()).name);
    row.PutText(held_since != 0 ? "held" : state == TicketState::kWaiting ? "waiting to start" : "starting");
    row.PutTime(held_since != 0 ? held_since : t.since_us.load());
    row.PutIntOrNull(state == TicketState::kWaiting, position);
    row.PutText(info.role);
    row.PutText(info.database);
    row.PutText(info.application_name);
    if (info.address.family == AddressFamily::kV4 || info.address.family == AddressFamily::kV6)
        row.PutText(AddressText(info.address, address));
    else
        row.PutNull();
    AddRow(result, &row);
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
        row.PutReal(s.lock_queues);
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
    CopyPositions(gate, gate_lock, positions);
    for (uint32_t id = 0; id < gate.ticket_count(); id++)
        if (gate.State(id) != TicketState::kFree)
            AddSession(result, id, positions[id]);
    CopyPositions(startup_gate, startup_lock, positions);
    for (uint32_t id = 0; id < startup_gate.ticket_count(); id++)
        if (startup_gate.State(id) != TicketState::kFree || startup_infos[id].held_since_us.load() != 0)
            AddConnection(result, id, positions[id]);
    return 0;
}

WEIR_SQL_FUNCTION(weir_reset)
{
    RequireShared();
    gate.ResetStatistics();
    startup_gate.ResetStatistics();
    shared->startups.held.store(0);
    shared->replay_waits.timed_out.store(0);
    shared->replay_waits.too_late.store(0);
    shared->replay_waits.waits.Reset();
    for (TableStatistics &table : shared->coalescing.tables)
        table.Reset();
    shared->coalescing.large.allocated.store(0);
    shared->coalescing.large.refused.store(0);
    shared->submits.ResetStatistics();
    shared->routing.own.changes.store(0);
    shared->routing.own.refused.store(0);
    shared->flow.ResetStatistics();
    shared->statistics_since.store(GetCurrentTimestamp());
    PG_RETURN_VOID();
}
