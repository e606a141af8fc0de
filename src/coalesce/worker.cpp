#include "coalesce/worker.hpp"

#include "coalesce/lanes.hpp"
#include "coalesce/large_payload.hpp"
#include "coalesce/row_writer.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"
#include "pg/together.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kIdleUs = 30 * USECS_PER_SEC; // then the worker ends
constexpr long kNapMs = 1000;
constexpr int kAttempts = 3;
constexpr uint32_t kCarefulBatches = 100; // after a failure: so many look for duplicates first

Lane *lane = nullptr;
Batch batch;
uint32_t next_session = 0; // where the next scan begins
uint32_t careful = 0;
uint32_t *sessions = nullptr;

uint32_t MostRequests()
{
    return static_cast<uint32_t>(settings.coalesce_max_batch);
}

// ---- taking and answering -------------------------------------------------------------------------

// Takes what waits, in addition to what was taken. Returns whether anything is there to do.
bool Collect()
{
    const uint32_t room = MostRequests() > batch.count ? MostRequests() - batch.count : 0;
    const uint32_t found =
        RequestBitmap::Drain(RequestsOf(LaneIndex(*lane)), SessionCount(), next_session, sessions, room);
    for (uint32_t i = 0; i < found; i++) {
        RequestSlot *slot = &request_slots[sessions[i]];
        if (slot->Take(batch.number))
            batch.entries[batch.count++] = {slot, sessions[i], 0, GiveBack::kNone, false, false};
        next_session = (sessions[i] + 1) % SessionCount();
    }
    return batch.count > 0;
}

void PlanBatch()
{
    for (uint32_t i = 0; i < batch.count; i++)
        batch.planned[i] = {batch.entries[i].slot, i};
    SortBatch(batch.planned, batch.count);
}

void Count(const BatchEntry &entry, uint32_t *of_table)
{
    TableStatistics &table = shared->coalescing.tables[entry.slot->statistics];
    table.requests.fetch_add(1, std::memory_order_relaxed);
    table.rows.fetch_add(entry.affected, std::memory_order_relaxed);
    table.folded.fetch_add(entry.folded, std::memory_order_relaxed);
    table.bytes.fetch_add(entry.slot->bytes, std::memory_order_relaxed);
    of_table[entry.slot->statistics]++;
}

void CountBatch(uint32_t *of_table)
{
    for (uint32_t i = 0; i < kCoalescedTables; i++) {
        if (of_table[i] == 0)
            continue;
        TableStatistics &table = shared->coalescing.tables[i];
        table.batches.fetch_add(1, std::memory_order_relaxed);
        table.batch_requests.Record(of_table[i]);
        of_table[i] = 0;
    }
}

// Answers everybody, each with the batch's verdict unless it was left out, and wakes them.
void EndBatch(Verdict verdict)
{
    static uint32_t of_table[kCoalescedTables];
    uint32_t count = 0;
    for (uint32_t i = 0; i < batch.count; i++) {
        const BatchEntry &entry = batch.entries[i];
        const bool left_out = entry.give_back != GiveBack::kNone;
        if (!left_out && verdict != Verdict::kNotExecuted)
            Count(entry, of_table);
        sessions[count++] = entry.session;
        const Verdict how = left_out ? Verdict::kNotExecuted : verdict;
        if (how == Verdict::kNotExecuted)
            FreeReturnedRow(entry.slot);
        if (!entry.slot->TryFinish(how, entry.give_back, entry.affected)) {
            FreeLargePayloads(entry.slot);
            entry.slot->Drop();
        }
    }
    CountBatch(of_table);
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

// ---- the transaction ------------------------------------------------------------------------------

const char *NameOfSynchronousCommit(int level)
{
    return level == SYNCHRONOUS_COMMIT_REMOTE_APPLY   ? "remote_apply"
           : level == SYNCHRONOUS_COMMIT_REMOTE_FLUSH ? "on"
           : level == SYNCHRONOUS_COMMIT_REMOTE_WRITE ? "remote_write"
                                                      : "local";
}

// The strongest that a member asks for: a batch is never less durable than any of its statements.
void SetSynchronousCommit()
{
    int strongest = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
    for (uint32_t i = 0; i < batch.count; i++)
        strongest = Max(strongest, static_cast<int>(batch.entries[i].slot->synchronous_commit));
    UseSynchronousCommit(strongest);
}

} // namespace

// By its name: the setting's assign hook tells the server what to wait for.
void UseSynchronousCommit(int level)
{
    if (synchronous_commit != level)
        SetConfigOption("synchronous_commit", NameOfSynchronousCommit(level), PGC_SUSET, PGC_S_OVERRIDE);
}

