#include "coalesce/submit_worker.hpp"

#include "coalesce/lane_worker.hpp"
#include "coalesce/submit.hpp"
#include "coalesce/submit_keys.hpp"
#include "coalesce/submit_request.hpp"
#include "coalesce/submit_settings.hpp"
#include "coalesce/submit_unit.hpp"
#include "coalesce/worker.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/together.hpp"
#include "replicas/flow.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "commands/trigger.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kIdleUs = 30 * USECS_PER_SEC; // then the worker ends
constexpr long kNapMs = 1000;
constexpr uint32_t kMostGuarded = 60;       // units in a batch of subtransactions
constexpr uint32_t kGuardedBatches = 50;    // after a failure
constexpr int kUnitMs = 1000;               // a unit that takes longer is its session's own
constexpr int64_t kBatchUs = USECS_PER_SEC; // a batch that has taken so long begins no more units
constexpr int64_t kForgetEachUs = 5 * USECS_PER_SEC;
constexpr int64_t kForgetAtOnce = 1000;

struct Entry {
    RequestSlot *slot;
    uint32_t session; // PGPROC number
    int64 rows;
    GiveBack give_back; // kNone: it is of the batch
};

struct Batch {
    uint32_t number;
    uint32_t count;
    Entry *entries;
    uint32_t at; // the unit that is being executed; `count`: none
    uint64_t replayed;
    bool impatient; // it has waited for a lock in vain: it waits for no other
};

Lane *lane = nullptr;
Batch batch;
uint32_t *sessions = nullptr;
uint32_t next_session = 0; // where the next scan begins
uint32_t guarded = 0;      // batches still to be run with subtransactions
int64_t unit_began = 0;
int unit_error = 0;    // SQLSTATE of what has been reported by the unit, whether or not its code caught it
int64_t forget_at = 0; // when outcomes of keys are to be forgotten again
bool was_superuser = false; // the role, when we connected
UnitParameter *parameters = nullptr;
MemoryContext unit_context = nullptr;

// ---- taking and answering -------------------------------------------------------------------------

uint32_t MostUnits()
{
    const auto most = static_cast<uint32_t>(settings.coalesce_max_batch);
    return guarded > 0 ? Min(most, kMostGuarded) : most;
}

// Into the batch, unless `why` says that they are to be given back.
void TakeInto(uint32_t room, GiveBack why)
{
    TakeRequests(*lane, batch.number, &next_session, sessions, room,
                 [why](RequestSlot *slot, uint32_t session) {
                     batch.entries[batch.count++] = {slot, session, 0, why};
                 });
}

bool Collect()
{
    TakeInto(MostUnits(), GiveBack::kNone);
    return batch.count > 0;
}

void CountBatch(uint32_t units, uint64_t rows)
{
    SubmitShared &statistics = shared->submits;
    if (units == 0)
        return;
    statistics.units.fetch_add(units, std::memory_order_relaxed);
    statistics.rows.fetch_add(rows, std::memory_order_relaxed);
    statistics.replayed.fetch_add(batch.replayed, std::memory_order_relaxed);
    statistics.batches.fetch_add(1, std::memory_order_relaxed);
    statistics.batch_units.Record(units);
}

// Answers everybody, each with the batch's verdict unless it was left out, and wakes them.
void EndBatch(Verdict verdict)
{
    lane->commit_end.store(XactLastCommitEnd);
    uint32_t count = 0;
    uint32_t units = 0;
    uint64_t rows = 0;
    for (uint32_t i = 0; i < batch.count; i++) {
        const Entry &entry = batch.entries[i];
        const bool executed = entry.give_back == GiveBack::kNone && verdict != Verdict::kNotExecuted;
        if (executed) {
            units++;
            rows += static_cast<uint64_t>(entry.rows);
            SetUnitRows(entry.slot->payload, entry.rows);
        }
        sessions[count++] = entry.session;
        entry.slot->Finish(executed ? verdict : Verdict::kNotExecuted, entry.give_back, 0);
    }
    CountBatch(units, rows);
    WakeTogether(lane->wake.End(batch.number), sessions, count);
    batch.count = 0;
    batch.number++;
    lane->xid.store(InvalidTransactionId); // must not speak for the next batch
}

void GiveAllBack(GiveBack why)
{
    for (uint32_t i = 0; i < batch.count; i++)
        if (batch.entries[i].give_back == GiveBack::kNone)
            batch.entries[i].give_back = why;
    EndBatch(Verdict::kNotExecuted);
}

bool AnyLeft()
{
    for (uint32_t i = 0; i < batch.count; i++)
        if (batch.entries[i].give_back == GiveBack::kNone)
            return true;
    return false;
}

