#include "admission/query_shedding.hpp"

#include "pg/compat.hpp"
#include "pg/small_file.hpp"

extern "C" {
#include "access/xact.h"
#include "common/pg_prng.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
}

namespace weir
{

uint32_t places_held = 0;

namespace
{

constexpr SmallFile kFile = {"pg_weir_query_rules", "pg_weir_query_rules.tmp", "pg_weir_query_rules.damaged",
                             "query rules",
                             "Make the rules again with weir.limit_query() and weir.block_query()."};

// What this backend holds, oldest first.
struct HeldPlace {
    const void *query_desc; // null: a utility statement's
    int nest_level;         // of the subtransaction that an abort must roll back to release it
    RulePlace place;
};
HeldPlace held[kMaxPlacesHeld];

// ---- Holding places ----

// Gives back the i-th, and keeps the others' order.
void Leave(uint32_t i)
{
    LeavePlace(&shared->rules, held[i].place);
    places_held--;
    memmove(&held[i], &held[i + 1], (places_held - i) * sizeof(held[0]));
}

// The latest: a plan that is cached may be running more than once, innermost last.
void LeaveLatest(const void *query_desc)
{
    for (uint32_t i = places_held; i > 0; i--) {
        if (held[i - 1].query_desc != query_desc)
            continue;
        Leave(i - 1);
        return;
    }
}

// An exception block ends executions without ExecutorEnd.
void OnSubtransaction(SubXactEvent event, SubTransactionId, SubTransactionId, void *)
{
    const int level = GetCurrentTransactionNestLevel();
    for (uint32_t i = places_held; i > 0; i--) {
        HeldPlace &h = held[i - 1];
        if (h.nest_level < level)
            continue;
        if (event == SUBXACT_EVENT_ABORT_SUB)
            Leave(i - 1);
        else if (event == SUBXACT_EVENT_COMMIT_SUB)
            h.nest_level = level - 1;
    }
}

void OnExit(int, Datum)
{
    LeaveAllQueries();
}

void Hold(const void *query_desc, RulePlace place)
{
    static bool registered = false;
    held[places_held++] = {query_desc, GetCurrentTransactionNestLevel(), place};
    if (registered)
        return;
    on_shmem_exit(OnExit, 0);
    RegisterSubXactCallback(OnSubtransaction, nullptr);
    registered = true;
}

// ---- Judging ----

// The later a client comes back the better; not all together.
double RetrySeconds(const QueryRuleSpec &rule, int64_t now)
{
    double earliest = 0.5;
    if (rule.max_active == kBlocked) {
        const double left = static_cast<double>(rule.expires_at - now) / 1e6;
        earliest = left > 30 ? 30 : left < 0.1 ? 0.1 : left;
    }
    return earliest * (1 + pg_prng_double(&pg_global_prng_state));
}

// In whatever encoding the database that made the rule had: ASCII is kept, anything invalid here is not.
char *ReasonText(const QueryRuleSpec &rule)
{
    char *text = pnstrdup(rule.reason, rule.reason_length);
    if (!pg_verifymbstr(text, static_cast<int>(rule.reason_length), true))
        for (char *c = text; *c != '\0'; c++)
            if (IS_HIGHBIT_SET(*c))
                *c = '?';
    return text;
}

[[noreturn]] void Refuse(const QueryRuleSpec &rule, int64_t now)
{
    const bool blocked = rule.max_active == kBlocked;
    const auto query_id = static_cast<long long>(rule.query_id);
    const char *reason = rule.reason_length == 0 ? "none given" : ReasonText(rule);
    ereport(ERROR,
            (errcode(ERRCODE_TOO_MANY_CONNECTIONS),
             blocked ? errmsg("this query is blocked") : errmsg("this query runs too many times at once"),
             blocked
                 ? errdetail("Rule in weir.query_rules for query %lld: block. Reason: %s.", query_id, reason)
                 : errdetail("Rule in weir.query_rules for query %lld: at most %u at once. Reason: %s.",
                             query_id, rule.max_active, reason),
             errhint("Retry in about %.1f s.", RetrySeconds(rule, now))));
    pg_unreachable();
}

void SweepIfNobodyWrites(int64_t now)
{
    if (!LWLockConditionalAcquire(rules_lock, LW_EXCLUSIVE))
        return;
    SweepRules(&shared->rules, now);
    LWLockRelease(rules_lock);
}

bool Bypasses()
{
    return shared->settings.superuser_bypass.load(std::memory_order_relaxed) &&
           superuser_arg(GetSessionUserId());
}

// Returns whether a place is held.
bool Judge(uint64 query_id, const void *query_desc)
{
    if (MyBackendType != B_BACKEND || query_id == 0 || !MayHaveRule(shared->rules, query_id) || Bypasses())
        return false;

    const int64_t now = GetCurrentTimestamp();
    const bool room = places_held < kMaxPlacesHeld;
    RuleJudgement judgement;
    JudgeQuery(&shared->rules, query_id, now, room, &judgement);
    if (judgement.verdict == RuleVerdict::kBusy) {
        LWLockAcquire(rules_lock, LW_SHARED);
        JudgeQuery(&shared->rules, query_id, now, room, &judgement);
        LWLockRelease(rules_lock);
    }
    if (judgement.verdict == RuleVerdict::kExpired)
        SweepIfNobodyWrites(now);
    if (judgement.verdict == RuleVerdict::kRefuse && CurrentMode() == Mode::kEnforce)
        Refuse(judgement.spec, now);
    if (judgement.verdict != RuleVerdict::kRun || !room)
        return false;
    Hold(query_desc, judgement.place);
    return true;
}

// ---- The file ----

struct RuleFile {
    char bytes[kRuleFileMaxSize + 1]; // one more: a file that is too long is seen to be
    QueryRuleSpec specs[kMaxQueryRules];
    uint32_t count;
};

// Under rules_lock, before the change is made in shared memory: an error leaves everything as it was.
void SaveRules(RuleFile *file)
{
    const size_t size =
        WriteRuleFile(file->specs, file->count, reinterpret_cast<char(&)[kRuleFileMaxSize]>(file->bytes));
    WriteSmallFile(kFile, file->bytes, size);
}

// Null, or what is wrong with it. *found is false if there is none.
const char *ReadRules(RuleFile *file, bool *found)
{
    size_t size;
    const char *trouble = ReadSmallFile(kFile, file->bytes, sizeof(file->bytes), &size, found);
    if (trouble != nullptr || !*found)
        return trouble;
    return ReadRuleFile(file->bytes, size, file->specs, &file->count);
}

// ---- Changing rules ----

RuleFile *LockAndCopyRules(int64_t now)
{
    auto *file = static_cast<RuleFile *>(palloc(sizeof(RuleFile)));
    LWLockAcquire(rules_lock, LW_EXCLUSIVE);
    SweepRules(&shared->rules, now);
    file->count = CopyRules(shared->rules, now, file->specs);
    return file;
}

uint32_t PositionOf(const RuleFile &file, uint64_t query_id)
{
    uint32_t i = 0;
    while (i < file.count && file.specs[i].query_id != query_id)
        i++;
    return i;
}

void WarnIfQueriesHaveNoId()
{
    if (!IsQueryIdEnabled())
        ereport(WARNING, (errmsg("compute_query_id is off: no rule can match"),
                          errhint("Set compute_query_id to auto or on.")));
}

void MakeRule(const QueryRuleSpec &spec)
{
    WarnIfQueriesHaveNoId();
    RuleFile *file = LockAndCopyRules(spec.created_at);
    const uint32_t position = PositionOf(*file, spec.query_id);
    if (position == kMaxQueryRules)
        ereport(ERROR,
                (errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
                 errmsg("there are %u query rules already, which is the most there can be", kMaxQueryRules),
                 errhint("Drop one that is not needed with weir.drop_query_rule().")));
    file->specs[position] = spec;
    file->count = position == file->count ? file->count + 1 : file->count;
    SaveRules(file);
    SetRule(&shared->rules, spec);
    LWLockRelease(rules_lock);
    pfree(file);
}

bool DropRuleOf(uint64_t query_id)
{
    RuleFile *file = LockAndCopyRules(GetCurrentTimestamp());
    const uint32_t position = PositionOf(*file, query_id);
    const bool found = position != file->count;
    if (found) {
        file->specs[position] = file->specs[--file->count];
        SaveRules(file);
        DropRule(&shared->rules, query_id);
    }
    LWLockRelease(rules_lock);
    pfree(file);
    return found;
}

// ---- Arguments ----

uint64_t QueryIdArgument(FunctionCallInfo fcinfo)
{
    if (PG_ARGISNULL(0))
        ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("queryid must not be null")));
    const int64 query_id = PG_GETARG_INT64(0);
    if (query_id == 0)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("queryid must not be 0"),
                        errdetail("0 is what a query without an identifier shows."),
                        errhint("See pg_stat_activity.query_id or pg_stat_statements.queryid.")));
    return static_cast<uint64_t>(query_id);
}

