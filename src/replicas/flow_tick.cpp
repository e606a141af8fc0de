// The sampler's part of flow control: what was sampled goes into the controller, and its rates into the
// buckets.

#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "replicas/flow.hpp"

extern "C" {
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kCheckThresholdUs = 5 * USECS_PER_SEC; // where weir.max_replica_lag does not say

// Standings that changed in this tick, for the log.
struct StandingChange {
    char application_name[kReplicaNameSize];
    Standing standing;
    int64_t delay_us;
};
StandingChange changes[kMaxReplicas];
uint32_t change_count = 0;

FlowTargets TargetsFromSettings()
{
    FlowTargets targets = {};
    targets.lag_us = settings.max_replica_lag_ms * INT64CONST(1000);
    targets.lag_bytes = settings.max_replica_lag_kb * INT64CONST(1024);
    targets.grace_us = settings.lag_grace_ms * INT64CONST(1000);
    targets.floor = settings.throttle_floor_kb * 1024.0;
    return targets;
}

void SampleStandby(uint32_t i, const FlowTargets &targets, int64_t now)
{
    const ReplicaRow &row = shared->replicas.report.rows[i];
    FlowStandby &standby = shared->flow.standbys[i];
    if (!row.in_use || standby.serial != row.serial) {
        standby = {};
        standby.serial = row.serial;
    }
    if (!row.counts)
        return;
    const StandbySample sample = {row.pid != 0, row.replay_lsn, row.replay_lag_us, row.replay_lag_bytes};
    if (!standby.Sample(sample, targets, now))
        return;
    StandingChange &change = changes[change_count++];
    memcpy(change.application_name, row.application_name, kReplicaNameSize);
    change.standing = standby.standing;
    change.delay_us = standby.delay_us;
}

// What jobs are told rests on standbys that count, and on those that were given up while connected: a job is
// to wait also where a user need not. The same quorum.
void PublishChecks(const bool *listed, const FlowTargets &targets, int64_t now)
{
    FlowShared &flow = shared->flow;
    int64_t lags[kMaxReplicas];
    int64_t bytes[kMaxReplicas];
    int count = 0;
    int unknown = 0; // of the lags: longer than any bound, for all we know
    double capacity = 0;
    for (uint32_t i = 0; i < kMaxReplicas; i++) {
        const FlowStandby &standby = flow.standbys[i];
        const ReplicaRow &row = shared->replicas.report.rows[i];
        if (!listed[i] || standby.standing == Standing::kDisconnected ||
            standby.standing == Standing::kReturning)
            continue;
        unknown += !row.lag_known;
        lags[count] = row.lag_known ? row.replay_lag_us : PG_INT64_MAX;
        bytes[count++] = row.replay_lag_bytes;
        capacity = capacity == 0 ? standby.capacity : Min(capacity, standby.capacity);
    }
    const auto descending = [](const void *a, const void *b) {
        const int64_t x = *static_cast<const int64_t *>(a);
        const int64_t y = *static_cast<const int64_t *>(b);
        return x < y ? 1 : x > y ? -1 : 0;
    };
    qsort(lags, static_cast<size_t>(count), sizeof(int64_t), descending);
    qsort(bytes, static_cast<size_t>(count), sizeof(int64_t), descending);
    const int member = settings.lag_quorum - 1;
    flow.check_lag_us.store(member < count ? lags[member] : 0);
    flow.check_lag_bytes.store(member < count ? bytes[member] : 0);
    flow.check_capacity.store(static_cast<int64_t>(capacity));
    const int64_t given_us = settings.check_throttle_lag_ms * INT64CONST(1000);
    const bool by_bytes_alone = given_us == 0 && targets.lag_us == 0 && targets.lag_bytes > 0;
    flow.check_threshold_us.store(given_us > 0         ? given_us
                                  : by_bytes_alone     ? 0
                                  : targets.lag_us > 0 ? targets.lag_us / 2
                                                       : kCheckThresholdUs);
    flow.check_threshold_bytes.store(targets.lag_bytes / 2);
    // A server that has just started or was just promoted does not know yet who follows it.
    const int64_t since = shared->replicas.role_since_us.load();
    flow.check_known.store(count == 0 ? now - since >= Max(targets.grace_us, USECS_PER_SEC)
                                      : unknown < settings.lag_quorum || by_bytes_alone);
}

// A mean over the ticks, each with the weight of what was written in it.
void MeasureRecords()
{
    constexpr double kForget = 0.98; // of those before, each time: at ten a second, five seconds
    static double bytes = 0;
    static double records = 0;
    FlowShared &flow = shared->flow;
    bytes = bytes * kForget + static_cast<double>(flow.written_bytes.exchange(0));
    records = records * kForget + static_cast<double>(flow.written_records.exchange(0));
    if (records >= 1)
        flow.record_bytes.store(bytes / records);
}

void PublishRates(int64_t now)
{
    FlowShared &flow = shared->flow;
    for (uint32_t lane = 0; lane < kFlowLanes; lane++)
        flow.buckets[lane].SetRate(flow.controller.lanes[lane].rate, now);
    flow.max_wait_us.store(settings.throttle_max_wait_ms * INT64CONST(1000));
    flow.paces_bulk.store(settings.throttle_bulk);
    flow.engaged.store(flow.controller.Engaged());
}

} // namespace

