// The SQL functions of flow control: weir.check_throttle() and its rules, and what the views show.

#include <cmath>

#include "pg/small_file.hpp"
#include "replicas/flow.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "mb/pg_wchar.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

void PutBytesOrNull(Row *row, bool known, double bytes)
{
    if (known && bytes >= 0 && bytes < 9e18)
        row->PutCount(static_cast<uint64_t>(bytes));
    else
        row->PutNull();
}

void PutIntervalOrNull(Row *row, bool known, int64_t us)
{
    if (known)
        row->PutInterval(us);
    else
        row->PutNull();
}

const char *FlowStateName(const FlowShared &flow)
{
    if (flow.configured.load() == 0)
        return "off";
    if (!IsFresh(shared->replicas, GetCurrentTimestamp()))
        return "stale";
    if (flow.controller.lanes[1].engaged)
        return "engaged";
    return flow.controller.lanes[0].engaged ? "batch" : "idle";
}

// What the sampler keeps, copied under its lock: rows are formed where errors are possible.
struct FlowCopy {
    FlowController controller;
    FlowTargets targets;
    FlowStandby standbys[kMaxReplicas];
    ReplicaRow rows[kMaxReplicas];
    double wal_rate;
};

FlowCopy *CopyFlow()
{
    auto *copy = static_cast<FlowCopy *>(palloc(sizeof(FlowCopy)));
    const FlowShared &flow = shared->flow;
    LWLockAcquire(replica_lock, LW_SHARED);
    copy->controller = flow.controller;
    copy->targets = flow.targets;
    memcpy(copy->standbys, flow.standbys, sizeof(copy->standbys));
    memcpy(copy->rows, shared->replicas.report.rows, sizeof(copy->rows));
    copy->wal_rate = shared->replicas.report.wal_rate;
    LWLockRelease(replica_lock);
    return copy;
}

void PutController(Row *row, const FlowCopy &copy)
{
    const FlowController &controller = copy.controller;
    const FlowTargets &targets = copy.targets;
    PutIntervalOrNull(row, targets.lag_us > 0, targets.lag_us);
    PutBytesOrNull(row, targets.lag_bytes > 0, static_cast<double>(targets.lag_bytes));
    row->PutInt(controller.counting);
    const bool known = controller.quorum_member < kMaxReplicas;
    const FlowStandby none = {};
    const FlowStandby &standby = known ? copy.standbys[controller.quorum_member] : none;
    if (known)
        row->PutText(copy.rows[controller.quorum_member].application_name);
    else
        row->PutNull();
    PutIntervalOrNull(row, known, standby.lag_us);
    PutIntervalOrNull(row, known, standby.delay_us);
    PutBytesOrNull(row, known, static_cast<double>(standby.lag_bytes));
    PutBytesOrNull(row, known, standby.capacity);
    PutBytesOrNull(row, controller.lanes[1].engaged, controller.lanes[1].rate);
    PutBytesOrNull(row, controller.lanes[0].engaged, controller.lanes[0].rate);
    PutBytesOrNull(row, true, copy.wal_rate);
    PutBytesOrNull(row, controller.Engaged(), controller.others_rate);
    row->PutCount(controller.lanes[1].engagements);
    row->PutCount(controller.lanes[0].engagements);
}

// The application's name as jobs give it, or the pattern of a rule.
void TakeAppName(const text *name, char (&to)[kThrottleAppSize])
{
    const int length = static_cast<int>(VARSIZE_ANY_EXHDR(name));
    if (length >= static_cast<int>(kThrottleAppSize))
        ereport(ERROR, (errcode(ERRCODE_NAME_TOO_LONG), errmsg("the application's name is too long"),
                        errdetail("It may have %u bytes.", kThrottleAppSize - 1)));
    if (length == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("the application's name is empty"),
                        errhint("Give each job a name. A rule for \"*\" is for all of them.")));
    memcpy(to, VARDATA_ANY(name), static_cast<size_t>(length));
    to[length] = '\0';
}

