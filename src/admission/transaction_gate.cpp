#include "admission/transaction_gate.hpp"

#include "admission/gate_session.hpp"
#include "admission/query_shedding.hpp"
#include "admission/refusal.hpp"
#include "admission/session_class.hpp"
#include "coalesce/interceptor.hpp"
#include "coalesce/lanes.hpp"
#include "coalesce/lazy.hpp"
#include "coalesce/opt_in.hpp"
#include "coalesce/submit.hpp"
#include "coalesce/submit_worker.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/snapshot.hpp"
#include "pg/wait.hpp"
#include "replicas/flow.hpp"
#include "replicas/read_your_writes.hpp"

extern "C" {
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid_d.h"
#include "catalog/pg_namespace_d.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "executor/executor.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

ExecutorStart_hook_type previous_executor_start;
ExecutorRun_hook_type previous_executor_run;
ExecutorEnd_hook_type previous_executor_end;
ProcessUtility_hook_type previous_process_utility;

Departure DepartureOf(Interrupt interrupt)
{
    static constexpr Departure departures[] = {Departure::kCount, Departure::kCancelled,
                                               Departure::kStatementTimeout, Departure::kTerminated};
    return departures[static_cast<int>(interrupt)];
}

// This backend's state. `judged`: the transaction that the gate has seen.
GateSession session = {&gate, &gate_lock, TransactionQueueWaitEvent, DepartureOf};
LocalTransactionId judged = InvalidLocalTransactionId;
LocalTransactionId left_to_worker = InvalidLocalTransactionId; // not judged: its statement is to be coalesced
int utility_depth = 0;

// After ShutdownPostgres has aborted the transaction and its locks are gone, before ProcKill gives the PGPROC
// away.
void OnProcessExit(int, Datum)
{
    session.Drop();
    gate.ticket(session.ticket).pid.store(0);
    gate.ticket(session.ticket).served.store(0);
}

void OnResourceRelease(ResourceReleasePhase phase, bool is_commit, bool is_top_level, void *)
{
    if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level)
        return;
    if (utility_depth > 0) {
        // A procedure's COMMIT or ROLLBACK: it goes on (an error ends the utility statement first).
        if (!is_commit)
            LeaveExecutions();
        return;
    }
    LeaveAllQueries();
    if (session.holding)
        session.Release();
    else
        session.Drop();
}

// ---- who is judged ------------------------------------------------------------------------------

// A transaction that began before the mode was switched on, or has written something, may hold locks: too
// late.
bool MayBeJudged()
{
    return !TransactionIdIsValid(GetTopTransactionIdIfAny()) &&
           GetCurrentTransactionStartTimestamp() >=
               shared->settings.mode_since.load(std::memory_order_relaxed);
}

bool IsMonitoringRelation(Oid relation)
{
    return get_rel_namespace(relation) == get_namespace_oid("weir", true);
}

// A member of pg_monitor that reads weir's views must see the storm while it lasts.
bool IsMonitoring(const QueryDesc *query_desc)
{
    if (query_desc == nullptr || query_desc->operation != CMD_SELECT ||
        !has_privs_of_role(GetUserId(), ROLE_PG_MONITOR))
        return false;
    bool reads_view = false;
    ListCell *cell;
    foreach (cell, query_desc->plannedstmt->rtable) {
        const auto *entry = lfirst_node(RangeTblEntry, cell);
        if (entry->rtekind != RTE_RELATION)
            continue;
        if (IsMonitoringRelation(entry->relid))
            reads_view = true;
        else if (get_rel_namespace(entry->relid) != PG_CATALOG_NAMESPACE)
            return false;
    }
    return reads_view;
}

void CountBypass(uint32_t class_id)
{
    gate.group(class_id).bypassed.fetch_add(1, std::memory_order_relaxed);
}

// ---- waiting ------------------------------------------------------------------------------------

// The way of a transaction that found no free slot, or whose class needs the lock to be judged.
template <typename Drop, typename Retake> void AdmitSlowly(uint32_t class_id, Drop drop, Retake retake)
{
    const int64_t began = MonotonicUs();
    switch (session.Enqueue(class_id, true, [](Admission) {})) {
    case Admission::kGranted:
        return;
    case Admission::kFull:
        RefuseQueueFull(class_id);
        return;
    case Admission::kQueued:
        break;
    }
    CallSupervisor();
    const DroppedSnapshot dropped = drop();
    switch (session.Wait(class_id, began, [=](int64_t waited) { return session.LeftUs(class_id, waited); })) {
    case WaitEnd::kTimedOut:
        RefuseTimedOut(class_id, MonotonicUs() - began);
        return;
    case WaitEnd::kClientGone:
        EndForLostClient();
        return;
    case WaitEnd::kHeld:
    case WaitEnd::kInterrupted:
        break;
    }
    retake(dropped);
}

