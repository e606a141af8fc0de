#include "coalesce/worker.hpp"

#include <sched.h>

#include "coalesce/lane_worker.hpp"
#include "coalesce/large_payload.hpp"
#include "coalesce/lazy.hpp"
#include "coalesce/locked_rows.hpp"
#include "coalesce/row_writer.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/together.hpp"
#include "replicas/flow.hpp"

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
#include "utils/lsyscache.h"
#include "utils/memutils.h"
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
constexpr int kAttempts = 3;
constexpr int kBatchMs = 1000;            // longest execution of a batch, its commit apart
constexpr uint32_t kCarefulBatches = 100; // after a failure: so many look for duplicates first

// Of requests that were answered already:
constexpr uint32_t kAlonePerRound = 16;             // executed by themselves between two batches
constexpr uint8_t kTries = 3;                       // with batch mates that fail
constexpr int64_t kTableLockedUs = 20 * 1000;       // to be tried again after
constexpr int64_t kRowLockedUs = 200 * 1000;        // ...
constexpr int64_t kNoResourcesUs = USECS_PER_SEC;   // ...
constexpr int64_t kLastWordsUs = 5 * USECS_PER_SEC; // for what is queued when the worker must end
constexpr long kQueuedNapMs = 10;
constexpr long kGatherMs = 2; // for company

// Where commits are slow, for company:
constexpr int64_t kSlowCommitUs = 500;
constexpr int64_t kLongestNapUs = 1000;
constexpr int kNaps = 4;

Lane *lane = nullptr;
Batch batch;
uint32_t next_session = 0; // where the next scan begins
uint32_t careful = 0;
int64_t batch_began = 0;
int64_t commit_us = 0;                  // of a commit, smoothed
FlushReason flush = FlushReason::kNone; // of the batch that is begun next
uint32_t *sessions = nullptr;

uint32_t alone[kAlonePerRound]; // of lazy_slots: to be executed by themselves after the batch
uint32_t alone_count = 0;
uint32_t *released = nullptr; // of lazy_slots: done
uint32_t released_count = 0;
uint32_t arrivals_seen = 0;
LazySession *lazy_sessions = nullptr;
uint32_t lazy_round = 0;
ErrorData *last_error = nullptr; // of the last attempt, in TopMemoryContext

// Asked to end, it ends between two batches: so that it can write what was queued. But while a commit waits
// for a standby, that wait is ended.
volatile sig_atomic_t asked_to_end = 0;
volatile sig_atomic_t ends_later = 0;

void OnTerminate(SIGNAL_ARGS)
{
    const int saved_errno = errno;
    asked_to_end = 1;
    if (ends_later)
        SetLatch(MyLatch);
    else
        die(postgres_signal_arg);
    errno = saved_errno;
}

uint32_t MostRequests()
{
    return static_cast<uint32_t>(settings.coalesce_max_batch);
}

// ---- taking and answering -------------------------------------------------------------------------

// What was answered already: into the batch, or among those that are to be alone.
void CollectQueued()
{
    alone_count = 0;
    arrivals_seen = lane->lazy_arrivals.load(std::memory_order_seq_cst);
    if (lane->lazy_count.load(std::memory_order_seq_cst) == 0)
        return;
    const int64_t now = MonotonicUs();
    lazy_round++;
    LWLockAcquire(lazy_lock, LW_SHARED);
    for (uint32_t i = LazyQueue::First(lane->lazy); i != kNoLazy && batch.count < MostRequests();
         i = lazy_queue.Next(i)) {
        const LazyLink &link = lazy_queue.Link(i);
        RequestSlot *slot = &lazy_slots[i];
        if (!lazy_sessions[link.session].Admits(lazy_round, slot->relation) || link.not_before > now)
            continue;
        if (!link.alone)
            batch.entries[batch.count++] = {slot, i, 0, GiveBack::kNone, false, false, true, false};
        else if (alone_count < kAlonePerRound)
            alone[alone_count++] = i;
    }
    LWLockRelease(lazy_lock);
}

// Into the batch, unless `why` says that they are to be given back.
void TakeInto(uint32_t room, GiveBack why)
{
    TakeRequests(*lane, batch.number, &next_session, sessions, room,
                 [why](RequestSlot *slot, uint32_t session) {
                     batch.entries[batch.count++] = {slot, session, 0, why, false, false, false, false};
                 });
}

