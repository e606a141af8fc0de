#include "replicas/flow.hpp"

#include "admission/session_class.hpp"
#include "admission/transaction_gate.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/snapshot.hpp"
#include "pg/wait.hpp"
#include "replicas/flow_session.hpp"

extern "C" {
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_class_d.h"
#include "executor/instrument.h"
#include "nodes/parsenodes.h"
#include "parser/parsetree.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/lsyscache.h"
#include "utils/resowner.h"
#include "utils/timestamp.h"
}

namespace weir
{

FlowSession flow_session;

namespace
{

constexpr int64_t kFirstEstimate = 512; // bytes of a transaction of which nothing is known
constexpr int64_t kMostEstimate = 256 * 1024;
constexpr int64_t kLongestNapUs = 200000; // rate, mode and target may change: look again

enum class TurnEnd { kTurn, kExpired };

bool MustHeed(int64_t now)
{
    return CurrentMode() == Mode::kEnforce && FlowIsEngaged() && IsFresh(shared->replicas, now);
}

// What this session's transactions weigh less than others' is decided by the classes: who shares the slots
// with somebody heavier gives way.
bool IsBatchClass()
{
    const uint32_t mine = gate.group(SessionClass()).weight;
    for (uint32_t id = 0; id < kMaxClasses; id++) {
        const GateClass &c = gate.group(id);
        if (c.in_use.load(std::memory_order_relaxed) != 0 && c.weight > mine)
            return true;
    }
    return false;
}

int64_t Estimate()
{
    const int64_t estimate = flow_session.estimate > 0 ? flow_session.estimate : kFirstEstimate;
    return Min(estimate, kMostEstimate);
}

void CountWait(int64_t began, TurnEnd end)
{
    FlowShared &flow = shared->flow;
    const int64_t waited = MonotonicUs() - began;
    flow.waiting.fetch_sub(1, std::memory_order_relaxed);
    flow.waited_us.fetch_add(waited, std::memory_order_relaxed);
    flow.durations.Record(waited);
    if (end == TurnEnd::kExpired)
        flow.expired.fetch_add(1, std::memory_order_relaxed);
}

void CountBegin()
{
    FlowShared &flow = shared->flow;
    flow.waits[flow_session.batch ? 0 : 1].fetch_add(1, std::memory_order_relaxed);
    flow.waiting.fetch_add(1, std::memory_order_relaxed);
}

// An error that nobody foresaw ended the wait.
void Drop()
{
    if (!flow_session.waiting)
        return;
    LeaveLine();
    shared->flow.waiting.fetch_sub(1, std::memory_order_relaxed);
}

// Leaves the line if the session is about to be cancelled or ended, and lets that happen.
void HandleInterrupts()
{
    if (PendingInterrupt() != Interrupt::kNone)
        Drop();
    CHECK_FOR_INTERRUPTS();
}

// Until it is this client's turn, or it need not wait for that any more.
TurnEnd WaitForTurn(int64_t began)
{
    for (;;) {
        ResetLatch(MyLatch);
        const int64_t now = GetCurrentTimestamp();
        int64_t left_us;
        if (!MustHeed(now)) {
            LeaveLine();
            return TurnEnd::kTurn;
        }
        const int64_t max_wait_us = shared->flow.max_wait_us.load(std::memory_order_relaxed);
        const int64_t waited = MonotonicUs() - began;
        if (max_wait_us > 0 && waited >= max_wait_us) {
            LeaveLine();
            return TurnEnd::kExpired;
        }
        if (!IsHeldInLine(now, &left_us))
            return TurnEnd::kTurn;
        if (max_wait_us > 0)
            left_us = Min(left_us, max_wait_us - waited);
        const long nap_ms = static_cast<long>((Min(left_us, kLongestNapUs) + 999) / 1000);
        if (WaitForLatchOrClient(nap_ms, ThrottleWaitEvent()) == Woken::kClientGone) {
            Drop();
            EndForLostClient();
        }
        HandleInterrupts();
    }
}

// What the gate asks of a transaction once: has it to wait? It is in the line then.
bool JoinsLine(int64_t now)
{
    flow_session.held_in = CurrentLxid();
    flow_session.batch = IsBatchClass();
    EnterLine(Estimate());
    int64_t left_us;
    return IsHeldInLine(now, &left_us);
}

// In observe mode nobody waits, and what is reserved is charged all the same.
bool IsOnlyObserved()
{
    if (CurrentMode() == Mode::kEnforce)
        return false;
    shared->flow.waits[flow_session.batch ? 0 : 1].fetch_add(1, std::memory_order_relaxed);
    LeaveLine();
    return true;
}

bool MayBeHeld()
{
    return IsClientBackend() && CurrentMode() != Mode::kOff && flow_session.held_in != CurrentLxid() &&
           !TransactionIdIsValid(GetTopTransactionIdIfAny()) && !FlowExemptsSession() &&
           IsFresh(shared->replicas, GetCurrentTimestamp());
}

template <typename DropSnapshot, typename Retake> void Hold(DropSnapshot drop, Retake retake)
{
    if (!JoinsLine(GetCurrentTimestamp()) || IsOnlyObserved())
        return;
    const int64_t began = MonotonicUs();
    CountBegin();
    const auto dropped = drop();
    LendSlot();
    const TurnEnd end = WaitForTurn(began);
    TakeSlotBack();
    CountWait(began, end);
    retake(dropped);
}

// ---- what writes ------------------------------------------------------------------------------------

// A foreign table is called permanent, too, and its rows are elsewhere.
bool IsLogged(Oid relation)
{
    return get_rel_persistence(relation) == RELPERSISTENCE_PERMANENT &&
           get_rel_relkind(relation) != RELKIND_FOREIGN_TABLE;
}

// Of an existing relation the name's own relpersistence says nothing.
bool IsLogged(const RangeVar *name)
{
    const Oid relation = name != nullptr ? RangeVarGetRelid(name, NoLock, true) : InvalidOid;
    return !OidIsValid(relation) || IsLogged(relation);
}

bool WritesWal(const PlannedStmt *plan)
{
    if (plan->commandType == CMD_SELECT && !plan->hasModifyingCTE)
        return false;
    ListCell *cell;
    foreach (cell, plan->resultRelations)
        if (IsLogged(rt_fetch(lfirst_int(cell), plan->rtable)->relid))
            return true;
    return false;
}

bool WritesMuch(const Node *statement)
{
    switch (nodeTag(statement)) {
    case T_CopyStmt: {
        const auto *copy = reinterpret_cast<const CopyStmt *>(statement);
        return copy->is_from && IsLogged(copy->relation);
    }
    case T_CreateTableAsStmt: {
        const auto *create = reinterpret_cast<const CreateTableAsStmt *>(statement);
        return create->into->rel->relpersistence == RELPERSISTENCE_PERMANENT;
    }
    case T_RefreshMatViewStmt:
        return IsLogged(reinterpret_cast<const RefreshMatViewStmt *>(statement)->relation);
    case T_IndexStmt:
        return IsLogged(reinterpret_cast<const IndexStmt *>(statement)->relation);
    case T_ReindexStmt:
        return IsLogged(reinterpret_cast<const ReindexStmt *>(statement)->relation);
    case T_ClusterStmt:
        return IsLogged(reinterpret_cast<const ClusterStmt *>(statement)->relation);
    case T_AlterTableStmt:
        return IsLogged(reinterpret_cast<const AlterTableStmt *>(statement)->relation);
    default:
        return false;
    }
}

// ---- hooks ------------------------------------------------------------------------------------------

// The commit or abort record is written by now. In every process that has transactions.
void OnResourceRelease(ResourceReleasePhase phase, bool, bool is_top_level, void *)
{
    if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !is_top_level || shared == nullptr)
        return;
    EndPacing(nullptr);
    Drop();
    PaceAutovacuum();
    const uint64_t before = flow_session.mark.bytes;
    ChargeFlow();
    const auto written = static_cast<int64_t>(flow_session.mark.bytes - before);
    if (written > 0)
        flow_session.estimate += flow_session.estimate == 0 ? written : (written - flow_session.estimate) / 4;
}

} // namespace