void Observe(uint32_t class_id)
{
    GateClass &c = gate.group(class_id);
    session.holding = true;
    if (!gate.AcquireUncontrolled(session.ticket, class_id, GetCurrentStatementStartTimestamp()))
        return;
    c.queued.fetch_add(1, std::memory_order_relaxed);
    const uint32_t size = gate.shared().queue_size.load(std::memory_order_relaxed);
    const uint32_t limit = gate.shared().limit.load(std::memory_order_relaxed);
    if (size != 0 && gate.Active() > limit + size)
        session.CountDeparture(class_id, Departure::kRefused, 0);
}

void Register()
{
    if (session.ticket != kNoTicket)
        return;
    session.Register();
    on_shmem_exit(OnProcessExit, 0);
}

// Its statement is to be coalesced: it takes no slot, and is at work all the same when logins are paced.
void LeaveToWorker()
{
    Register();
    gate.CountServed(session.ticket);
    left_to_worker = CurrentLxid();
}

// Judges the transaction once. `query_desc` is null at BEGIN and for a utility statement.
template <typename Drop, typename Retake> void Judge(const QueryDesc *query_desc, Drop drop, Retake retake)
{
    judged = CurrentLxid();
    if (!IsClientBackend() || !MayBeJudged())
        return;
    Register();

    const uint32_t class_id = SessionClass();
    const bool bypass = shared->settings.superuser_bypass.load(std::memory_order_relaxed);
    if (bypass && SessionIsSuperuser()) {
        CountBypass(class_id);
        return;
    }
    if (CurrentMode() == Mode::kObserve) {
        Observe(class_id);
        return;
    }
    if (gate.TryAcquire(session.ticket, class_id, GetCurrentStatementStartTimestamp())) {
        session.holding = true;
        return;
    }
    // Asked last: it reads the catalogs, and matters only to one who would have to wait.
    if (bypass && IsMonitoring(query_desc)) {
        CountBypass(class_id);
        return;
    }
    AdmitSlowly(class_id, drop, retake);
}

bool NeedsJudgement()
{
    return judged != CurrentLxid() && utility_depth == 0 && !session.holding;
}

// The owner of a slot does something: it is not silent, and if its slot was lent it has it back.
void Touch()
{
    if (!session.holding)
        return;
    gate.Beat(session.ticket);
    gate.Reclaim(session.ticket);
}

// ---- hooks --------------------------------------------------------------------------------------

