// The SQL functions behind weir.stat_replica and weir.replica_lag_history.

#include "replicas/replica_report.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "utils/pg_lsn.h"
}

namespace weir
{

namespace
{

void PutLsn(Row *row, uint64_t lsn)
{
    if (lsn == 0)
        row->PutNull();
    else
        row->Put(LSNGetDatum(lsn));
}

void PutName(Row *row, const char *name)
{
    if (name[0] == '\0')
        row->PutNull();
    else
        row->PutText(name);
}

void PutTimeOrNull(Row *row, int64_t at_us)
{
    if (at_us == 0)
        row->PutNull();
    else
        row->PutTime(at_us);
}

void PutIntervalOrNull(Row *row, bool known, int64_t us)
{
    if (known)
        row->PutInterval(us);
    else
        row->PutNull();
}

void PutSummaries(Row *row, const LagSummary (&summaries)[kLagWindows])
{
    for (const LagSummary &s : summaries) {
        row->PutInterval(s.p50_us);
        row->PutInterval(s.p95_us);
        row->PutInterval(s.p99_us);
        row->PutInterval(s.max_us);
    }
}

void PutWho(Row *row, const char *kind, const char *name, const char *region, const char *node)
{
    row->PutText(kind);
    row->PutText(name);
    PutName(row, region);
    row->PutText(node);
}

void PutPositions(Row *row, uint64_t sent, uint64_t write, uint64_t flush, uint64_t replay)
{
    PutLsn(row, sent);
    PutLsn(row, write);
    PutLsn(row, flush);
    PutLsn(row, replay);
}

// Of a ReplicaRow or the OwnRow.
template <typename Lags> void PutLags(Row *row, const Lags &r, double wal_rate)
{
    row->PutCount(static_cast<uint64_t>(r.write_lag_bytes));
    row->PutCount(static_cast<uint64_t>(r.flush_lag_bytes));
    row->PutCount(static_cast<uint64_t>(r.replay_lag_bytes));
    row->PutInterval(r.write_lag_us);
    row->PutInterval(r.flush_lag_us);
    row->PutInterval(r.replay_lag_us);
    PutSummaries(row, r.summaries);
    row->PutCount(static_cast<uint64_t>(r.replay_rate));
    row->PutCount(static_cast<uint64_t>(wal_rate));
    PutIntervalOrNull(row, r.catch_up_us >= 0, r.catch_up_us);
}

void AddStandby(ReturnSetInfo *result, const ReplicaRow &r, double wal_rate)
{
    char address[kAddressTextSize];
    Row row;
    PutWho(&row, "standby", r.application_name, r.region, r.node);
    if (r.address.family == AddressFamily::kV4 || r.address.family == AddressFamily::kV6)
        row.PutText(AddressText(r.address, address));
    else
        row.PutNull();
    row.PutIntOrNull(r.pid != 0, static_cast<uint32_t>(r.pid));
    row.PutText(ReplicaStateName(r.state));
    row.PutTime(r.connected_us);
    row.PutInt(static_cast<uint32_t>(r.sync_priority));
    row.PutBool(r.counts);
    PutPositions(&row, r.sent_lsn, r.write_lsn, r.flush_lsn, r.replay_lsn);
    PutLags(&row, r, wal_rate);
    PutTimeOrNull(&row, r.reply_us);
    row.PutNull(); // clock_skew: the sender's clock is the only one
    row.PutTime(shared->replicas.sampled_us.load());
    AddRow(result, &row);
}

void AddOwn(ReturnSetInfo *result, const OwnRow &own)
{
    char region[kReplicaNameSize], node[kReplicaNameSize];
    SplitName(cluster_name, region, node);
    Row row;
    PutWho(&row, "self", cluster_name, settings.region[0] != '\0' ? settings.region : region, node);
    PutName(&row, own.sender_host);
    row.PutNull(); // pid
    row.PutText(ReplicaStateName(own.state));
    row.PutTime(shared->replicas.role_since_us.load());
    row.PutInt(0);
    row.PutBool(false);
    PutPositions(&row, own.sender_lsn, own.received_lsn, own.flushed_lsn, own.replay_lsn);
    PutLags(&row, own, own.receive_rate);
    PutTimeOrNull(&row, own.message_us);
    PutIntervalOrNull(&row, own.skew_known, own.skew_us);
    row.PutTime(shared->replicas.sampled_us.load());
    AddRow(result, &row);
}

void AddSample(ReturnSetInfo *result, const LagSample &s, const char *kind, const char *name)
{
    Row row;
    row.PutTime(s.at_us);
    row.PutText(kind);
    row.PutText(name);
    row.PutInterval(s.lag_us);
    row.PutCount(static_cast<uint64_t>(s.lag_bytes));
    row.PutCount(static_cast<uint64_t>(s.replay_rate));
    AddRow(result, &row);
}

} // namespace

ReplicaReport *CopyReplicaReport()
{
    auto *copy = static_cast<ReplicaReport *>(palloc(sizeof(ReplicaReport)));
    LWLockAcquire(replica_lock, LW_SHARED);
    memcpy(static_cast<void *>(copy), &shared->replicas.report, sizeof(ReplicaReport));
    LWLockRelease(replica_lock);
    return copy;
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_stat_replica)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    const ReplicaReport *report = CopyReplicaReport();
    for (const ReplicaRow &row : report->rows)
        if (row.in_use)
            AddStandby(result, row, report->wal_rate);
    if (report->own.in_recovery)
        AddOwn(result, report->own);
    return 0;
}

WEIR_SQL_FUNCTION(weir_replica_lag_history)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    auto *history = static_cast<SampleRing *>(palloc(sizeof(SampleRing)));
    LWLockAcquire(replica_lock, LW_SHARED);
    memcpy(static_cast<void *>(history), &shared->replicas.history, sizeof(SampleRing));
    LWLockRelease(replica_lock);
    const ReplicaReport *report = CopyReplicaReport();
    for (uint32_t i = 0; i < history->Count(); i++) {
        const LagSample &s = history->At(i);
        if (s.row == kOwnSample)
            AddSample(result, s, "self", cluster_name);
        else if (report->rows[s.row].in_use && report->rows[s.row].serial == s.serial)
            AddSample(result, s, "standby", report->rows[s.row].application_name);
    }
    return 0;
}