uint64_t WalBytesWritten()
{
    return pgWalUsage.wal_bytes;
}

WalAmount WrittenSince(WalAmount *mark)
{
    const WalAmount before = *mark;
    *mark = {WalBytesWritten(), static_cast<uint64_t>(pgWalUsage.wal_records)};
    return {mark->bytes - before.bytes, mark->records - before.records};
}

uint32 ThrottleWaitEvent()
{
    static uint32 event = 0;
    if (event == 0)
        event = NewWaitEvent("WeirThrottle");
    return event;
}

bool FlowIsEngaged()
{
    return shared->flow.engaged.load(std::memory_order_relaxed) != 0;
}

bool FlowExemptsSession()
{
    return !settings.throttle || SessionIsSuperuser();
}

void ChargeFlow()
{
    const WalAmount amount = WrittenSince(&flow_session.mark);
    const auto written = static_cast<int64_t>(amount.bytes);
    const bool holds = flow_session.held[0] != 0 || flow_session.held[1] != 0;
    if (!holds && (written == 0 || !FlowIsEngaged()))
        return;
    if (MyBackendType != B_AUTOVAC_WORKER) {
        shared->flow.written_bytes.fetch_add(amount.bytes, std::memory_order_relaxed);
        shared->flow.written_records.fetch_add(amount.records, std::memory_order_relaxed);
    }
    if (flow_session.batch)
        shared->flow.buckets[0].Charge(written, flow_session.held[0]);
    shared->flow.buckets[1].Charge(written, flow_session.held[1]);
    flow_session.held[0] = flow_session.held[1] = 0;
}