// Rules first: what they refuse must not wait for a slot before it hears of it.
void OnExecutorStart(QueryDesc *query_desc, int eflags)
{
    if (ActivePortal != nullptr && IsClientBackend()) {
        if (min_lsn_pending)
            HonourMinLsnBeforeQuery(query_desc);
        NoteQuery();
    }
    if (query_desc->operation != CMD_SELECT && (eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0 && HasQueued() &&
        !MayBeQueued(query_desc)) {
        // With a snapshot that sees them.
        const DroppedSnapshot dropped = DropStatementSnapshot(query_desc);
        AwaitOwnQueued();
        RetakeStatementSnapshot(dropped, query_desc);
    }
    if (CurrentMode() != Mode::kOff && (eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0) {
        if (QueryRulesInForce())
            EnterQuery(static_cast<uint64>(query_desc->plannedstmt->queryId), query_desc);
        // Without a portal it is the planner that evaluates a function, with a snapshot of its own that must
        // stay.
        if (NeedsJudgement() && ActivePortal != nullptr) {
            const bool select = query_desc->operation == CMD_SELECT;
            if (select ? MayBeSubmitted(query_desc) : !nothing_opted_in && MayBeCoalesced(query_desc))
                LeaveToWorker();
            else {
                if (FlowIsEngaged())
                    HoldWriter(query_desc);
                Judge(
                    query_desc, [=] { return DropStatementSnapshot(query_desc); },
                    [=](const DroppedSnapshot &dropped) { RetakeStatementSnapshot(dropped, query_desc); });
            }
        } else if (FlowIsEngaged())
            HoldWriter(query_desc);
    }
    if (previous_executor_start)
        previous_executor_start(query_desc, eflags);
    else
        standard_ExecutorStart(query_desc, eflags);
    if ((eflags & EXEC_FLAG_EXPLAIN_ONLY) == 0)
        PaceStatement(query_desc);
}

// Here, not in ExecutorStart: a cursor is run many times.
void OnExecutorRun(WEIR_EXECUTOR_RUN_PARAMETERS)
{
    Touch();
    if (query_desc->operation != CMD_SELECT && !nothing_opted_in) {
        if (RunCoalesced(query_desc))
            return;
        TakeSlotAfterAll(query_desc);
    }
    if (previous_executor_run)
        previous_executor_run(WEIR_EXECUTOR_RUN_ARGUMENTS);
    else
        standard_ExecutorRun(WEIR_EXECUTOR_RUN_ARGUMENTS);
}

void OnExecutorEnd(QueryDesc *query_desc)
{
    if (HoldsQueries())
        LeaveQuery(query_desc);
    EndPacing(query_desc);
    if (previous_executor_end)
        previous_executor_end(query_desc);
    else
        standard_ExecutorEnd(query_desc);
}

enum class UtilityKind { kFree, kBegin, kEnd, kWork };

// What a utility statement is to the gate. Free ones only touch the session; ending a transaction must never
// wait.
UtilityKind KindOf(const Node *statement)
{
    switch (nodeTag(statement)) {
    case T_TransactionStmt: {
        const TransactionStmtKind kind = reinterpret_cast<const TransactionStmt *>(statement)->kind;
        return kind == TRANS_STMT_BEGIN || kind == TRANS_STMT_START ? UtilityKind::kBegin : UtilityKind::kEnd;
    }
    case T_VariableSetStmt:
    case T_VariableShowStmt:
    case T_DiscardStmt:
    case T_ListenStmt:
    case T_UnlistenStmt:
    case T_NotifyStmt:
    case T_PrepareStmt:
    case T_DeallocateStmt:
    case T_FetchStmt:
    case T_ClosePortalStmt:
    case T_ConstraintsSetStmt:
    case T_CheckPointStmt:
    case T_LoadStmt:
    case T_AlterSystemStmt:
        return UtilityKind::kFree;
    default:
        return UtilityKind::kWork;
    }
}

// The database that a statement needs to be alone with; InvalidOid: none.
Oid DatabaseNeededAlone(const Node *statement)
{
    const char *name = nullptr;
    switch (nodeTag(statement)) {
    case T_DropdbStmt:
        name = reinterpret_cast<const DropdbStmt *>(statement)->dbname;
        break;
    case T_AlterDatabaseStmt: // SET TABLESPACE
        name = reinterpret_cast<const AlterDatabaseStmt *>(statement)->dbname;
        break;
    case T_RenameStmt:
        if (reinterpret_cast<const RenameStmt *>(statement)->renameType == OBJECT_DATABASE)
            name = reinterpret_cast<const RenameStmt *>(statement)->subname;
        break;
    case T_CreatedbStmt: {
        ListCell *cell;
        foreach (cell, reinterpret_cast<const CreatedbStmt *>(statement)->options) {
            auto *option = lfirst_node(DefElem, cell);
            if (strcmp(option->defname, "template") == 0 && option->arg != nullptr)
                name = defGetString(option);
        }
        break;
    }
    default:
        break;
    }
    return name != nullptr ? get_database_oid(name, true) : InvalidOid;
}

#define WEIR_UTILITY_PARAMETERS                                                                              \
    PlannedStmt *statement, const char *query, bool read_only_tree, ProcessUtilityContext context,           \
        ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *receiver,                     \
        QueryCompletion *completion
#define WEIR_UTILITY_ARGUMENTS                                                                               \
    statement, query, read_only_tree, context, parameters, environment, receiver, completion

void RunUtility(WEIR_UTILITY_PARAMETERS)
{
    // The statement must not be looked at afterwards.
    const Oid dropped =
        IsA(statement->utilityStmt, DropdbStmt) ? DatabaseNeededAlone(statement->utilityStmt) : InvalidOid;
    if (previous_process_utility)
        previous_process_utility(WEIR_UTILITY_ARGUMENTS);
    else
        standard_ProcessUtility(WEIR_UTILITY_ARGUMENTS);
    if (OidIsValid(dropped))
        DropQueuedOf(dropped);
}

void EndCountedUtility(bool holds_query)
{
    utility_depth--;
    if (holds_query)
        LeaveUtility();
}

// Counts the nesting, so that a commit inside the statement is told from its end.
void RunCountedUtility(bool holds_query, WEIR_UTILITY_PARAMETERS)
{
    utility_depth++;
    PG_TRY();
    {
        RunUtility(WEIR_UTILITY_ARGUMENTS);
    }
    PG_CATCH();
    {
        EndCountedUtility(holds_query);
        PG_RE_THROW();
    }
    PG_END_TRY();
    EndCountedUtility(holds_query);
}

void GateUtility(UtilityKind kind, WEIR_UTILITY_PARAMETERS)
{
    const bool holds_query = kind == UtilityKind::kWork && QueryRulesInForce() &&
                             EnterUtility(static_cast<uint64>(statement->queryId));
    if (kind == UtilityKind::kWork && FlowIsEngaged())
        HoldUtility(statement->utilityStmt, utility_depth == 0);
    if ((kind == UtilityKind::kBegin || kind == UtilityKind::kWork) && NeedsJudgement())
        Judge(nullptr, DropUtilitySnapshot, RetakeUtilitySnapshot);
    if (kind != UtilityKind::kEnd)
        Touch();
    if (kind != UtilityKind::kWork) {
        RunUtility(WEIR_UTILITY_ARGUMENTS);
        return;
    }
    RunCountedUtility(holds_query, WEIR_UTILITY_ARGUMENTS);
}

// A session may ask to read its own writes whatever the mode is.
void OnProcessUtility(WEIR_UTILITY_PARAMETERS)
{
    const Node *node = statement->utilityStmt;
    CheckUtilityOfUnit(statement->utilityStmt);
    // Asked now: the statement may be gone afterwards.
    const bool sets = nodeTag(node) == T_VariableSetStmt;
    const bool commits_prepared =
        nodeTag(node) == T_TransactionStmt &&
        reinterpret_cast<const TransactionStmt *>(node)->kind == TRANS_STMT_COMMIT_PREPARED;
    const UtilityKind kind = KindOf(node);
    const Oid alone = DatabaseNeededAlone(node);
    if (OidIsValid(alone))
        EndWorkersOf(alone);
    MindQueued(statement->utilityStmt);
    if (IsClientBackend()) {
        if (min_lsn_pending && (kind == UtilityKind::kBegin || kind == UtilityKind::kWork))
            HonourMinLsnBeforeUtility();
        if (kind == UtilityKind::kWork)
            NoteQuery();
    }
    if (CurrentMode() == Mode::kOff)
        RunUtility(WEIR_UTILITY_ARGUMENTS);
    else
        GateUtility(kind, WEIR_UTILITY_ARGUMENTS);
    if (commits_prepared)
        NoteCommit(XactLastRecEnd);
    if (sets && min_lsn_pending && IsClientBackend())
        HonourMinLsnAfterSet();
}

} // namespace

bool IsClientBackend()
{
    return MyBackendType == B_BACKEND && !am_walsender && MyProcPort != nullptr;
}

void TakeSlotAfterAll(const QueryDesc *query_desc)
{
    // Its snapshot stays, the executor has it in hand.
    if (CurrentMode() == Mode::kOff || left_to_worker != CurrentLxid() || !NeedsJudgement())
        return;
    if (FlowIsEngaged())
        HoldLateWriter(query_desc);
    Judge(
        query_desc, [] { return DroppedSnapshot(); }, [](const DroppedSnapshot &) {});
}

void LendSlot()
{
    if (session.holding && gate.Lend(session.ticket, gate.ticket(session.ticket).word.load(), false) &&
        gate.Waiting() > 0)
        DispatchSlots(&gate, gate_lock);
}

void TakeSlotBack()
{
    Touch();
}

void InstallTransactionGate()
{
    previous_executor_start = ExecutorStart_hook;
    ExecutorStart_hook = OnExecutorStart;
    previous_executor_run = ExecutorRun_hook;
    ExecutorRun_hook = OnExecutorRun;
    previous_executor_end = ExecutorEnd_hook;
    ExecutorEnd_hook = OnExecutorEnd;
    previous_process_utility = ProcessUtility_hook;
    ProcessUtility_hook = OnProcessUtility;
    RegisterResourceReleaseCallback(OnResourceRelease, nullptr);
}

} // namespace weir
