// The SQL function weir.submit().

#include "coalesce/submit.hpp"

#include <initializer_list>

#include "admission/transaction_gate.hpp"
#include "coalesce/interceptor.hpp"
#include "coalesce/lanes.hpp"
#include "coalesce/submit_keys.hpp"
#include "coalesce/submit_request.hpp"
#include "coalesce/submit_settings.hpp"
#include "coalesce/submit_unit.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "replicas/flow.hpp"
#include "stats/rows.hpp"

extern "C" {
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "nodes/execnodes.h"
#include "nodes/plannodes.h"
#include "optimizer/optimizer.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

// Below it units share flushes well enough by themselves, and the hand-off costs more than it saves.
constexpr uint32_t kCompanyForUnits = 6;

// After a unit was given back because it waited for a lock, has other settings than a worker can have, or ran
// for too long: the next ones of this session are not tried either.
constexpr int64_t kLockPenaltyUs = USECS_PER_SEC;
constexpr int64_t kSettingsPenaltyUs = 10 * USECS_PER_SEC;
constexpr int64_t kSlowPenaltyUs = 60 * USECS_PER_SEC;

// One in so many units with a key that run in their session forgets some outcomes: where there are no
// submitters, nobody else would.
constexpr uint32_t kForgetEach = 64;
constexpr int64_t kForgetAtOnce = 2 * kForgetEach;

Company *present_in = nullptr;
bool interrupts_held = false;
int64_t not_before = 0;
Oid known_function = InvalidOid; // weir.submit(), once this session has called it

SubmitShared &Statistics()
{
    return shared->submits;
}

// ---- whether a worker may have it -------------------------------------------------------------------

// Of SELECT weir.submit(...), or SELECT * FROM weir.submit(...), the node that is the call: when that has
// returned nothing is left that can fail. A function among its arguments may call us, too. Null: it is
// another statement.
const Node *BareCallOf(const QueryDesc *query_desc)
{
    const PlannedStmt *statement = query_desc->plannedstmt;
    const Plan *plan = statement->planTree;
    if (statement->commandType != CMD_SELECT || plan == nullptr || statement->subplans != NIL ||
        statement->hasModifyingCTE || plan->lefttree != nullptr || plan->qual != NIL ||
        plan->initPlan != NIL || list_length(plan->targetlist) != 1)
        return nullptr;
    const Node *target = reinterpret_cast<const Node *>(linitial_node(TargetEntry, plan->targetlist)->expr);
    if (IsA(plan, Result))
        return reinterpret_cast<const Result *>(plan)->resconstantqual == nullptr ? target : nullptr;
    if (!IsA(plan, FunctionScan) || !IsA(target, Var))
        return nullptr;
    const List *functions = reinterpret_cast<const FunctionScan *>(plan)->functions;
    return list_length(functions) == 1 ? linitial_node(RangeTblFunction, functions)->funcexpr : nullptr;
}

// Nobody's rights but the session's: no security-definer function, no index expression.
bool HasPlainIdentity()
{
    Oid user;
    int context;
    GetUserIdAndSecContext(&user, &context);
    return context == 0;
}

// A worker does not see the session's temporary tables, which may have the names of others.
bool HasTemporaryTables()
{
    Oid schema;
    Oid toast_schema;
    GetTempNamespaceState(&schema, &toast_schema);
    return OidIsValid(schema);
}

const QueryDesc *CurrentQuery()
{
    return ActivePortal != nullptr ? ActivePortal->queryDesc : nullptr;
}

Decline JudgeCall(const Node *call)
{
    const QueryDesc *query_desc = CurrentQuery();
    if (!IsClientBackend() || query_desc == nullptr || call == nullptr || BareCallOf(query_desc) != call ||
        !HasPlainIdentity())
        return Decline::kNested;
    return JudgeTransaction(query_desc);
}

Decline JudgeSession()
{
    if (CurrentMode() != Mode::kEnforce || !settings.coalesce || settings.submit_workers == 0)
        return Decline::kNoWorker;
    if (FlowIsEngaged() && FlowExemptsSession()) // the worker would wait for replicas
        return Decline::kNoWorker;
    if (HasTemporaryTables())
        return Decline::kTemporaryTables;
    if (not_before != 0 && MonotonicUs() < not_before)
        return Decline::kGivenBack;
    not_before = 0;
    return Decline::kNone;
}

uint32_t Join()
{
    if (present_in != nullptr)
        return present_in->peak.load(std::memory_order_relaxed);
    const Oid who[] = {MyDatabaseId, GetSessionUserId()};
    const uint32 hash = hash_bytes(reinterpret_cast<const unsigned char *>(who), sizeof(who));
    present_in = &Statistics().companies[hash % kSubmitCompanies];
    return present_in->Join();
}

void OnTransactionEnd(XactEvent event, void *)
{
    if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
        return;
    // An error has let them go already.
    if (interrupts_held && event == XACT_EVENT_COMMIT)
        RESUME_INTERRUPTS();
    interrupts_held = false;
    if (present_in != nullptr)
        present_in->Leave();
    present_in = nullptr;
}

// ---- the two ways -----------------------------------------------------------------------------------

bool Pack(Unit unit, RequestSlot *slot)
{
    static char own_settings[RequestSlot::kPayloadSize];
    unit.settings_size = static_cast<uint32_t>(CollectSettings(own_settings, sizeof(own_settings)));
    unit.settings = own_settings;
    unit.role = GetCurrentRoleId();
    return unit.settings_size <= sizeof(own_settings) &&
           PackUnit(unit, slot->payload, RequestSlot::kPayloadSize);
}

void Remember(GiveBack why)
{
    Statistics().given_back[static_cast<size_t>(why)].fetch_add(1, std::memory_order_relaxed);
    if (why == GiveBack::kRowLocked)
        not_before = MonotonicUs() + kLockPenaltyUs;
    if (why == GiveBack::kSettings)
        not_before = MonotonicUs() + kSettingsPenaltyUs;
    if (why == GiveBack::kTooSlow)
        not_before = MonotonicUs() + kSlowPenaltyUs;
}

void RaiseUnknown()
{
    ereport(ERROR,
            (errcode(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN),
             errmsg("the worker ended before the outcome of the unit was certain"),
             errhint("Submit it again if it had a key: with the same one. Otherwise look first whether "
                     "it was executed.")));
}

// Hands it to a worker. `done`: it was executed there. Otherwise the reason, or none: it was given back.
Decline Give(const Unit &unit, bool *done, int64 *rows)
{
    *done = false;
    if (Join() < kCompanyForUnits)
        return Decline::kAlone;
    Lane *lane = FindSubmitLane(GetSessionUserId());
    RequestSlot *slot = &request_slots[MyTicketId()];
    if (lane == nullptr || RequestSlot::StateOf(slot->Load()) != RequestState::kIdle)
        return Decline::kNoWorker;
    if (!Pack(unit, slot))
        return Decline::kTooLarge;
    const Verdict verdict = HandOver(slot, lane, &Statistics().waits);
    if (verdict == Verdict::kNotExecuted)
        Remember(slot->give_back);
    HeedInterrupts(verdict);
    if (verdict == Verdict::kNotExecuted)
        return Decline::kNone;
    if (verdict == Verdict::kUnknown)
        RaiseUnknown();
    ReportUnusual(verdict);
    EndIfAbandoned();
    // A cancel request that comes now comes too late: until the end of the transaction, which is all that is
    // left of it.
    HOLD_INTERRUPTS();
    interrupts_held = true;
    *done = true;
    *rows = UnitRows(slot->payload);
    return Decline::kNone;
}

void MaybeForget()
{
    static uint32_t units = 0;
    if (units++ % kForgetEach == static_cast<uint32_t>(MyProcPid) % kForgetEach)
        ForgetOutcomes(kForgetAtOnce);
}

int64 RunHere(const Unit &unit, bool is_bare_call)
{
    if (unit.key != nullptr)
        PreventCommandIfReadOnly("weir.submit() with a key");
    if (is_bare_call)
        TakeSlotAfterAll(CurrentQuery());
    const UnitOutcome outcome = ExecuteUnit(unit, is_bare_call ? UnitPlace::kCall : UnitPlace::kNested);
    if (outcome.replayed)
        Statistics().replayed.fetch_add(1, std::memory_order_relaxed);
    else if (unit.key != nullptr)
        MaybeForget();
    return outcome.rows;
}

int64 Submit(const Unit &unit, const Node *node)
{
    int64 rows = 0;
    bool done = false;
    const Decline call = JudgeCall(node);
    Decline why = call != Decline::kNone ? call : JudgeSession();
    if (why == Decline::kNone)
        why = Give(unit, &done, &rows);
    if (done)
        return rows;
    if (why != Decline::kNone) {
        Statistics().in_place[static_cast<size_t>(why)].fetch_add(1, std::memory_order_relaxed);
        ereport(DEBUG1, (errmsg_internal("pg_weir: unit executed by its own session: %s", DeclineName(why)),
                         errdetail_internal("%s", DeclineDetail(why))));
    }
    return RunHere(unit, call != Decline::kNested);
}

// ---- arguments --------------------------------------------------------------------------------------

void TakeParameters(ArrayType *array, Unit *unit)
{
    Datum *values;
    bool *nulls;
    int count;
    if (ARR_NDIM(array) > 1)
        ereport(ERROR, (errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR),
                        errmsg("the parameters of weir.submit() must be a one-dimensional array")));
    deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, &nulls, &count);
    if (static_cast<uint32_t>(count) > kMaxUnitParameters)
        ereport(ERROR,
                (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
                 errmsg("weir.submit() takes at most %u parameters, not %d", kMaxUnitParameters, count)));
    auto *parameters =
        static_cast<UnitParameter *>(palloc(sizeof(UnitParameter) * static_cast<Size>(count + 1)));
    for (int i = 0; i < count; i++) {
        const char *value = nulls[i] ? nullptr : TextDatumGetCString(values[i]);
        parameters[i] = {value, value != nullptr ? static_cast<uint32_t>(strlen(value)) : 0};
    }
    unit->parameters = parameters;
    unit->parameter_count = static_cast<uint32_t>(count);
}

