// What the sampler knows of standbys, as metrics: see metrics.cpp.

#include "stats/replica_metrics.hpp"

#include <limits>

#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "replicas/self_quarantine.hpp"

extern "C" {
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr ReplicaState kStates[] = {ReplicaState::kUnknown, ReplicaState::kStreaming,
                                    ReplicaState::kCatchup, ReplicaState::kArchive,
                                    ReplicaState::kPaused,  ReplicaState::kDisconnected};
constexpr size_t kSeriesNameSize = kReplicaNameSize + 8;

ReplicaReport report; // too long for a stack frame, both
HistogramSnapshot durations;

// A standby in the report, and the labels that are its alone.
struct Series {
    const ReplicaRow *row;
    char standby[kSeriesNameSize];
    char address[kAddressTextSize];
};

Series series[kMaxReplicas];
uint32_t series_count;

bool SameIdentity(const ReplicaRow &a, const ReplicaRow &b)
{
    return strcmp(a.application_name, b.application_name) == 0 &&
           memcmp(&a.address, &b.address, sizeof(a.address)) == 0;
}

// Two connections of the same name from the same address are two rows. Prometheus would refuse everything for
// the sake of two samples with the same labels, so the second is "name#2".
void CopySeries()
{
    LWLockAcquire(replica_lock, LW_SHARED);
    report = shared->replicas.report;
    LWLockRelease(replica_lock);
    series_count = 0;
    for (const ReplicaRow &row : report.rows) {
        if (!row.in_use)
            continue;
        Series &s = series[series_count++];
        s.row = &row;
        uint32_t number = 1;
        for (uint32_t i = 0; i + 1 < series_count; i++)
            number += SameIdentity(*series[i].row, row);
        snprintf(s.standby, sizeof(s.standby), number == 1 ? "%s" : "%s#%u", row.application_name, number);
        const bool remote =
            row.address.family == AddressFamily::kV4 || row.address.family == AddressFamily::kV6;
        if (remote)
            AddressText(row.address, s.address);
        else
            s.address[0] = '\0';
    }
}

// Calls write(row, labels) for each standby.
template <typename Write> void ForEachStandby(Write write)
{
    for (uint32_t i = 0; i < series_count; i++)
        write(*series[i].row, series[i]);
}

#define WEIR_STANDBY_LABELS(s)                                                                               \
    {"standby", (s).standby}, {"region", (s).row->region},                                                   \
    {                                                                                                        \
        "address", (s).address                                                                               \
    }

void WriteStages(MetricsText *text, const char *name, const char *help, double unit,
                 int64_t ReplicaRow::*write_lag, int64_t ReplicaRow::*flush_lag,
                 int64_t ReplicaRow::*replay_lag)
{
    text->Gauge(name, help);
    ForEachStandby([=](const ReplicaRow &row, const Series &s) {
        text->Real(static_cast<double>(row.*write_lag) / unit, {WEIR_STANDBY_LABELS(s), {"stage", "write"}});
        text->Real(static_cast<double>(row.*flush_lag) / unit, {WEIR_STANDBY_LABELS(s), {"stage", "flush"}});
        text->Real(static_cast<double>(row.*replay_lag) / unit,
                   {WEIR_STANDBY_LABELS(s), {"stage", "replay"}});
    });
}

double CatchUpSeconds(int64_t us)
{
    return us < 0 ? std::numeric_limits<double>::infinity() : static_cast<double>(us) / 1e6;
}

void WriteStandbys(MetricsText *text)
{
    text->Gauge("pg_weir_replica_connected", "1: the standby is connected to this server; 0: it was.");
    ForEachStandby(
        [=](const ReplicaRow &row, const Series &s) { text->Count(row.pid != 0, {WEIR_STANDBY_LABELS(s)}); });
    text->Gauge("pg_weir_replica_state", "1 for the state the standby is in, 0 for the others.");
    ForEachStandby([=](const ReplicaRow &row, const Series &s) {
        for (const ReplicaState state : kStates)
            text->Count(row.state == state, {WEIR_STANDBY_LABELS(s), {"state", ReplicaStateName(state)}});
    });
    WriteStages(text, "pg_weir_replica_lag_seconds",
                "How old the oldest WAL is that the standby has yet to do.", 1e6, &ReplicaRow::write_lag_us,
                &ReplicaRow::flush_lag_us, &ReplicaRow::replay_lag_us);
    WriteStages(text, "pg_weir_replica_lag_bytes", "WAL that the standby has yet to do.", 1,
                &ReplicaRow::write_lag_bytes, &ReplicaRow::flush_lag_bytes, &ReplicaRow::replay_lag_bytes);
    text->Gauge("pg_weir_replica_lag_peak_seconds", "Largest replay lag of the last minute.");
    ForEachStandby([=](const ReplicaRow &row, const Series &s) {
        text->Seconds(row.summaries[0].max_us, {WEIR_STANDBY_LABELS(s)});
    });
    text->Gauge("pg_weir_replica_replay_rate_bytes", "WAL that the standby replays per second, smoothed.");
    ForEachStandby([=](const ReplicaRow &row, const Series &s) {
        text->Real(row.replay_rate, {WEIR_STANDBY_LABELS(s)});
    });
    text->Gauge("pg_weir_replica_catch_up_seconds",
                "Until it has caught up, at the present rates; +Inf: never.");
    ForEachStandby([=](const ReplicaRow &row, const Series &s) {
        text->Real(CatchUpSeconds(row.catch_up_us), {WEIR_STANDBY_LABELS(s)});
    });
    text->Gauge("pg_weir_replica_counts", "1: the standby counts for flow control.");
    ForEachStandby(
        [=](const ReplicaRow &row, const Series &s) { text->Count(row.counts, {WEIR_STANDBY_LABELS(s)}); });
}

// This server as a standby. The series are there on a primary, too, where all is 0: a server that is promoted
// must not leave its last lag behind.
void WriteOwn(MetricsText *text)
{
    const OwnRow &own = report.own;
    text->Gauge("pg_weir_standby_lag_seconds",
                "Replay lag of this server, by its own reckoning; 0 on a primary.");
    text->Seconds(own.in_recovery ? own.replay_lag_us : 0);
    text->Gauge("pg_weir_standby_lag_bytes", "The same in bytes of WAL.");
    text->Count(own.in_recovery ? static_cast<uint64_t>(own.replay_lag_bytes) : 0);
    text->Gauge("pg_weir_standby_state",
                "1 for the state this standby is in, 0 for the others, and on a primary.");
    for (const ReplicaState state : kStates)
        text->Count(own.in_recovery && own.state == state, {{"state", ReplicaStateName(state)}});
}

void WriteQuarantine(MetricsText *text)
{
    const QuarantineShared &own = shared->routing.own;
    text->Gauge("pg_weir_quarantined", "1: this standby refuses new sessions, because it is too far behind.");
    text->Count(RefusesNewSessions(GetCurrentTimestamp()));
    text->Counter("pg_weir_quarantine_changes_total", "How often a quarantine began or ended.");
    text->Count(own.changes.load());
    text->Counter("pg_weir_quarantine_refused_total",
                  "Connections refused in quarantine; in observe mode, would have been.");
    text->Count(own.refused.load());
}

void WriteReplayWaits(MetricsText *text)
{
    const ReplayWaitShared &waits = shared->replay_waits;
    text->Gauge("pg_weir_replay_waiting", "Sessions that wait for an LSN to be replayed.");
    text->Count(waits.waiting.load());
    text->Counter("pg_weir_replay_wait_timed_out_total", "Waits for an LSN that ended by their timeout.");
    text->Count(waits.timed_out.load());
    text->Counter("pg_weir_replay_wait_too_late_total",
                  "Refused: the transaction had a snapshot, or had run a query.");
    text->Count(waits.too_late.load());
    text->HistogramOf("pg_weir_replay_wait_seconds", "How long they waited, however it ended.");
    durations = waits.waits.Snapshot();
    text->Durations(durations);
}

// ---- flow control ---------------------------------------------------------------------------------

constexpr const char *kLaneNames[] = {"batch", "regular"};
static_assert(sizeof(kLaneNames) / sizeof(kLaneNames[0]) == kFlowLanes);

void WriteFlow(MetricsText *text)
{
    const FlowShared &flow = shared->flow;
    FlowLaneState lanes[kFlowLanes];
    LWLockAcquire(replica_lock, LW_SHARED);
    memcpy(lanes, flow.controller.lanes, sizeof(lanes));
    LWLockRelease(replica_lock);
    text->Gauge("pg_weir_throttle_engaged", "1: writers are slowed down because standbys lag.");
    for (uint32_t i = 0; i < kFlowLanes; i++)
        text->Count(lanes[i].engaged, {{"lane", kLaneNames[i]}});
    text->Gauge("pg_weir_throttle_rate_bytes", "WAL per second that writers may write; +Inf: no limit.");
    for (uint32_t i = 0; i < kFlowLanes; i++)
        text->Real(lanes[i].engaged ? lanes[i].rate : std::numeric_limits<double>::infinity(),
                   {{"lane", kLaneNames[i]}});
    text->Counter("pg_weir_throttle_engagements_total", "How often it began.");
    for (uint32_t i = 0; i < kFlowLanes; i++)
        text->Count(lanes[i].engagements, {{"lane", kLaneNames[i]}});
    text->Gauge("pg_weir_throttle_waiting", "Writers that wait now.");
    text->Count(flow.waiting.load());
    text->Counter("pg_weir_throttle_waits_total",
                  "Transactions that had to wait; in observe mode, would have had to.");
    for (uint32_t i = 0; i < kFlowLanes; i++)
        text->Count(flow.waits[i].load(), {{"lane", kLaneNames[i]}});
    text->Counter("pg_weir_throttle_expired_total", "Of these: went on after weir.throttle_max_wait.");
    text->Count(flow.expired.load());
    text->Counter("pg_weir_throttle_bulk_waits_total",
                  "Waits inside of a statement, and prolonged rests of autovacuum.");
    text->Count(flow.bulk_waits.load());
    text->Counter("pg_weir_throttle_waited_seconds_total", "All that writers waited.");
    text->Seconds(flow.waited_us.load());
    text->HistogramOf("pg_weir_throttle_wait_seconds", "How long transactions waited before they wrote.");
    durations = flow.durations.Snapshot();
    text->Durations(durations);
    text->Counter("pg_weir_throttle_checks_total",
                  "Answers of weir.check_throttle() and /throttle/check, by code.");
    for (uint32_t i = 0; i < kThrottleCodes; i++)
        text->Count(flow.checks[i].load(), {{"code", ThrottleCodeName(static_cast<ThrottleCode>(i))}});
}

} // namespace

void WriteReplicas(MetricsText *text)
{
    const ReplicasShared &replicas = shared->replicas;
    CopySeries();
    text->Gauge("pg_weir_sampler_up", "1: lag is measured; 0: what is shown of lag is old.");
    text->Count(IsFresh(replicas, GetCurrentTimestamp()));
    text->Counter("pg_weir_role_changes_total", "Promotions of this server since it started.");
    text->Count(replicas.role_changes.load());
    text->Counter("pg_weir_heartbeats_total", "Heartbeats written into WAL.");
    text->Count(replicas.beats.load());
    text->Gauge("pg_weir_standbys", "Standbys, and other receivers of WAL, that are connected now.");
    text->Count(replicas.standbys.load());
    WriteStandbys(text);
    WriteOwn(text);
    WriteQuarantine(text);
    WriteReplayWaits(text);
    WriteFlow(text);
}

} // namespace weir
