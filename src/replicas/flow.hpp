#pragma once

// Flow control of writers in the server: what is in shared memory, the sampler's part, and the writers'.
//
// A writer is a transaction of a client that is about to write and has no xid yet: at the start of an INSERT,
// UPDATE, DELETE, MERGE, or a WITH that modifies, and of utility statements that write much (COPY FROM,
// CREATE TABLE AS, CREATE INDEX, REFRESH, ...). There it waits for its turn in the bucket: without an xid and
// so without a row lock, without its snapshot where that can be, and with its slot lent. Coalescing and
// submit workers wait before a batch. At the end of each transaction, of any process, the WAL that it really
// wrote is charged.
//
// Never held: superusers; sessions with weir.throttle = off; COMMIT and all that comes after the first xid;
// walsenders and other background workers; statements on temporary and unlogged tables; anybody on a standby.
// Autovacuum stands in no line: flow_vacuum.cpp slows it down. A wait is interruptible, ends after
// weir.throttle_max_wait, and nobody waits when the sampler has not looked for too long (IsFresh).

#include "pg/prelude.hpp"
#include "replicas/flow_bucket.hpp"
#include "replicas/flow_control.hpp"
#include "replicas/replica_state.hpp"
#include "replicas/throttle_rules.hpp"
#include "stats/histogram.hpp"

extern "C" {
#include "executor/execdesc.h"
#include "nodes/plannodes.h"
}

namespace weir
{

struct FlowShared {
    // The sampler's, at every sample; read by anybody without a lock.
    alignas(128) std::atomic<uint32_t> engaged; // some lane has a limit
    std::atomic<uint32_t> configured;           // there are targets
    std::atomic<int64_t> max_wait_us;           // weir.throttle_max_wait; 0: none
    std::atomic<uint32_t> paces_bulk;           // weir.throttle_bulk

    FlowBucket buckets[kFlowLanes];

    // What transactions wrote while the throttle was engaged, without autovacuum's, since the sampler took it
    // last; anybody, atomically.
    std::atomic<uint64_t> written_bytes, written_records;
    // Of one of these records, in the last seconds; the sampler's. 0: not known.
    std::atomic<double> record_bytes;

    // What checks are answered from: the sampler's, too.
    std::atomic<uint32_t> check_known;
    std::atomic<int64_t> check_lag_us, check_threshold_us;
    std::atomic<int64_t> check_lag_bytes, check_threshold_bytes;
    std::atomic<int64_t> check_capacity;

    // The sampler's, under replica_lock.
    FlowController controller;
    FlowTargets targets;
    FlowStandby standbys[kMaxReplicas];

    ThrottleRules rules; // under flow_lock

    // Statistics; anybody, relaxed.
    std::atomic<uint32_t> waiting;           // writers that wait now
    std::atomic<uint64_t> waits[kFlowLanes]; // transactions that had to wait, or in observe mode would have
    std::atomic<uint64_t> expired;           // of these: went on after weir.throttle_max_wait
    std::atomic<uint64_t> bulk_waits;        // waits inside of a statement, and autovacuum's rests
    std::atomic<int64_t> waited_us;          // all together
    std::atomic<uint64_t> checks[kThrottleCodes];
    Histogram durations; // of the waits before transactions

    void ResetStatistics() noexcept;
};

// ---- the sampler ------------------------------------------------------------------------------------

// After the rows were sampled, under replica_lock, exclusive.
void ControlFlow(int64_t now);
// After that, without the lock: what became of standbys goes to the log.
void ReportFlow();

// ---- writers ----------------------------------------------------------------------------------------

bool FlowIsEngaged();

// This session is never held: a superuser's, or weir.throttle = off.
bool FlowExemptsSession();

// In ExecutorStart, before the transaction gate; and of utility statements in ProcessUtility. May ereport.
void HoldWriter(QueryDesc *query_desc);
void HoldUtility(const Node *statement, bool is_top);

// In ExecutorRun, of a statement that a worker was to execute and did not: its snapshot stays.
void HoldLateWriter(const QueryDesc *query_desc);

// In a worker, before it takes a batch, outside of a transaction; until `must_stop()`.
void HoldWorker(bool (*must_stop)());

// After the executor was started, and when it ends: long statements wait in between (flow_bulk.cpp).
void PaceStatement(QueryDesc *query_desc);
void EndPacing(const QueryDesc *query_desc);

void InstallFlow();

// ---- checks -----------------------------------------------------------------------------------------

// What a job of that name is told; for the endpoint, too. Reads shared memory only.
ThrottleAnswer CheckThrottle(const char *app, int64_t now);

// At the server's start: the rules of before.
void LoadThrottleRules();

} // namespace weir
