// Waiting inside of long statements: between two rows that an INSERT ... SELECT, UPDATE, DELETE or CREATE
// TABLE AS reads from its plan, no buffer is locked and nothing is half done. Other locks are held, so nobody
// waits there whom somebody waits for.

#include "admission/transaction_gate.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/wait.hpp"
#include "replicas/flow_session.hpp"

extern "C" {
#include "executor/execdesc.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "storage/latch.h"
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr uint64_t kStepBytes = 64 * 1024;        // WAL between two looks
constexpr int64_t kLongestStepUs = USECS_PER_SEC; // one wait
constexpr int64_t kLongestNapUs = 50000;          // then it looks whether somebody waits for it

// Nodes whose rows are paced, the innermost statement's last; of one transaction.
struct PacedNode {
    PlanState *node;
    ExecProcNodeMtd original;
};
constexpr int kMaxPaced = 16;
PacedNode paced[kMaxPaced];
int paced_count = 0;
uint64_t looked_at = 0;

PacedNode *FindPaced(const PlanState *node)
{
    for (int i = paced_count - 1; i >= 0; i--)
        if (paced[i].node == node)
            return &paced[i];
    return nullptr;
}

// Somebody waits for a lock that this process holds. Conflicts that never came to the lock table are none.
bool BlocksSomebody()
{
    bool blocks = false;
    for (int i = 0; i < NUM_LOCK_PARTITIONS && !blocks; i++) {
        LWLock *lock = LockHashPartitionLockByIndex(i);
        LWLockAcquire(lock, LW_SHARED);
        blocks = AnyOwnLock(i, [](const LOCK *held) { return held->nRequested > held->nGranted; });
        LWLockRelease(lock);
    }
    return blocks;
}

void Pace()
{
    const int64_t came = GetCurrentTimestamp();
    ChargeFlow();
    if (CurrentMode() != Mode::kEnforce || !IsFresh(shared->replicas, came) || BlocksSomebody())
        return;
    EnterLine(static_cast<int64_t>(kStepBytes));
    int64_t left_us;
    if (!IsHeldInLine(came, &left_us))
        return;
    const int64_t began = MonotonicUs();
    FlowShared &flow = shared->flow;
    flow.bulk_waits.fetch_add(1, std::memory_order_relaxed);
    for (;;) {
        ResetLatch(MyLatch);
        if (!FlowIsEngaged() || MonotonicUs() - began >= kLongestStepUs || BlocksSomebody()) {
            LeaveLine();
            break;
        }
        if (!IsHeldInLine(GetCurrentTimestamp(), &left_us))
            break;
        const long nap_ms = static_cast<long>((Min(left_us, kLongestNapUs) + 999) / 1000);
        const Woken woken = WaitForLatchOrClient(nap_ms, ThrottleWaitEvent());
        if (woken == Woken::kClientGone || PendingInterrupt() != Interrupt::kNone)
            LeaveLine();
        if (woken == Woken::kClientGone)
            EndForLostClient();
        CHECK_FOR_INTERRUPTS();
        if (!flow_session.waiting)
            break;
    }
    flow.waited_us.fetch_add(MonotonicUs() - began, std::memory_order_relaxed);
}

TupleTableSlot *NextPacedRow(PlanState *node)
{
    const ExecProcNodeMtd original = FindPaced(node)->original;
    if (WalBytesWritten() - looked_at >= kStepBytes) {
        looked_at = WalBytesWritten();
        if (FlowIsEngaged())
            Pace();
    }
    return original(node);
}

// The node whose rows the statement writes; null: it has no such.
PlanState *SourceOf(const QueryDesc *query_desc)
{
    PlanState *top = query_desc->planstate;
    if (top == nullptr)
        return nullptr;
    if (IsA(top, ModifyTableState)) {
        PlanState *source = outerPlanState(top);
        return source == nullptr || IsA(source, ResultState) ? nullptr : source;
    }
    const CommandDest dest = query_desc->dest != nullptr ? query_desc->dest->mydest : DestNone;
    return dest == DestIntoRel || dest == DestTransientRel ? top : nullptr;
}

} // namespace

void PaceStatement(QueryDesc *query_desc)
{
    const FlowShared &flow = shared->flow;
    if (flow.configured.load(std::memory_order_relaxed) == 0 ||
        flow.paces_bulk.load(std::memory_order_relaxed) == 0 || CurrentMode() != Mode::kEnforce ||
        !IsClientBackend())
        return;
    PlanState *source = SourceOf(query_desc);
    if (source == nullptr || FlowExemptsSession())
        return;
    // The address of a node that was freed with its subtransaction may be another's now.
    PacedNode *entry = FindPaced(source);
    if (entry == nullptr) {
        if (paced_count == kMaxPaced)
            return;
        entry = &paced[paced_count++];
    }
    *entry = {source, source->ExecProcNodeReal};
    // Not ExecProcNode: that still checks the stack's depth at the first call, and counts for EXPLAIN
    // ANALYZE.
    source->ExecProcNodeReal = NextPacedRow;
    looked_at = WalBytesWritten();
}

// Null: the transaction is at its end.
void EndPacing(const QueryDesc *query_desc)
{
    if (query_desc == nullptr) {
        paced_count = 0;
        return;
    }
    if (paced_count == 0)
        return;
    const PlanState *source = SourceOf(query_desc);
    for (int i = paced_count - 1; i >= 0; i--)
        if (paced[i].node == source) {
            for (int j = i + 1; j < paced_count; j++)
                paced[j - 1] = paced[j];
            paced_count--;
            return;
        }
}

} // namespace weir