int64_t ExpiryOf(const Interval *ttl, int64_t now)
{
    const auto expires = DatumGetTimestampTz(
        DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), IntervalPGetDatum(ttl)));
    if (TIMESTAMP_NOT_FINITE(expires) || expires <= now)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a rule must last for some time"),
                        errhint("Give a positive interval.")));
    return expires;
}

// ---- rules and their file

constexpr SmallFile kFile = {"pg_weir_throttle_rules", "pg_weir_throttle_rules.tmp",
                             "pg_weir_throttle_rules.damaged", "throttle rules",
                             "Make the rules again with weir.throttle_app() and weir.exempt_app()."};

struct RuleFile {
    char bytes[kThrottleFileMaxSize + 1]; // one more: a file that is too long is seen to be
    ThrottleRuleSpec specs[kMaxThrottleRules];
    uint32_t count;
};

// The file is written under rules_lock, so that checks, which take flow_lock, do not wait for a disk.
RuleFile *LockAndCopyRules(int64_t now)
{
    auto *file = static_cast<RuleFile *>(palloc(sizeof(RuleFile)));
    LWLockAcquire(rules_lock, LW_EXCLUSIVE);
    LWLockAcquire(flow_lock, LW_SHARED);
    file->count = shared->flow.rules.Copy(file->specs, now);
    LWLockRelease(flow_lock);
    return file;
}

uint32_t PositionOf(const RuleFile &file, const char *pattern)
{
    uint32_t i = 0;
    while (i < file.count && strcmp(file.specs[i].pattern, pattern) != 0)
        i++;
    return i;
}

// Before the change is made in shared memory: an error leaves everything as it was.
void SaveRules(RuleFile *file)
{
    const size_t size = WriteThrottleFile(file->specs, file->count,
                                          reinterpret_cast<char(&)[kThrottleFileMaxSize]>(file->bytes));
    WriteSmallFile(kFile, file->bytes, size);
}

void MakeRule(const ThrottleRuleSpec &spec, int64_t now)
{
    RuleFile *file = LockAndCopyRules(now);
    const uint32_t position = PositionOf(*file, spec.pattern);
    if (position == kMaxThrottleRules)
        ereport(ERROR, (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                        errmsg("there are %u throttle rules already", kMaxThrottleRules),
                        errhint("Drop one with weir.drop_throttle_rule(); weir.throttle_rules shows them.")));
    file->specs[position] = spec;
    file->count = position == file->count ? file->count + 1 : file->count;
    SaveRules(file);
    LWLockAcquire(flow_lock, LW_EXCLUSIVE);
    shared->flow.rules.Set(spec, now);
    LWLockRelease(flow_lock);
    LWLockRelease(rules_lock);
    pfree(file);
}

bool DropRuleOf(const char *pattern)
{
    RuleFile *file = LockAndCopyRules(GetCurrentTimestamp());
    const uint32_t position = PositionOf(*file, pattern);
    const bool found = position != file->count;
    if (found) {
        file->specs[position] = file->specs[--file->count];
        SaveRules(file);
        LWLockAcquire(flow_lock, LW_EXCLUSIVE);
        shared->flow.rules.Drop(pattern);
        LWLockRelease(flow_lock);
    }
    LWLockRelease(rules_lock);
    pfree(file);
    return found;
}

void SetRule(const text *app, double ratio, bool exempt, const Interval *ttl)
{
    ThrottleRuleSpec spec = {};
    TakeAppName(app, spec.pattern);
    if (std::isnan(ratio) || ratio < 0 || ratio > 1)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a ratio is from 0 to 1"),
                        errhint("1 denies every check, 0.5 every other one, 0 none.")));
    const int64_t now = GetCurrentTimestamp();
    spec.expires_us = ExpiryOf(ttl, now);
    spec.ratio = ratio;
    spec.exempt = exempt;
    MakeRule(spec, now);
}