// ---- a unit ---------------------------------------------------------------------------------------

// What no transaction's end would undo, for a unit that is to be left out: an error does.
void RefuseUnit(Entry *entry, GiveBack why)
{
    entry->give_back = why;
    ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg_internal("unit belongs to its session")));
}

void CheckTemporaryTables(Entry *entry)
{
    if ((MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE) != 0)
        RefuseUnit(entry, GiveBack::kStatement);
}

// After an error in that unit: why it is given back.
void LeaveOut(Entry *entry, int sqlstate)
{
    if (entry->give_back != GiveBack::kNone)
        return;
    const bool locked = sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED;
    const bool slow = sqlstate == ERRCODE_QUERY_CANCELED &&
                      MonotonicUs() - unit_began >= kUnitMs * static_cast<int64_t>(1000);
    batch.impatient = batch.impatient || locked;
    entry->give_back = locked ? GiveBack::kRowLocked : slow ? GiveBack::kTooSlow : GiveBack::kError;
}

void OnReport(void *)
{
    const int code = geterrcode();
    const int category = ERRCODE_TO_CATEGORY(code);
    if (unit_error == 0 && category != ERRCODE_SUCCESSFUL_COMPLETION && category != ERRCODE_WARNING)
        unit_error = code;
}

// What an earlier unit may have left, in this batch or in another attempt, and a session of its own would not
// have. What is left at the batch's end is CleanSession()'s.
void ForgetEarlierUnit()
{
    PortalHashTableDeleteAll();
    DropAllPreparedStatements();
    LockReleaseSession(USER_LOCKMETHOD);
    ResetSequenceCaches();
}

// With the session's settings and role in force. A function that catches an error would go on with what only
// we are to blame for: a lock that we do not wait for, a currval() that we do not have.
void RunUnit(Entry *entry, const Unit &unit)
{
    SetCurrentStatementStartTimestamp();
    pgstat_report_activity(STATE_RUNNING, unit.sql);
    ErrorContextCallback watch = {error_context_stack, OnReport, nullptr};
    error_context_stack = &watch;
    unit_error = 0;
    const UnitOutcome outcome = ExecuteUnit(unit, UnitPlace::kWorker);
    if (outcome.refused) {
        error_context_stack = watch.previous;
        entry->give_back = GiveBack::kStatement;
        return;
    }
    // What a commit would check now.
    AfterTriggerFireDeferred();
    error_context_stack = watch.previous;
    if (unit_error != 0) {
        LeaveOut(entry, unit_error);
        RefuseUnit(entry, entry->give_back);
    }
    CheckTemporaryTables(entry);
    entry->rows = outcome.rows;
    batch.replayed += outcome.replayed;
}

void BeginClock()
{
    unit_began = MonotonicUs();
    enable_timeout_after(STATEMENT_TIMEOUT, kUnitMs);
}

// If it has struck, and nobody has noticed, the next unit must not be told.
void EndClock()
{
    disable_timeout(STATEMENT_TIMEOUT, true);
    if (get_timeout_indicator(STATEMENT_TIMEOUT, true))
        QueryCancelPending = false;
}

void ExecuteEntry(Entry *entry)
{
    Unit unit;
    if (!ReadUnit(entry->slot->payload, RequestSlot::kPayloadSize, &unit, parameters)) {
        entry->give_back = GiveBack::kError;
        return;
    }
    MemoryContextSwitchTo(unit_context);
    ForgetEarlierUnit();
    const int level = NewGUCNestLevel();
    if (TakeOverSettings(unit.settings, unit.settings_size, unit.role)) {
        BeginClock();
        RunUnit(entry, unit);
        EndClock();
    } else
        entry->give_back = GiveBack::kSettings;
    AtEOXact_GUC(false, level);
    MemoryContextReset(unit_context);
}

// ---- the transaction ------------------------------------------------------------------------------

// A lock that was waited for in vain will not be free for the next unit either.
void SetLockTimeout()
{
    char text[32];
    const int timeout_ms = Max(Min(settings.coalesce_lock_timeout_ms, DeadlockTimeout / 2), 1);
    snprintf(text, sizeof(text), "%d", batch.impatient ? 1 : timeout_ms);
    if (LockTimeout != (batch.impatient ? 1 : timeout_ms))
        SetConfigOption("lock_timeout", text, PGC_SUSET, PGC_S_OVERRIDE);
}