// The wait for the standbys can be interrupted after the commit: whoever asked for it must hear of that.
// After a cancel the server warns and reports success, so our clients do; when it is terminated, or the
// postmaster has died (it then sets ProcDiePending), it says nothing any more, and our clients are told that
// nobody knows: the commit may be lost when a standby is promoted.
bool IsReplicated()
{
    if (!SyncRepRequested())
        return true;
    const int mode = synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_WRITE   ? SYNC_REP_WAIT_WRITE
                     : synchronous_commit == SYNCHRONOUS_COMMIT_REMOTE_APPLY ? SYNC_REP_WAIT_APPLY
                                                                             : SYNC_REP_WAIT_FLUSH;
    LWLockAcquire(SyncRepLock, LW_SHARED);
    const bool replicated = !SyncStandbysAreDefined() || WalSndCtl->lsn[mode] >= XactLastCommitEnd;
    LWLockRelease(SyncRepLock);
    return replicated;
}

Verdict VerdictOfCommit()
{
    return IsReplicated()   ? Verdict::kCommitted
           : ProcDiePending ? Verdict::kUnknown
                            : Verdict::kCommittedLocally;
}

namespace
{

bool AllLeftOut()
{
    for (uint32_t i = 0; i < batch.count; i++)
        if (batch.entries[i].give_back == GiveBack::kNone)
            return false;
    return true;
}

void Execute()
{
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    PushActiveSnapshot(GetTransactionSnapshot());
    WriteBatch(&batch);
    PopActiveSnapshot();
    lane->xid.store(GetTopTransactionIdIfAny());
    CommitTransactionCommand();
}

// After an error: whom it concerned is given back.
void LeaveCulpritsOut(int sqlstate)
{
    const bool locked = sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED;
    if (locked && batch.culprits > 0)
        RememberLockedRow(*batch.planned[batch.culprit].slot);
    if (batch.culprits == 0) { // nobody's in particular
        for (uint32_t i = 0; i < batch.count; i++)
            if (batch.entries[i].give_back == GiveBack::kNone)
                batch.entries[i].give_back = GiveBack::kError;
        return;
    }
    for (uint32_t i = 0; i < batch.culprits; i++)
        batch.EntryOf(batch.culprit + i).give_back = locked ? GiveBack::kRowLocked : GiveBack::kError;
}

// One attempt. False: an error ended it; those it concerned are left out.
bool Attempt()
{
    const MemoryContext context = CurrentMemoryContext;
    volatile bool committed = true;
    lane->xid.store(InvalidTransactionId);
    batch.culprits = 0;
    PG_TRY();
    {
        Execute();
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        ErrorData *error = CopyErrorData();
        FlushErrorState();
        AbortCurrentTransaction();
        MemoryContextSwitchTo(context);
        const TransactionId xid = lane->xid.load();
        committed = TransactionIdIsValid(xid) && TransactionIdDidCommit(xid);
        if (!committed) {
            LeaveCulpritsOut(error->sqlerrcode);
            careful = kCarefulBatches;
            ereport(DEBUG1, (errmsg_internal("pg_weir: batch of %u requests tried again: %s", batch.count,
                                             error->message)));
        }
        FreeErrorData(error);
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    return committed;
}

void RunBatch()
{
    PlanBatch();
    SetSynchronousCommit();
    for (int i = 0; i < kAttempts; i++) {
        batch.checks_unique = careful > 0;
        if (Attempt()) {
            careful -= careful > 0 ? 1 : 0;
            EndBatch(VerdictOfCommit());
            return;
        }
        if (AllLeftOut())
            break;
    }
    GiveAllBack(GiveBack::kBatchMate);
}

// ---- coming and going -----------------------------------------------------------------------------

// Nobody new is served: whoever published before that is given back.
void LeaveLane()
{
    lane->state.store(static_cast<uint32_t>(LaneState::kEnding), std::memory_order_seq_cst);
    const uint32_t most = static_cast<uint32_t>(kMaxCoalesceBatch);
    for (uint32_t i = 0; i <= SessionCount() / most; i++) {
        batch.count = 0;
        const uint32_t found =
            RequestBitmap::Drain(RequestsOf(LaneIndex(*lane)), SessionCount(), 0, sessions, most);
        for (uint32_t j = 0; j < found; j++) {
            RequestSlot *slot = &request_slots[sessions[j]];
            if (slot->Take(batch.number))
                batch.entries[batch.count++] = {slot, sessions[j], 0, GiveBack::kWorkerEnding, false, false};
        }
        lane->wake.opening.store(batch.number + 1);
        EndBatch(Verdict::kNotExecuted);
    }
    lane->asleep.store(0);
    lane->pid.store(0);
    lane->ticket.store(0);
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
        const bool committed = TransactionIdIsValid(xid) && TransactionIdDidCommit(xid);
        if (committed)
            EndBatch(IsReplicated() ? Verdict::kCommitted : Verdict::kUnknown);
        else
            GiveAllBack(GiveBack::kWorkerEnding);
    }
    LeaveLane();
}

void Allocate()
{
    MemoryContextSwitchTo(TopMemoryContext);
    batch.entries = static_cast<BatchEntry *>(palloc(sizeof(BatchEntry) * kMaxCoalesceBatch));
    batch.planned = static_cast<PlannedRequest *>(palloc(sizeof(PlannedRequest) * kMaxCoalesceBatch));
    sessions = static_cast<uint32_t *>(palloc(sizeof(uint32_t) * kMaxCoalesceBatch));
}

// A worker holds the rows of many requests while it waits for one more. Whoever waits for those would, after
// deadlock_timeout, be told of a deadlock that its own statement cannot cause: the worker gives way before.
void SetLockTimeout()
{
    char text[32];
    snprintf(text, sizeof(text), "%d", Max(Min(settings.coalesce_lock_timeout_ms, DeadlockTimeout / 2), 1));
    SetConfigOption("lock_timeout", text, PGC_SUSET, PGC_S_OVERRIDE);
}

// Whatever the database's settings are for its sessions, a batch is a plain transaction.
void SetOwnSettings()
{
    SetConfigOption("search_path", "pg_catalog, pg_temp", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_isolation", "read committed", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("default_transaction_read_only", "off", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("session_replication_role", "origin", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("statement_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
    SetConfigOption("idle_in_transaction_session_timeout", "0", PGC_SUSET, PGC_S_OVERRIDE);
    SetLockTimeout();
}

// False: the launcher has given up waiting for us, and the lane may be another database's now.
bool EnterLane()
{
    LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
    const bool ours = lane->State() == LaneState::kStarting && lane->database.load() == MyDatabaseId;
    if (ours) {
        lane->epoch.fetch_add(1);
        lane->ticket.store(MyTicketId() + 1);
        lane->pid.store(static_cast<uint32_t>(MyProcPid));
        lane->asleep.store(0);
        lane->xid.store(InvalidTransactionId);
        batch.number = lane->wake.opening.load();
        lane->state.store(static_cast<uint32_t>(LaneState::kRunning), std::memory_order_seq_cst);
    }
    LWLockRelease(coalesce_lock);
    return ours;
}

// Until a request comes; at most a while.
void Sleep()
{
    static const uint32 wait_event = NewWaitEvent("WeirCoalescer");
    ResetLatch(MyLatch);
    lane->asleep.store(1, std::memory_order_seq_cst);
    if (!RequestBitmap::Any(RequestsOf(LaneIndex(*lane)), SessionCount()) && lane->stop.load() == 0)
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, kNapMs, wait_event);
    lane->asleep.store(0, std::memory_order_relaxed);
}

void WaitForCompany()
{
    if (settings.coalesce_max_delay_ms == 0 || batch.count >= MostRequests())
        return;
    ResetLatch(MyLatch);
    WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, settings.coalesce_max_delay_ms,
              PG_WAIT_EXTENSION);
    Collect();
}