ThrottleFacts CurrentFacts(int64_t now)
{
    const FlowShared &flow = shared->flow;
    ThrottleFacts facts;
    facts.fresh = IsFresh(shared->replicas, now);
    facts.in_recovery = shared->replicas.in_recovery.load(std::memory_order_relaxed) != 0;
    facts.known = flow.check_known.load(std::memory_order_relaxed) != 0;
    facts.lag_us = flow.check_lag_us.load(std::memory_order_relaxed);
    facts.threshold_us = flow.check_threshold_us.load(std::memory_order_relaxed);
    facts.lag_bytes = flow.check_lag_bytes.load(std::memory_order_relaxed);
    facts.threshold_bytes = flow.check_threshold_bytes.load(std::memory_order_relaxed);
    facts.capacity = flow.check_capacity.load(std::memory_order_relaxed);
    return facts;
}

} // namespace

void LoadThrottleRules()
{
    auto *file = static_cast<RuleFile *>(palloc(sizeof(RuleFile)));
    size_t size;
    bool found;
    const char *trouble = ReadSmallFile(kFile, file->bytes, sizeof(file->bytes), &size, &found);
    if (trouble == nullptr && found)
        trouble = ReadThrottleFile(file->bytes, size, file->specs, &file->count);
    if (trouble != nullptr)
        SetAside(kFile, trouble);
    else if (found)
        for (uint32_t i = 0; i < file->count; i++)
            shared->flow.rules.Set(file->specs[i], GetCurrentTimestamp());
    pfree(file);
}

ThrottleAnswer CheckThrottle(const char *app, int64_t now)
{
    FlowShared &flow = shared->flow;
    const ThrottleFacts facts = CurrentFacts(now);
    ThrottleAnswer answer;
    if (flow.rules.count.load(std::memory_order_relaxed) == 0)
        answer = JudgeCheck(facts, nullptr);
    else {
        LWLockAcquire(flow_lock, LW_SHARED);
        answer = JudgeCheck(facts, flow.rules.Find(app, now));
        LWLockRelease(flow_lock);
    }
    flow.checks[static_cast<size_t>(answer.code)].fetch_add(1, std::memory_order_relaxed);
    return answer;
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_check_throttle)
{
    RequireShared();
    char app[kThrottleAppSize];
    TakeAppName(PG_GETARG_TEXT_PP(0), app);
    const ThrottleAnswer answer = CheckThrottle(app, GetCurrentTimestamp());
    Row row;
    row.PutBool(IsAllowed(answer.code));
    row.PutText(ThrottleCodeName(answer.code));
    const double unit = answer.in_bytes ? 1 : 1e6;
    row.Put(Float8GetDatum(static_cast<double>(answer.value) / unit));
    row.Put(Float8GetDatum(static_cast<double>(answer.threshold) / unit));
    row.PutText(answer.in_bytes ? "bytes" : "s");
    PutIntervalOrNull(&row, answer.retry_after_us > 0, answer.retry_after_us);
    return ReturnRow(fcinfo, &row);
}

WEIR_SQL_FUNCTION(weir_throttle_app)
{
    RequireShared();
    SetRule(PG_GETARG_TEXT_PP(0), PG_GETARG_FLOAT8(1), false, PG_GETARG_INTERVAL_P(2));
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_exempt_app)
{
    RequireShared();
    SetRule(PG_GETARG_TEXT_PP(0), 0, true, PG_GETARG_INTERVAL_P(1));
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_drop_throttle_rule)
{
    RequireShared();
    char pattern[kThrottleAppSize];
    TakeAppName(PG_GETARG_TEXT_PP(0), pattern);
    PG_RETURN_BOOL(DropRuleOf(pattern));
}