void EnterLine(int64_t bytes)
{
    const uint32_t line = flow_session.batch && flow_session.held[0] == 0 ? 0 : 1;
    FlowBucket &bucket = shared->flow.buckets[line];
    flow_session.line = line;
    flow_session.held[line] = bytes;
    flow_session.position = bucket.Reserve(bytes);
    bucket.waiting_bytes.fetch_add(bytes, std::memory_order_relaxed);
    flow_session.waiting = true;
}

namespace
{

void StopWaiting()
{
    FlowBucket &bucket = shared->flow.buckets[flow_session.line];
    bucket.waiting_bytes.fetch_sub(flow_session.held[flow_session.line], std::memory_order_relaxed);
    flow_session.waiting = false;
}

} // namespace

void LeaveLine()
{
    StopWaiting();
    shared->flow.buckets[flow_session.line].Return(flow_session.held[flow_session.line]);
    flow_session.held[flow_session.line] = 0;
}

bool IsHeldInLine(int64_t now, int64_t *left_us)
{
    for (;;) {
        *left_us = shared->flow.buckets[flow_session.line].LeftUs(flow_session.position, now);
        if (*left_us > 0)
            return true;
        StopWaiting();
        if (flow_session.line == 1)
            return false;
        EnterLine(flow_session.held[0]);
    }
}

void HoldWriter(QueryDesc *query_desc)
{
    if (WritesWal(query_desc->plannedstmt) && MayBeHeld())
        Hold([=] { return DropStatementSnapshot(query_desc); },
             [=](const DroppedSnapshot &dropped) { RetakeStatementSnapshot(dropped, query_desc); });
}

void HoldLateWriter(const QueryDesc *query_desc)
{
    if (WritesWal(query_desc->plannedstmt) && MayBeHeld())
        Hold([] { return DroppedSnapshot(); }, [](const DroppedSnapshot &) {});
}

// Within another utility statement (DO, CALL) the portal's snapshot is that one's.
void HoldUtility(const Node *statement, bool is_top)
{
    if (!WritesMuch(statement) || !MayBeHeld())
        return;
    if (is_top)
        Hold(DropUtilitySnapshot, RetakeUtilitySnapshot);
    else
        Hold([] { return DroppedSnapshot(); }, [](const DroppedSnapshot &) {});
}

// Clients wait for the worker, so it does not wait as long as they might: they would take their statements
// back and wait themselves.
void HoldWorker(bool (*must_stop)())
{
    const int64_t came = GetCurrentTimestamp();
    if (CurrentMode() == Mode::kOff || !IsFresh(shared->replicas, came))
        return;
    flow_session.batch = false;
    EnterLine(Estimate());
    int64_t left_us;
    if (!IsHeldInLine(came, &left_us) || IsOnlyObserved())
        return;
    CountBegin();
    const int64_t began = MonotonicUs();
    TurnEnd end = TurnEnd::kTurn;
    for (;;) {
        ResetLatch(MyLatch);
        const int64_t now = GetCurrentTimestamp();
        const int64_t max_wait_us = shared->flow.max_wait_us.load(std::memory_order_relaxed);
        const bool expired = max_wait_us > 0 && MonotonicUs() - began >= max_wait_us;
        if (expired || !MustHeed(now) || must_stop()) {
            LeaveLine();
            end = expired ? TurnEnd::kExpired : TurnEnd::kTurn;
            break;
        }
        if (!IsHeldInLine(now, &left_us))
            break;
        const long nap_ms = static_cast<long>((Min(left_us, kLongestNapUs) + 999) / 1000);
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, nap_ms, ThrottleWaitEvent());
        if (ProcDiePending)
            Drop();
        QueryCancelPending = false; // there is nothing to cancel
        CHECK_FOR_INTERRUPTS();
    }
    CountWait(began, end);
}

void InstallFlow()
{
    RegisterResourceReleaseCallback(OnResourceRelease, nullptr);
}

void FlowShared::ResetStatistics() noexcept
{
    for (std::atomic<uint64_t> &count : waits)
        count.store(0);
    for (std::atomic<uint64_t> &count : checks)
        count.store(0);
    expired.store(0);
    bulk_waits.store(0);
    waited_us.store(0);
    durations.Reset();
}

} // namespace weir
