// weir.read_targets(), and the SQL function behind weir.stat_quarantine.

#include "replicas/read_targets.hpp"
#include "replicas/self_quarantine.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "utils/pg_lsn.h"
}

namespace weir
{

namespace
{

// What months and days are worth is a convention, the one by which intervals are compared.
int64_t IntervalUs(const Interval *interval)
{
    const double days = static_cast<double>(interval->month) * DAYS_PER_MONTH + interval->day;
    const double us = days * USECS_PER_DAY + static_cast<double>(interval->time);
    constexpr double kMost = 9e18;
    return static_cast<int64_t>(Min(Max(us, -kMost), kMost));
}

// Without a bound of the caller's it is that of this server's own settings.
int64_t BoundUs(FunctionCallInfo fcinfo)
{
    if (PG_ARGISNULL(0)) {
        const int64_t limit_us = shared->routing.own.limit_us.load();
        return limit_us > 0 ? limit_us : -1;
    }
    const int64_t bound_us = IntervalUs(PG_GETARG_INTERVAL_P(0));
    if (bound_us < 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("max_lag must not be negative"),
                        errhint("NULL: weir.quarantine_lag, or no bound if that is 0.")));
    return bound_us;
}

void RequirePrimary()
{
    if (shared->replicas.in_recovery.load() == 0)
        return;
    ereport(ERROR,
            (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
             errmsg("weir.read_targets() is answered by a primary only"),
             errdetail("A standby knows those that get WAL from it, and not how far behind others are."),
             errhint("Its own state is shown by weir.stat_quarantine and weir.stat_replica.")));
}

void AddTarget(ReturnSetInfo *result, const ReplicaRow &r, uint32_t weight)
{
    char address[kAddressTextSize];
    Row row;
    row.PutText(r.application_name);
    if (r.region[0] != '\0')
        row.PutText(r.region);
    else
        row.PutNull();
    row.PutText(r.node);
    if (r.address.family == AddressFamily::kV4 || r.address.family == AddressFamily::kV6)
        row.PutText(AddressText(r.address, address));
    else
        row.PutNull();
    row.PutInt(weight);
    row.PutInterval(r.replay_lag_us);
    row.PutCount(static_cast<uint64_t>(r.replay_lag_bytes));
    row.Put(LSNGetDatum(r.replay_lsn));
    row.PutText(ReplicaStateName(r.state));
    AddRow(result, &row);
}

// Copies: rows are formed where errors are possible.
struct Fleet {
    ReplicaRow rows[kMaxReplicas];
    Quarantine quarantined[kMaxReplicas];
    ReadTarget found[kMaxReplicas];
};

Fleet *CopyFleet()
{
    auto *fleet = static_cast<Fleet *>(palloc(sizeof(Fleet)));
    LWLockAcquire(replica_lock, LW_SHARED);
    memcpy(fleet->rows, shared->replicas.report.rows, sizeof(fleet->rows));
    memcpy(fleet->quarantined, shared->routing.of_standbys, sizeof(fleet->quarantined));
    LWLockRelease(replica_lock);
    return fleet;
}

const char *StateOfQuarantine(const QuarantineShared &own, bool standby)
{
    if (!standby)
        return "primary";
    if (own.limit_us.load() == 0)
        return "off";
    return own.on.load() != 0 ? "quarantined" : "open";
}

void PutIntervalIf(Row *row, bool known, int64_t us)
{
    if (known)
        row->PutInterval(us);
    else
        row->PutNull();
}

} // namespace

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_read_targets)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    RequirePrimary();
    ReadWish wish;
    wish.max_lag_us = BoundUs(fcinfo);
    wish.region = PG_ARGISNULL(1) ? nullptr : text_to_cstring(PG_GETARG_TEXT_PP(1));
    const int64_t age_us = GetCurrentTimestamp() - shared->replicas.sampled_us.load();
    if (!IsFresh(shared->replicas, GetCurrentTimestamp())) {
        ereport(WARNING, (errmsg("replication has not been sampled for %.1f s, no standby is offered",
                                 static_cast<double>(age_us) / USECS_PER_SEC),
                          errhint("Is the background worker \"pg_weir sampler\" running?")));
        return 0;
    }
    Fleet *fleet = CopyFleet();
    const uint32_t count = FindReadTargets(fleet->rows, fleet->quarantined, wish, fleet->found);
    for (uint32_t i = 0; i < count; i++)
        AddTarget(result, fleet->rows[fleet->found[i].row], fleet->found[i].weight);
    pfree(fleet);
    return 0;
}

WEIR_SQL_FUNCTION(weir_stat_quarantine)
{
    RequireShared();
    const QuarantineShared &own = shared->routing.own;
    const int64_t now = GetCurrentTimestamp();
    const bool standby = shared->replicas.in_recovery.load() != 0;
    const bool on = standby && own.on.load() != 0;
    const int64_t since_us = own.since_us.load();
    Row row;
    row.PutText(StateOfQuarantine(own, standby));
    row.PutBool(RefusesNewSessions(now));
    if (since_us != 0)
        row.PutTime(since_us);
    else
        row.PutNull();
    PutIntervalIf(&row, standby, shared->replicas.own_lag_us.load());
    PutIntervalIf(&row, own.limit_us.load() != 0, own.limit_us.load());
    PutIntervalIf(&row, on, Max(own.last_over_us.load() + own.hold_us.load() - now, INT64CONST(0)));
    row.PutText(settings.region);
    row.PutCount(own.changes.load());
    row.PutCount(own.refused.load());
    row.PutTime(shared->replicas.sampled_us.load());
    return ReturnRow(fcinfo, &row);
}