WEIR_SQL_FUNCTION(weir_throttle_rules)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    struct Copy {
        bool exempt;
        double ratio;
        char pattern[kThrottleAppSize];
        int64_t expires_us;
        uint64_t checks, denied;
    };
    auto *copies = static_cast<Copy *>(palloc(sizeof(Copy) * kMaxThrottleRules));
    int count = 0;
    const int64_t now = GetCurrentTimestamp();
    LWLockAcquire(flow_lock, LW_SHARED);
    for (const ThrottleRule &rule : shared->flow.rules.rules) {
        if (!rule.in_use || rule.expires_us <= now)
            continue;
        Copy &copy = copies[count++];
        copy.exempt = rule.exempt;
        copy.ratio = rule.ratio;
        memcpy(copy.pattern, rule.pattern, kThrottleAppSize);
        copy.expires_us = rule.expires_us;
        copy.checks = rule.checks.load();
        copy.denied = rule.denied.load();
    }
    LWLockRelease(flow_lock);
    for (int i = 0; i < count; i++) {
        Row row;
        row.PutText(copies[i].pattern);
        row.PutBool(copies[i].exempt);
        row.Put(Float8GetDatum(copies[i].ratio));
        row.PutTime(copies[i].expires_us);
        row.PutCount(copies[i].checks);
        row.PutCount(copies[i].denied);
        AddRow(result, &row);
    }
    return 0;
}

WEIR_SQL_FUNCTION(weir_stat_throttle)
{
    RequireShared();
    const FlowShared &flow = shared->flow;
    const FlowCopy *copy = CopyFlow();
    Row row;
    row.PutText(ModeName(static_cast<int>(CurrentMode())));
    row.PutText(FlowStateName(flow));
    PutController(&row, *copy);
    row.PutInt(flow.waiting.load(std::memory_order_relaxed));
    row.PutCount(flow.waits[1].load(std::memory_order_relaxed));
    row.PutCount(flow.waits[0].load(std::memory_order_relaxed));
    row.PutCount(flow.bulk_waits.load(std::memory_order_relaxed));
    row.PutCount(flow.expired.load(std::memory_order_relaxed));
    row.PutInterval(flow.waited_us.load(std::memory_order_relaxed));
    auto *durations = static_cast<HistogramSnapshot *>(palloc(sizeof(HistogramSnapshot)));
    *durations = flow.durations.Snapshot();
    PutWaits(&row, *durations);
    uint64_t allowed = 0;
    uint64_t denied = 0;
    for (uint32_t code = 0; code < kThrottleCodes; code++)
        (IsAllowed(static_cast<ThrottleCode>(code)) ? allowed : denied) +=
            flow.checks[code].load(std::memory_order_relaxed);
    row.PutCount(allowed);
    row.PutCount(denied);
    row.PutTime(shared->replicas.sampled_us.load());
    row.PutTime(shared->statistics_since.load());
    return ReturnRow(fcinfo, &row);
}

WEIR_SQL_FUNCTION(weir_throttle_standby)
{
    ReturnSetInfo *result = BeginRows(fcinfo);
    const FlowCopy *copy = CopyFlow();
    for (uint32_t i = 0; i < kMaxReplicas; i++) {
        const ReplicaRow &replica = copy->rows[i];
        const FlowStandby &standby = copy->standbys[i];
        if (!replica.in_use || !standby.seen || standby.serial != replica.serial)
            continue;
        Row row;
        row.PutText(replica.application_name);
        row.PutText(StandingName(standby.standing));
        row.PutInterval(replica.replay_lag_us);
        row.PutInterval(standby.delay_us);
        PutBytesOrNull(&row, true, static_cast<double>(replica.replay_lag_bytes));
        PutBytesOrNull(&row, true, standby.capacity);
        row.PutReal(static_cast<float>(standby.pressure));
        row.PutBool(standby.limiting);
        row.PutBool(standby.at_floor);
        AddRow(result, &row);
    }
    return 0;
}
