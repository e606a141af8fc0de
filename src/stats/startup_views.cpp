// The SQL functions behind the views of connections that start. Like those in views.cpp they read counters
// that others write meanwhile.

#include <cmath>

#include "stats/rows.hpp"

namespace weir
{

namespace
{

void AddStartupClass(ReturnSetInfo *result, uint32_t class_id)
{
    const GateClass &c = startup_gate.group(class_id);
    const double rate = c.pace.PerSecond();
    auto count = [&c](Departure departure) { return c.departures[static_cast<size_t>(departure)].load(); };
    Row row;
    row.PutText(c.name);
    row.PutInt(c.weight);
    row.PutIntOrNull(c.max_active != 0, c.max_active);
    row.PutIntOrNull(rate > 0, static_cast<uint32_t>(std::lround(rate)));
    row.PutInt(Gate::ClassActive(c));
    row.PutInt(c.waiting.load());
    row.PutCount(Gate::ClassAdmitted(c) - c.admitted_base.load());
    row.PutCount(c.queued.load());
    row.PutCount(count(Departure::kRefused));
    row.PutCount(count(Departure::kTimedOut));
    row.PutCount(count(Departure::kTerminated));
    row.PutCount(count(Departure::kClientGone));
    row.PutCount(c.bypassed.load());
    row.PutCount(c.lendings.load());
    row.PutCount(strcmp(c.name, kFailedLoginClassName) == 0 ? shared->startups.held.load() : 0);
    auto *waits = static_cast<HistogramSnapshot *>(palloc(sizeof(HistogramSnapshot)));
    *waits = c.waits.Snapshot();
    PutWaits(&row, *waits);
    AddRow(result, &row);
    pfree(waits);
}

void PutTop(Row *row, const StormTop (&top)[kStormTop])
{
    StringInfoData text;
    initStringInfo(&text);
    for (const StormTop &entry : top)
        if (entry.count > 0)
            appendStringInfo(&text, "%s%s (" UINT64_FORMAT ")", text.len == 0 ? "" : ", ",
                             entry.name[0] != '\0' ? entry.name : "\"\"", entry.count);
    row->PutText(text.data);
    pfree(text.data);
}

void AddStorm(ReturnSetInfo *result, const StormRecord &storm)
{
    Row row;
    row.PutTime(storm.began_us);
    if (storm.ended_us != 0)
        row.PutTime(storm.ended_us);
    else
        row.PutNull();
    row.PutInt(storm.peak_waiting);
    row.PutInterval(storm.longest_wait_us);
    row.PutCount(storm.arrivals);
    row.PutCount(storm.admitted);
    row.PutCount(storm.left);
    PutTop(&row, storm.roles);
    PutTop(&row, storm.addresses);
    PutTop(&row, storm.applications);
    AddRow(result, &row);
}

} // namespace

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_stat_startup)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    for (uint32_t i = 0; i < kMaxClasses; i++)
        if (startup_gate.group(i).in_use.load(std::memory_order_acquire) != 0)
            AddStartupClass(result, i);
    return 0;
}

WEIR_SQL_FUNCTION(weir_startup_limit)
{
    RequireShared();
    const StartupShared &s = shared->startups;
    const uint32_t limit = s.gate.limit.load();
    const StartupPace pace = s.pace;
    Row row;
    row.PutBool(StartupRateAdapts(s));
    row.PutIntOrNull(limit < kUnlimited, limit);
    if (pace.rate > 0)
        row.PutReal(static_cast<float>(pace.rate));
    else
        row.PutNull();
    row.PutText(StartupReasonName(pace.reason));
    row.PutInt(startup_gate.Active());
    row.PutInt(startup_gate.Waiting());
    row.PutReal(static_cast<float>(pace.served_rate));
    row.PutInterval(static_cast<int64_t>(pace.cost_s * 1e6));
    row.PutReal(static_cast<float>(pace.established));
    row.PutReal(static_cast<float>(pace.idle));
    return ReturnRow(fcinfo, &row);
}

WEIR_SQL_FUNCTION(weir_storms)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    auto *storms = static_cast<StormRecord *>(palloc(sizeof(StormRecord) * (kMostStorms + 1)));
    LWLockAcquire(startup_lock, LW_SHARED);
    const uint32_t count = shared->startups.storms.Copy(storms, kMostStorms + 1);
    LWLockRelease(startup_lock);
    for (uint32_t i = 0; i < count; i++)
        AddStorm(result, storms[i]);
    return 0;
}
