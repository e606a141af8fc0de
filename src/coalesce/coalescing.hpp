#pragma once

// What coalescing keeps in shared memory: a request slot per backend, a lane per worker, and counters per
// table.
//
// A request that is answered when it is queued moves from its client's slot into one of a pool:
// lazy_queue.hpp.
//
// A lane belongs to a database while a worker, or the wish for one, is there. A client that finds no lane
// claims one under coalesce_lock and calls the launcher, which starts the worker; until it runs, statements
// go the ordinary way. A worker that has had nothing to do for a while gives its lane back.

#include "coalesce/company.hpp"
#include "coalesce/lazy_queue.hpp"
#include "coalesce/request_slot.hpp"
#include "stats/histogram.hpp"

namespace weir
{

// Why a statement on an opted-in table was not sent through a worker. The names are in the view
// weir.stat_coalesce, and in docs/coalescing.md with the reason for each.
enum class Decline : uint8_t {
    kNone,
    kAlone,
    kNoWorker,
    kStalled,
    kTransactionBlock,
    kPipeline,
    kNested,
    kIsolation,
    kSynchronousCommit,
    kHasXid,
    kStatement,
    kKey,
    kExpression,
    kReturning,
    kOnConflict,
    kTable,
    kTrigger,
    kConstraint,
    kGenerated,
    kRowSecurity,
    kColumn,
    kTooLarge,
    kRow,
    kTemporaryTables,
    kGivenBack,
    kReplicationOrigin,
    kCount
};

const char *DeclineName(Decline why) noexcept;
const char *DeclineDetail(Decline why) noexcept;
const char *GiveBackName(GiveBack why) noexcept;

// Why a worker began its batch and did not wait for more. The names are in the view weir.stat_coalesce, and
// in docs/coalescing.md.
enum class FlushReason : uint8_t {
    kNone,
    kDrained,
    kComplete,
    kFull,
    kDelay,
    kQueued,
    kAlone,
    kEnding,
    kCount
};

const char *FlushReasonName(FlushReason why) noexcept;

enum class LaneState : uint32_t { kFree, kWanted, kStarting, kRunning, kEnding };

struct alignas(128) Lane {
    // Under coalesce_lock, but for the worker's own changes kStarting ──▶ kRunning ──▶ kEnding ──▶ kFree.
    // Read by anybody.
    std::atomic<uint32_t> state;
    std::atomic<uint32_t> database;
    std::atomic<uint32_t> number;     // which of its database's
    std::atomic<uint32_t> role;       // of a submitter: whose units it runs; 0: a coalescer's lane
    std::atomic<uint32_t> epoch;      // moves on with each worker
    std::atomic<uint64_t> commit_end; // the worker's: end of the last commit record, before the answers are
    std::atomic<uint32_t> stop;       // its database is about to be dropped, renamed, copied
    std::atomic<int64_t>
        since; // when it entered this state (MonotonicUs); for kWanted: not to be tried before

    // The worker's.
    std::atomic<uint32_t> ticket; // PGPROC number + 1; 0: none runs
    std::atomic<uint32_t> pid;
    std::atomic<uint32_t> asleep;    // the first request must set its latch
    std::atomic<uint32_t> throttled; // it waits for replicas before it takes requests
    std::atomic<uint32_t> xid;       // of the batch that is being committed

    alignas(128) Company company; // clients in a statement that could be coalesced
    WakeWords wake;

    // The worker has not taken a request in time: none is sent until it moves on, and for a while. Written by
    // anybody; `rounds` by the worker.
    std::atomic<uint32_t> stalled;
    std::atomic<uint32_t> rounds;
    std::atomic<uint32_t> stalled_round;
    std::atomic<int64_t> stalled_until; // MonotonicUs

    // Requests that were answered already: the list under lazy_lock, the others are read by anybody.
    alignas(128) LazyList lazy;
    std::atomic<uint32_t> lazy_count;    // the list's
    std::atomic<uint32_t> lazy_arrivals; // moves on with each
    std::atomic<uint32_t> lazy_ends;     // moves on when some are done: who waits for that sleeps on it
    std::atomic<uint32_t> lazy_waiters;  // these

    LaneState State() const noexcept { return static_cast<LaneState>(state.load(std::memory_order_seq_cst)); }
};

constexpr uint32_t kLanes = 32;
constexpr uint32_t kCoalescedTables = 128;
constexpr uint32_t kFences = 64; // a power of two
constexpr uint32_t kFailures = 64;

// Counters of a table. Anybody, relaxed; a process that dies in between loses a count.
struct TableStatistics {
    std::atomic<uint32_t> database; // 0: free. Set under coalesce_lock, after `relation`
    std::atomic<uint32_t> relation;
    std::atomic<uint64_t> requests; // answered by a worker: committed
    std::atomic<uint64_t> rows;
    std::atomic<uint64_t> batches;
    std::atomic<uint64_t> bytes;
    std::atomic<uint64_t> folded; // updates that made no row version of their own
    std::atomic<uint64_t> queued; // requests answered before they were written
    std::atomic<uint64_t> queue_full;
    std::atomic<uint64_t> failed;    // of the queued ones
    std::atomic<uint32_t> unwritten; // queued ones that are neither written nor failed; not reset
    std::atomic<uint64_t> declined[static_cast<size_t>(Decline::kCount)];
    std::atomic<uint64_t> given_back[static_cast<size_t>(GiveBack::kCount)];
    std::atomic<uint64_t> flushes[static_cast<size_t>(FlushReason::kCount)]; // batches by reason
    Histogram batch_requests;                                                // requests of a batch
    Histogram waits;                                                         // from publishing to the answer

    void Reset() noexcept;
};

// Memory for large requests: see large_payload.hpp.
struct LargeMemory {
    std::atomic<uint32_t> state;  // LargeMemoryState
    std::atomic<uint32_t> handle; // of the dynamic segment
    std::atomic<uint32_t> chunks; // allocated now
    std::atomic<uint64_t> allocated;
    std::atomic<uint64_t> refused; // found no room
};

// A queued request that could not be written.
struct CoalesceFailure {
    static constexpr size_t kMessageSize = 256;
    static constexpr size_t kNameSize = 64; // NAMEDATALEN
    int64_t at;                             // TimestampTz
    uint32_t database;
    uint32_t role;
    uint32_t relation;
    uint32_t rows;
    char schema[kNameSize];
    char table[kNameSize];
    char constraint[kNameSize];
    char sqlstate[6];
    char message[kMessageSize];
};

struct FailureRing {
    uint64_t count; // ever; the next one goes to count % kFailures
    CoalesceFailure last[kFailures];
};

struct CoalesceShared {
    std::atomic<uint32_t> wanted; // some lane is kWanted: the launcher is to look
    std::atomic<uint64_t> starts_failed;
    std::atomic<uint32_t> starts_failing; // logged; cleared by the next success
    LargeMemory large;
    Lane lanes[kLanes];
    TableStatistics tables[kCoalescedTables]; // the last one counts whatever found no entry
    LazyPool lazy_pool;                       // under lazy_lock
    FailureRing failures;                     // under lazy_lock
    // By database, modulo: transactions that change tables, meanwhile nothing is answered before it is
    // written.
    std::atomic<uint32_t> fences[kFences];
};

} // namespace weir