void GuardUnit(Entry *entry)
{
    const MemoryContext context = CurrentMemoryContext;
    const ResourceOwner owner = CurrentResourceOwner;
    BeginInternalSubTransaction(nullptr);
    PG_TRY();
    {
        ExecuteEntry(entry);
        if (entry->give_back == GiveBack::kNone)
            ReleaseCurrentSubTransaction();
        else
            RollbackAndReleaseCurrentSubTransaction();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        const int sqlstate = geterrcode();
        FlushErrorState();
        EndClock();
        RollbackAndReleaseCurrentSubTransaction();
        MyXactFlags &= ~XACT_FLAGS_ACCESSEDTEMPNAMESPACE;
        LeaveOut(entry, sqlstate);
        SetLockTimeout();
        guarded = kGuardedBatches;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    CurrentResourceOwner = owner;
}

void ExecuteBatch(bool guard)
{
    const MemoryContext context = CurrentMemoryContext;
    const int64_t began = MonotonicUs();
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    // A session keeps some of what its role was when it connected. Ours must not lend that to younger ones.
    if (superuser_arg(GetSessionUserId()) != was_superuser)
        ereport(FATAL, (errmsg("terminating pg_weir submitter: its role has been altered")));
    for (batch.at = 0; batch.at < batch.count; batch.at++) {
        Entry *entry = &batch.entries[batch.at];
        if (entry->give_back != GiveBack::kNone)
            continue;
        if (MonotonicUs() - began > kBatchUs) {
            entry->give_back = GiveBack::kBatchMate;
            continue;
        }
        MemoryContextSwitchTo(context);
        if (guard)
            GuardUnit(entry);
        else
            ExecuteEntry(entry);
    }
    if (!AnyLeft()) {
        AbortCurrentTransaction();
        return;
    }
    lane->xid.store(GetTopTransactionIdIfAny());
    CommitTransactionCommand();
}

// One attempt. False: an error ended it.
bool Attempt(bool guard)
{
    const MemoryContext context = CurrentMemoryContext;
    volatile bool committed = true;
    lane->xid.store(InvalidTransactionId);
    batch.replayed = 0;
    batch.at = batch.count;
    SetLockTimeout();
    PG_TRY();
    {
        ExecuteBatch(guard);
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        const int sqlstate = geterrcode();
        FlushErrorState();
        EndClock();
        AbortCurrentTransaction();
        const TransactionId xid = lane->xid.load();
        committed = TransactionIdIsValid(xid) && TransactionIdDidCommit(xid);
        if (!committed && batch.at < batch.count)
            LeaveOut(&batch.entries[batch.at], sqlstate);
        guarded = kGuardedBatches;
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    return committed;
}

// What units may have left in the session. None of this needs a transaction, or can fail for a reason.
void CleanSession()
{
    PortalHashTableDeleteAll();
    DropAllPreparedStatements();
    LockReleaseAll(USER_LOCKMETHOD, true);
    MemoryContextReset(unit_context);
}

void RunBatch()
{
    int strongest = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
    for (uint32_t i = 0; i < batch.count; i++)
        strongest = Max(strongest, static_cast<int>(batch.entries[i].slot->synchronous_commit));
    UseSynchronousCommit(strongest);
    batch.impatient = false;
    // An error that is nobody's in particular, as of the commit itself, gives all back.
    bool committed = Attempt(guarded > 0);
    if (!committed && batch.at < batch.count && AnyLeft())
        committed = Attempt(true);
    guarded -= guarded > 0 ? 1 : 0;
    if (committed)
        EndBatch(VerdictOfCommit());
    else
        GiveAllBack(GiveBack::kBatchMate);
    CleanSession();
}

// ---- forgetting outcomes of keys ------------------------------------------------------------------

void Forget()
{
    const MemoryContext context = CurrentMemoryContext;
    volatile uint64 forgotten = 0;
    // Nobody waits for it, and a crash loses nothing.
    SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
    PG_TRY();
    {
        SetCurrentStatementStartTimestamp();
        StartTransactionCommand();
        PushActiveSnapshot(GetTransactionSnapshot());
        forgotten = ForgetOutcomes(kForgetAtOnce);
        PopActiveSnapshot();
        CommitTransactionCommand();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        EmitErrorReport();
        FlushErrorState();
        AbortCurrentTransaction();
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    forget_at = MonotonicUs() + (forgotten == kForgetAtOnce ? 0 : kForgetEachUs);
}

// ---- coming and going -----------------------------------------------------------------------------

void LeaveLane()
{
    EndService(lane, [] {
        batch.count = 0;
        TakeInto(static_cast<uint32_t>(kMaxCoalesceBatch), GiveBack::kWorkerEnding);
        lane->wake.opening.store(batch.number + 1);
        EndBatch(Verdict::kNotExecuted);
    });
    lane->database.store(InvalidOid);
    lane->state.store(static_cast<uint32_t>(LaneState::kFree), std::memory_order_seq_cst);
}

// Before the server's own callback aborts the transaction, and while the lane's clients wait.
void OnWorkerExit(int, Datum)
{
    if (lane->ticket.load() != MyTicketId() + 1)
        return;
    AbortOutOfAnyTransaction();
    if (batch.count > 0) {
        const TransactionId xid = lane->xid.load();
        if (TransactionIdIsValid(xid) && TransactionIdDidCommit(xid))
            EndBatch(IsReplicated() ? Verdict::kCommitted : Verdict::kUnknown);
        else
            GiveAllBack(GiveBack::kWorkerEnding);
    }
    LeaveLane();
}

void Allocate()
{
    MemoryContextSwitchTo(TopMemoryContext);
    batch.entries = static_cast<Entry *>(palloc(sizeof(Entry) * kMaxCoalesceBatch));
    sessions = static_cast<uint32_t *>(palloc(sizeof(uint32_t) * kMaxCoalesceBatch));
    parameters = static_cast<UnitParameter *>(palloc(sizeof(UnitParameter) * kMaxUnitParameters));
    unit_context = AllocSetContextCreate(TopMemoryContext, "pg_weir unit", ALLOCSET_DEFAULT_SIZES);
}

void Override(const char *setting, const char *value)
{
    if (GetConfigOption(setting, true, false) != nullptr) // 17 has another one
        SetConfigOption(setting, value, PGC_SUSET, PGC_S_OVERRIDE);
}

// What submit_settings.hpp leaves out. A batch is a plain transaction, and the worker has its own clock.
void SetOwnSettings()
{
    Override("default_transaction_isolation", "read committed");
    Override("default_transaction_read_only", "off");
    Override("default_transaction_deferrable", "off");
    Override("statement_timeout", "0");
    Override("transaction_timeout", "0");
    Override("idle_in_transaction_session_timeout", "0");
    SetLockTimeout();
}

// Until a request comes; at most a while.
void Sleep()
{
    static const uint32 wait_event = NewWaitEvent("WeirSubmitter");
    pgstat_report_activity(STATE_IDLE, nullptr);
    SleepUntilRung(lane, kNapMs, wait_event, [] { return false; });
}

// Asked outside of transactions, where no catalog can be read.
bool IsOfSuperuser()
{
    const char *is_superuser = GetConfigOption("is_superuser", true, false);
    return is_superuser != nullptr && strcmp(is_superuser, "on") == 0;
}

bool MustNotWait()
{
    return lane->stop.load(std::memory_order_relaxed) != 0;
}

// Before requests are taken: until then their clients may take them back. What comes meanwhile makes the
// batch larger.
void WaitForReplicas()
{
    if (FlowIsEngaged() && !IsOfSuperuser() && HasRequests(*lane)) {
        lane->throttled.store(1);
        HoldWorker(MustNotWait);
    }
}

void Serve()
{
    int64_t idle_since = MonotonicUs();
    while (lane->stop.load(std::memory_order_relaxed) == 0) {
        QueryCancelPending = false; // there is no unit to cancel
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ProcessConfigFile(PGC_SIGHUP);
        }
        WaitForReplicas();
        const bool found = Collect();
        lane->throttled.store(0);
        if (found) {
            // From here on clients that see themselves queued wait for the next batch.
            lane->wake.opening.store(batch.number + 1, std::memory_order_seq_cst);
            RunBatch();
            pgstat_report_stat(false);
            idle_since = MonotonicUs();
        }
        if (MonotonicUs() >= forget_at)
            Forget();
        else if (MonotonicUs() - idle_since > kIdleUs)
            return;
        else
            Sleep();
    }
}

} // namespace

void CheckUtilityOfUnit(const Node *statement)
{
    if (batch.at < batch.count && IsA(statement, ConstraintsSetStmt))
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg_internal("SET CONSTRAINTS would be for all units of the batch")));
}

} // namespace weir

void weir_submitter_main(Datum argument)
{
    using namespace weir;

    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    lane = &shared->coalescing.lanes[DatumGetUInt32(argument)];
    const Oid role = lane->role.load();
    if (lane->State() != LaneState::kStarting || !OidIsValid(role))
        return;
    BackgroundWorkerInitializeConnectionByOid(lane->database.load(), role, 0);
    process_session_preload_libraries(); // as for any session of the role
    was_superuser = GetSessionUserIsSuperuser();
    Allocate();
    SetOwnSettings();
    before_shmem_exit(OnWorkerExit, 0);
    if (!EnterLane(lane, GetSessionUserId()))
        return;
    batch.number = lane->wake.opening.load();
    Serve();
    proc_exit(0);
}