void TakeKey(const char *key, Unit *unit)
{
    const size_t size = strlen(key);
    if (size == 0 || size > kMaxKeySize)
        ereport(ERROR,
                (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                 errmsg("a key of weir.submit() must have 1 to %u bytes, not %zu", kMaxKeySize, size)));
    unit->key = key;
    unit->key_size = static_cast<uint32_t>(size);
}

} // namespace

void SubmitShared::ResetStatistics() noexcept
{
    for (std::atomic<uint64_t> *counter : {&units, &rows, &batches, &replayed})
        counter->store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &counter : in_place)
        counter.store(0, std::memory_order_relaxed);
    for (std::atomic<uint64_t> &counter : given_back)
        counter.store(0, std::memory_order_relaxed);
    batch_units.Reset();
    waits.Reset();
}

bool MayBeSubmitted(const QueryDesc *query_desc)
{
    if (!OidIsValid(known_function))
        return false;
    const auto *call = reinterpret_cast<const FuncExpr *>(BareCallOf(query_desc));
    // What its arguments call is done here.
    if (call == nullptr || !IsA(call, FuncExpr) || call->funcid != known_function ||
        contain_volatile_functions(reinterpret_cast<Node *>(call->args)) || !IsClientBackend() ||
        !HasPlainIdentity() || JudgeTransaction(query_desc) != Decline::kNone ||
        JudgeSession() != Decline::kNone)
        return false;
    // Here already: who waits for a slot is company, too.
    return Join() >= kCompanyForUnits && FindSubmitLane(GetSessionUserId()) != nullptr;
}

void InstallSubmit()
{
    RegisterXactCallback(OnTransactionEnd, nullptr);
}

} // namespace weir

using namespace weir;

WEIR_SQL_FUNCTION(weir_submit)
{
    RequireShared();
    if (PG_ARGISNULL(0))
        ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
                        errmsg("the statements of weir.submit() must not be NULL")));
    Unit unit = {};
    unit.sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
    unit.sql_size = static_cast<uint32_t>(strlen(unit.sql));
    if (!PG_ARGISNULL(1))
        TakeParameters(PG_GETARG_ARRAYTYPE_P(1), &unit);
    if (!PG_ARGISNULL(2))
        TakeKey(text_to_cstring(PG_GETARG_TEXT_PP(2)), &unit);
    known_function = fcinfo->flinfo->fn_oid;
    PG_RETURN_INT64(Submit(unit, fcinfo->flinfo->fn_expr));
}