void Serve()
{
    int64_t idle_since = GetCurrentTimestamp();
    while (lane->stop.load(std::memory_order_relaxed) == 0) {
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ProcessConfigFile(PGC_SIGHUP);
            SetLockTimeout();
        }
        MakeLargeMemory();
        if (!Collect()) {
            if (GetCurrentTimestamp() - idle_since > kIdleUs)
                return;
            Sleep();
            continue;
        }
        WaitForCompany();
        // From here on clients that see themselves queued wait for the next batch.
        lane->wake.opening.store(batch.number + 1, std::memory_order_seq_cst);
        RunBatch();
        pgstat_report_stat(false);
        idle_since = GetCurrentTimestamp();
    }
}

} // namespace

} // namespace weir

void weir_coalescer_main(Datum argument)
{
    using namespace weir;

    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    lane = &shared->coalescing.lanes[DatumGetUInt32(argument)];
    if (lane->State() != LaneState::kStarting)
        return;
    BackgroundWorkerInitializeConnectionByOid(lane->database.load(), InvalidOid, 0);
    Allocate();
    SetOwnSettings();
    pgstat_report_activity(STATE_RUNNING, "coalescing");
    before_shmem_exit(OnWorkerExit, 0);
    if (!EnterLane())
        return;
    Serve();
    proc_exit(0);
}