void ControlFlow(int64_t now)
{
    FlowShared &flow = shared->flow;
    ReplicasShared &replicas = shared->replicas;
    const FlowTargets targets = TargetsFromSettings();
    bool listed[kMaxReplicas];
    change_count = 0;
    for (uint32_t i = 0; i < kMaxReplicas; i++) {
        listed[i] = replicas.report.rows[i].in_use && replicas.report.rows[i].counts;
        SampleStandby(i, targets, now);
    }
    flow.targets = targets;
    const bool rules = targets.Any() && CurrentMode() != Mode::kOff && replicas.in_recovery.load() == 0;
    flow.configured.store(rules);
    if (rules)
        flow.controller.Update(flow.standbys, listed, kMaxReplicas, targets,
                               static_cast<uint32_t>(settings.lag_quorum),
                               {replicas.end_lsn.load(), flow.buckets[1].charged.load()}, now);
    else
        flow.controller.Release();
    for (uint32_t i = 0; i < kMaxReplicas; i++)
        replicas.report.rows[i].counts = listed[i] && flow.standbys[i].Counts();
    MeasureRecords();
    PublishRates(now);
    PublishChecks(listed, targets, now);
}

void ReportFlow()
{
    for (uint32_t i = 0; i < change_count; i++) {
        const StandingChange &change = changes[i];
        const double delay_s = static_cast<double>(change.delay_us) / 1e6;
        switch (change.standing) {
        case Standing::kCounts:
            ereport(LOG,
                    (errmsg("pg_weir: standby \"%s\" counts for the throttle", change.application_name)));
            break;
        case Standing::kReturning:
            ereport(LOG, (errmsg("pg_weir: standby \"%s\" is back, and does not count for the throttle yet",
                                 change.application_name),
                          errdetail("It may catch up by itself: it is about %.1f s behind.", delay_s)));
            break;
        case Standing::kDisconnected:
            ereport(LOG,
                    (errmsg("pg_weir: standby \"%s\" does not count for the throttle any more: it has been "
                            "disconnected for weir.lag_grace",
                            change.application_name)));
            break;
        case Standing::kStuck:
            ereport(LOG, (errmsg("pg_weir: standby \"%s\" does not count for the throttle any more: it has "
                                 "replayed nothing for weir.lag_grace",
                                 change.application_name),
                          errhint("Is its replay paused, or does a query hold it up?")));
            break;
        case Standing::kHopeless:
            ereport(LOG,
                    (errmsg("pg_weir: standby \"%s\" does not count for the throttle any more: it is too "
                            "far behind",
                            change.application_name),
                     errdetail("To replay what it has not takes it about %.0f s.", delay_s)));
            break;
        case Standing::kNotHelped:
            ereport(LOG,
                    (errmsg("pg_weir: standby \"%s\" does not count for the throttle: slowing writers down "
                            "does not help it",
                            change.application_name),
                     errhint("If it has recovery_min_apply_delay, leave it out of weir.lag_replicas.")));
            break;
        }
    }
    change_count = 0;
}

} // namespace weir