void ReasonArgument(FunctionCallInfo fcinfo, int n, QueryRuleSpec *spec)
{
    if (PG_ARGISNULL(n))
        return;
    const text *reason = PG_GETARG_TEXT_PP(n);
    const size_t length = VARSIZE_ANY_EXHDR(reason);
    if (length > kMaxRuleReason)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("reason is too long"),
                        errdetail("It has %zu bytes, at most %zu are allowed.", length, kMaxRuleReason)));
    memcpy(spec->reason, VARDATA_ANY(reason), length);
    spec->reason_length = static_cast<uint32_t>(length);
}

// Absolute, so that it goes on over a restart.
int64_t ExpiryArgument(FunctionCallInfo fcinfo, int n, int64_t now)
{
    if (PG_ARGISNULL(n))
        return kNeverExpires;
    const TimestampTz expires_at = DatumGetTimestampTz(
        DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(now), PG_GETARG_DATUM(n)));
    if (expires_at <= now)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("ttl must be greater than 0")));
    return expires_at;
}

// ---- The view ----

constexpr int kColumns = 10;

void AddRow(ReturnSetInfo *result, const QueryRuleStatus &status)
{
    const QueryRuleSpec &spec = status.spec;
    const bool blocked = spec.max_active == kBlocked;
    const bool nulls[kColumns] = {
        false, false, blocked, spec.reason_length == 0,    false, spec.expires_at == kNeverExpires,
        false, false, false,   status.last_refused_at == 0};
    const Datum values[kColumns] = {Int64GetDatum(static_cast<int64>(spec.query_id)),
                                    CStringGetTextDatum(blocked ? "block" : "limit"),
                                    Int32GetDatum(static_cast<int32>(spec.max_active)),
                                    CStringGetTextDatum(ReasonText(spec)),
                                    TimestampTzGetDatum(spec.created_at),
                                    TimestampTzGetDatum(spec.expires_at),
                                    Int32GetDatum(static_cast<int32>(status.active)),
                                    Int64GetDatum(static_cast<int64>(status.hits)),
                                    Int64GetDatum(static_cast<int64>(status.refused)),
                                    TimestampTzGetDatum(status.last_refused_at)};
    if (result->setDesc->natts != kColumns)
        elog(ERROR, "pg_weir: the library and the SQL objects are of different versions");
    tuplestore_putvalues(result->setResult, result->setDesc, const_cast<Datum *>(values),
                         const_cast<bool *>(nulls));
}

} // namespace