// Takes what waits, in addition to what was taken. Returns whether anything is there to do.
bool Collect()
{
    TakeInto(MostRequests() > batch.count ? MostRequests() - batch.count : 0, GiveBack::kNone);
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
        table.flushes[static_cast<size_t>(flush)].fetch_add(1, std::memory_order_relaxed);
        table.batch_requests.Record(of_table[i]);
        of_table[i] = 0;
    }
}

// A queued request was left out: when, and how, it is tried again.
void Postpone(LazyLink *link, GiveBack why)
{
    const int64_t now = MonotonicUs();
    link->was_locked = why == GiveBack::kRowLocked;
    switch (why) {
    case GiveBack::kRelationLocked:
        link->not_before = now + kTableLockedUs;
        break;
    case GiveBack::kRowLocked:
        link->alone = true;
        link->not_before = now + kRowLockedUs;
        break;
    case GiveBack::kBatchMate:
        link->alone = ++link->tries >= kTries;
        break;
    case GiveBack::kNone:
    case GiveBack::kWorkerEnding:
        break;
    default:
        link->alone = true;
        break;
    }
}

// Answers everybody, each with the batch's verdict unless it was left out, and wakes them.
void EndBatch(Verdict verdict)
{
    lane->commit_end.store(XactLastCommitEnd);
    static uint32_t of_table[kCoalescedTables];
    uint32_t count = 0;
    for (uint32_t i = 0; i < batch.count; i++) {
        const BatchEntry &entry = batch.entries[i];
        const bool left_out = entry.give_back != GiveBack::kNone;
        const bool written = !left_out && verdict != Verdict::kNotExecuted;
        if (written)
            Count(entry, of_table);
        if (entry.queued) {
            if (written || entry.failed)
                released[released_count++] = entry.session;
            else
                Postpone(&lazy_queue.Link(entry.session), entry.give_back);
            continue;
        }
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
    ReleaseQueued(lane, released, released_count);
    released_count = 0;
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

// A worker holds the rows of many requests while it waits for one more. Whoever waits for those would, after
// deadlock_timeout, be told of a deadlock that its own statement cannot cause: the worker gives way before.
void SetLockTimeout(bool impatient)
{
    const int timeout_ms =
        impatient ? 1 : Max(Min(settings.coalesce_lock_timeout_ms, DeadlockTimeout / 2), 1);
    char text[32];
    if (LockTimeout == timeout_ms)
        return;
    snprintf(text, sizeof(text), "%d", timeout_ms);
    SetConfigOption("lock_timeout", text, PGC_SUSET, PGC_S_OVERRIDE);
}

bool AllLeftOut()
{
    for (uint32_t i = 0; i < batch.count; i++)
        if (batch.entries[i].give_back == GiveBack::kNone)
            return false;
    return true;
}

// What the table's own functions may take: clients that are in the batch cannot leave it.
void BeginClock()
{
    batch_began = MonotonicUs();
    enable_timeout_after(STATEMENT_TIMEOUT, kBatchMs);
}

// If it has struck, and nobody has noticed, the next batch must not be told.
void EndClock()
{
    disable_timeout(STATEMENT_TIMEOUT, true);
    if (get_timeout_indicator(STATEMENT_TIMEOUT, true))
        QueryCancelPending = false;
}

void Execute()
{
    SetCurrentStatementStartTimestamp();
    StartTransactionCommand();
    PushActiveSnapshot(GetTransactionSnapshot());
    BeginClock();
    WriteBatch(&batch);
    EndClock();
    PopActiveSnapshot();
    lane->xid.store(GetTopTransactionIdIfAny());
    ends_later = 0;
    if (asked_to_end) {
        ProcDiePending = 1;
        InterruptPending = 1;
    }
    const int64_t began = MonotonicUs();
    CommitTransactionCommand();
    commit_us += (MonotonicUs() - began - commit_us) / 8;
    ends_later = 1;
}

void KeepError(ErrorData *error)
{
    if (last_error != nullptr)
        FreeErrorData(last_error);
    last_error = error;
}

// After an error: whom it concerned is given back.
void LeaveCulpritsOut(const ErrorData *error)
{
    const int sqlstate = error->sqlerrcode;
    const bool locked = sqlstate == ERRCODE_LOCK_NOT_AVAILABLE || sqlstate == ERRCODE_T_R_DEADLOCK_DETECTED;
    const bool too_slow = sqlstate == ERRCODE_QUERY_CANCELED &&
                          MonotonicUs() - batch_began >= kBatchMs * static_cast<int64_t>(1000);
    const GiveBack why = locked ? GiveBack::kRowLocked : too_slow ? GiveBack::kTooSlow : GiveBack::kError;
    if (locked && batch.culprits > 0) {
        const RequestSlot &slot = *batch.planned[batch.culprit].slot;
        if (slot.kind == RequestKind::kInsert)
            RememberLockedParents(error->context);
        else
            RememberLockedRow(slot);
    }
    if (batch.culprits > 0)
        for (uint32_t i = 0; i < batch.culprits; i++)
            batch.EntryOf(batch.culprit + i).give_back = why;
    // Nobody's in particular; or there is no time for another attempt.
    for (uint32_t i = 0; i < batch.count && (batch.culprits == 0 || too_slow); i++)
        if (batch.entries[i].give_back == GiveBack::kNone)
            batch.entries[i].give_back = batch.culprits == 0 ? GiveBack::kError : GiveBack::kBatchMate;
}

// One attempt. False: an error ended it; those it concerned are left out.
bool Attempt()
{
    const MemoryContext context = CurrentMemoryContext;
    volatile bool committed = true;
    lane->xid.store(InvalidTransactionId);
    batch.culprits = 0;
    NoParents();
    PG_TRY();
    {
        Execute();
    }
    PG_CATCH();
    {
        ends_later = 1;
        EndClock();
        MemoryContextSwitchTo(TopMemoryContext);
        ErrorData *error = CopyErrorData();
        FlushErrorState();
        AbortCurrentTransaction();
        MemoryContextSwitchTo(context);
        const TransactionId xid = lane->xid.load();
        committed = TransactionIdIsValid(xid) && TransactionIdDidCommit(xid);
        if (!committed) {
            LeaveCulpritsOut(error);
            careful = kCarefulBatches;
            ereport(DEBUG1, (errmsg_internal("pg_weir: batch of %u requests tried again: %s", batch.count,
                                             error->message)));
        }
        KeepError(error);
    }
    PG_END_TRY();
    MemoryContextSwitchTo(context);
    return committed;
}

// The end that was asked for during a commit was for its wait for the standbys. The worker ends when all that
// is queued is written.
void PutOffEnd()
{
    if (asked_to_end)
        ProcDiePending = 0;
}

void RunBatch()
{
    bool committed = false;
    PlanBatch();
    SetSynchronousCommit();
    for (int i = 0; i < kAttempts && !committed; i++) {
        batch.checks_unique = careful > 0;
        committed = Attempt();
        if (AllLeftOut() || asked_to_end)
            break;
    }
    if (committed) {
        careful -= careful > 0 ? 1 : 0;
        EndBatch(VerdictOfCommit());
    } else
        GiveAllBack(GiveBack::kBatchMate);
    PutOffEnd();
}

// ---- queued requests that failed in a batch -------------------------------------------------------

// Whether the same request may well succeed later: locks, memory, disk space, an administrator.
bool MayPass(int sqlstate)
{
    const int category = ERRCODE_TO_CATEGORY(sqlstate);
    return category == ERRCODE_TO_CATEGORY(ERRCODE_T_R_SERIALIZATION_FAILURE) ||
           category == ERRCODE_TO_CATEGORY(ERRCODE_INSUFFICIENT_RESOURCES) ||
           category == ERRCODE_TO_CATEGORY(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE) ||
           category == ERRCODE_TO_CATEGORY(ERRCODE_OPERATOR_INTERVENTION) ||
           category == ERRCODE_TO_CATEGORY(ERRCODE_SYSTEM_ERROR);
}

// The names, as far as they can be had.
void ReportFailed(uint32_t index)
{
    const MemoryContext context = CurrentMemoryContext;
    PG_TRY();
    {
        StartTransactionCommand();
        const Oid relation = lazy_slots[index].relation;
        char *table = get_rel_name(relation);
        char *schema = table != nullptr ? get_namespace_name(get_rel_namespace(relation)) : nullptr;
        if (table == nullptr)
            table = psprintf("%u", relation);
        ReportFailure(index, last_error, schema != nullptr ? schema : "", table);
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
}

// A queued request by itself: what it meets now is its own.
void RunAlone(uint32_t index)
{
    LazyLink *link = &lazy_queue.Link(index);
    batch.entries[0] = {&lazy_slots[index], index, 0, GiveBack::kNone, false, false, true, false};
    batch.count = 1;
    batch.checks_unique = false;
    flush = FlushReason::kAlone;
    lane->wake.opening.store(batch.number + 1, std::memory_order_seq_cst);
    PlanBatch();
    UseSynchronousCommit(SYNCHRONOUS_COMMIT_LOCAL_FLUSH);
    SetLockTimeout(link->was_locked);
    const bool committed = Attempt();
    SetLockTimeout(false);
    if (committed) {
        EndBatch(VerdictOfCommit());
        PutOffEnd();
        return;
    }
    PutOffEnd();
    const bool passes = MayPass(last_error->sqlerrcode) &&
                        (last_error->sqlerrcode != ERRCODE_QUERY_CANCELED || ++link->tries < kTries);
    batch.entries[0].failed = !passes;
    if (!passes)
        ReportFailed(index);
    EndBatch(Verdict::kNotExecuted);
    if (passes && !link->was_locked)
        link->not_before = MonotonicUs() + kNoResourcesUs;
}

void Work()
{
    // From here on clients that see themselves queued wait for the next batch.
    lane->wake.opening.store(batch.number + 1, std::memory_order_seq_cst);
    if (batch.count > 0)
        RunBatch();
    for (uint32_t i = 0; i < alone_count; i++)
        RunAlone(alone[i]);
    alone_count = 0;
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
    const uint32_t rest = FreeLane(lane);
    if (rest > 0)
        ereport(LOG, (errmsg("pg_weir: a coalescing worker ended before %u queued writes were written", rest),
                      errdetail("The next one writes them, unless the server stops before.")));
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
    released = static_cast<uint32_t *>(palloc(sizeof(uint32_t) * kMaxCoalesceBatch));
    lazy_sessions = static_cast<LazySession *>(palloc0(sizeof(LazySession) * SessionCount()));
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
    SetLockTimeout(false);
}

// Until a request comes; at most a while.
void Sleep()
{
    static const uint32 wait_event = NewWaitEvent("WeirCoalescer");
    SleepUntilRung(lane, lane->lazy_count.load() > 0 ? kQueuedNapMs : kNapMs, wait_event,
                   [] { return lane->lazy_arrivals.load(std::memory_order_seq_cst) != arrivals_seen; });
}

void WaitForCompany()
{
    if (settings.coalesce_max_delay_ms == 0 || batch.count == 0 || batch.count >= MostRequests())
        return;
    ResetLatch(MyLatch);
    WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, settings.coalesce_max_delay_ms,
              PG_WAIT_EXTENSION);
    Collect();
    flush = batch.count < MostRequests() ? FlushReason::kDelay : FlushReason::kFull;
}

// Nobody waits for what was answered already: a few of them are not worth a flush yet.
void GatherQueued()
{
    const uint32_t count = lane->lazy_count.load();
    if (count == 0 || count >= kQueuedCompany || lane->lazy_waiters.load() > 0)
        return;
    SleepUntilRung(lane, kGatherMs, PG_WAIT_EXTENSION, [] { return asked_to_end != 0; });
    if (Collect())
        flush = FlushReason::kDrained;
}

void MindInterrupts()
{
    QueryCancelPending = false; // there is no batch to cancel
    CHECK_FOR_INTERRUPTS();
    if (!ConfigReloadPending)
        return;
    ConfigReloadPending = false;
    ProcessConfigFile(PGC_SIGHUP);
    SetLockTimeout(false);
}

// What clients were told is queued is written before the worker ends, if that can be in a moment.
void WriteTheRest()
{
    const int64_t until = MonotonicUs() + kLastWordsUs;
    PutOffEnd();
    while (!CloseLane(lane) && MonotonicUs() < until) {
        MindInterrupts();
        Collect();
        CollectQueued();
        flush = FlushReason::kEnding;
        if (batch.count > 0 || alone_count > 0)
            Work();
        else
            Sleep();
    }
}

// Takes more, as long as a pause brings some. Returns why not to wait any longer.
template <typename Pause> FlushReason TakeMore(int pauses, const std::atomic<uint32_t> &clients, Pause pause)
{
    for (int i = 0; i < pauses; i++) {
        const uint32_t before = batch.count;
        if (before >= MostRequests())
            return FlushReason::kFull;
        if (before >= clients.load(std::memory_order_relaxed))
            return FlushReason::kComplete;
        pause();
        Collect();
        if (batch.count == before)
            return FlushReason::kDrained;
    }
    return FlushReason::kDelay;
}

// When a request wakes the worker, it does not take the processor from a client that is about to publish
// another: batches are larger. Its share of the processors is what it was.
void LetClientsGoFirst()
{
#ifdef SCHED_BATCH
    const sched_param none = {};
    (void)sched_setscheduler(0, SCHED_BATCH, &none); // refused: it works as well, in smaller batches
#endif
}

// The same, where it has the processor already. That is no delay.
void LetOthersPublish()
{
    constexpr int kMostYields = 4;
    flush = TakeMore(kMostYields, lane->company.present, [] { sched_yield(); });
    if (flush == FlushReason::kDelay)
        flush = FlushReason::kDrained;
}

// Those who were answered last are on their way while the worker begins with those who came meanwhile: two
// rounds, and each waits for the other's commit, too. Where that takes long, a part of it is well spent on
// letting the rounds become one, as commit_delay does; PostgreSQL's manual has half of a flush for that.
void LetRoundsMerge()
{
    if (commit_us >= kSlowCommitUs)
        flush = TakeMore(kNaps, lane->company.peak,
                         [] { SleepOn(&lane->stop, 0, Min(commit_us / (2 * kNaps), kLongestNapUs), 0); });
}

bool MustNotWait()
{
    return lane->stop.load(std::memory_order_relaxed) != 0 || asked_to_end;
}

// Before requests are taken: until then their clients may take them back. What comes meanwhile makes the
// batch larger.
void WaitForReplicas()
{
    if (FlowIsEngaged() && (HasRequests(*lane) || lane->lazy_count.load() > 0)) {
        lane->throttled.store(1);
        HoldWorker(MustNotWait);
    }
}

void Serve()
{
    int64_t idle_since = MonotonicUs();
    ends_later = 1;
    while (lane->stop.load(std::memory_order_relaxed) == 0 && !asked_to_end) {
        lane->rounds.fetch_add(1, std::memory_order_relaxed);
        MindInterrupts();
        MakeLargeMemory();
        WaitForReplicas();
        if (Collect()) {
            LetOthersPublish();
            LetRoundsMerge();
        } else
            GatherQueued();
        WaitForCompany();
        lane->throttled.store(0);
        if (batch.count == 0)
            flush = FlushReason::kQueued;
        CollectQueued();
        if (batch.count == 0 && alone_count == 0) {
            if (MonotonicUs() - idle_since > kIdleUs && lane->lazy_count.load() == 0)
                return;
            Sleep();
            continue;
        }
        Work();
        pgstat_report_stat(false);
        idle_since = MonotonicUs();
    }
    WriteTheRest();
}

} // namespace

} // namespace weir

void weir_coalescer_main(Datum argument)
{
    using namespace weir;

    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, OnTerminate);
    BackgroundWorkerUnblockSignals();
    lane = &shared->coalescing.lanes[DatumGetUInt32(argument)];
    if (lane->State() != LaneState::kStarting)
        return;
    LetClientsGoFirst();
    BackgroundWorkerInitializeConnectionByOid(lane->database.load(), InvalidOid, 0);
    Allocate();
    SetOwnSettings();
    pgstat_report_activity(STATE_RUNNING, "coalescing");
    before_shmem_exit(OnWorkerExit, 0);
    if (!EnterLane(lane, InvalidOid))
        return;
    batch.number = lane->wake.opening.load();
    Serve();
    proc_exit(0);
}