void EnterQuery(uint64 query_id, const void *query_desc)
{
    Judge(query_id, query_desc);
}

void LeaveQuery(const void *query_desc)
{
    LeaveLatest(query_desc);
}

bool EnterUtility(uint64 query_id)
{
    return Judge(query_id, nullptr);
}

void LeaveUtility()
{
    LeaveLatest(nullptr);
}

void LeaveAllQueries()
{
    while (places_held > 0)
        Leave(places_held - 1);
}

void LeaveExecutions()
{
    for (uint32_t i = places_held; i > 0; i--)
        if (held[i - 1].query_desc != nullptr)
            Leave(i - 1);
}

void LoadQueryRules()
{
    auto *file = static_cast<RuleFile *>(palloc(sizeof(RuleFile)));
    bool found;
    const char *trouble = ReadRules(file, &found);
    if (trouble != nullptr)
        SetAside(kFile, trouble);
    else if (found) {
        for (uint32_t i = 0; i < file->count; i++)
            SetRule(&shared->rules, file->specs[i]);
        SweepRules(&shared->rules, GetCurrentTimestamp());
    }
    pfree(file);
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_limit_query)
{
    QueryRuleSpec spec = {};
    spec.query_id = QueryIdArgument(fcinfo);
    const int32 max_active = PG_ARGISNULL(1) ? 0 : PG_GETARG_INT32(1);
    if (max_active < 1 || max_active > static_cast<int32>(kMaxRuleActive))
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("max_active must be from 1 to %u", kMaxRuleActive),
                        errhint("To let no execution in, call weir.block_query().")));
    spec.max_active = static_cast<uint32_t>(max_active);
    spec.created_at = GetCurrentTimestamp();
    ReasonArgument(fcinfo, 2, &spec);
    spec.expires_at = ExpiryArgument(fcinfo, 3, spec.created_at);
    MakeRule(spec);
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_block_query)
{
    QueryRuleSpec spec = {};
    spec.query_id = QueryIdArgument(fcinfo);
    spec.max_active = kBlocked;
    spec.created_at = GetCurrentTimestamp();
    ReasonArgument(fcinfo, 1, &spec);
    spec.expires_at = ExpiryArgument(fcinfo, 2, spec.created_at);
    MakeRule(spec);
    PG_RETURN_VOID();
}

WEIR_SQL_FUNCTION(weir_drop_query_rule)
{
    PG_RETURN_BOOL(DropRuleOf(QueryIdArgument(fcinfo)));
}

// Rules are copied under the lock; rows, which may raise errors, are made after it.
WEIR_SQL_FUNCTION(weir_query_rules)
{
    const int64_t now = GetCurrentTimestamp();
    InitMaterializedSRF(fcinfo, 0);
    auto *result = reinterpret_cast<ReturnSetInfo *>(fcinfo->resultinfo);
    auto *statuses = static_cast<QueryRuleStatus *>(palloc(sizeof(QueryRuleStatus) * kMaxQueryRules));
    uint32_t count = 0;

    SweepIfNobodyWrites(now);
    LWLockAcquire(rules_lock, LW_SHARED);
    for (uint32_t i = 0; i < kMaxQueryRules; i++)
        if (RuleStatus(shared->rules, i, now, &statuses[count]))
            count++;
    LWLockRelease(rules_lock);
    for (uint32_t i = 0; i < count; i++)
        AddRow(result, statuses[i]);
    return 0;
}
