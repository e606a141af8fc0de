#pragma once

// The adaptive limit: how many transactions may run at once, found from what the slot holders wait for.
//
// Latency is not looked at: it mixes lock waits, synchronous replication and the query mix, and the gradient
// methods (Vegas, Netflix's Gradient2, Envoy's) mistake a change of the mix for overload. The nearest
// relative is CockroachDB's slot adjuster (admission.kv_slot_adjuster: slots down while runnable goroutines
// per processor are many, up while few); two things are added that a database needs: who waits for a lock is
// not work, and who sleeps is not load.
//
// Of `active` slot holders some run (no wait event: on a processor or ready to be), some wait for locks or
// latches (blocked), and the rest is busy elsewhere: disk, WAL flush, the client's next statement, a timer.
//
// 1. Processors. By Little's law the shares of a transaction's time stay what they are while nothing
// saturates, so with
//    `useful` = active - blocked holders of whom `running` run, `useful * target / running` holders would
//    make `target` run. The target is kRunnablePerCore a core, so that a processor never idles because its
//    transaction just ended. For short transactions it is higher: a hand-off (a signal, two context switches)
//    costs about kHandOffCost of processor time, nothing beside 5 ms and a third of a 50 us transaction, and
//    a higher limit means fewer hand-offs. Sleepers and I/O raise the limit by this rule alone: 500
//    transactions in pg_sleep(20 ms) run on a fraction of a core.
// 2. Locks. On hot rows running more transactions makes longer lock queues and nothing else: measured on 2
// cores, TPC-B-like on one row, a limit of 4 had 45 % of the holders waiting for locks, 6 had 60 %, 8 had
// 70 %, 32 had 88 %, and throughput fell from 2 or from 6 on, by the machine's day. So the limit is at most
// kHoldersPerUseful for each useful holder, and kSpareHolders, so that a released lock finds its next owner
// waiting. Where they stand in several queues (lock_queues.hpp), each may have some: for rows that are held
// for 10 ms what is gained is that more of them are in somebody's hands, and that takes several holders a
// row, because they choose theirs blindly. This bound comes in little by little, until kBlockedShare of the
// holders are blocked (or one is): with a step the limit would swing about it.
//
// Down: at once when the limit is more than twice what is wanted, else half of the way per interval; the
// surplus takes long enough to drain. Also when the limit does not bind, as soon as more run than are wanted:
// a limit that sleepers raised above the number of clients binds nobody, and these clients' next
// transactions may be hot rows. The signals are smoothed, but a fall of `useful` to less than half (and by
// more than the starting limit, else it may be chance) is a new load and believed at once.
// Up: at most doubling per interval, and only while the limit binds; where locks are waited for an eighth of
// that way, because a queue for a lock grows long after its cause (at once, sleepers beside hot rows made
// the limit swing between 3 and 440). While it does not bind it drifts, over about a minute,
// towards kUnprovenFactor times what is used (and never below its start): a limit that was right for sleepers
// must not let in a storm of something else an hour later.
//
// test/unit/adaptive_limit_test.cpp holds all this against every fixed limit, in a simulator that is
// calibrated to the figures above. Not reached in it: transactions of 50 us whose clients run on other
// machines (500 clients: 0.77 of no limit, because nearly every one pays a hand-off).
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

// One control interval, about 100 ms (late under overload: then longer), averaged over looks at the slot
// holders.
struct AdaptiveSample {
    double interval_s;
    double active;       // slot holders that count against the limit
    double running;      // of these: no wait event (on a processor or ready to be)
    double lock_waiting; // of these: waiting for a heavyweight lock (row, transaction, tuple, …)
    double contended;    // of these: waiting for a latch (but not for a WAL flush to share) or a buffer pin
    double waiting;      // queue length, without those whom their class's own limit holds back
    uint64_t finished;   // transactions finished in the interval
    double queues = 0;   // different holders who are waited for and do not wait themselves
};

struct AdaptiveBounds {
    uint32_t cores;
    uint32_t min;
    uint32_t max;
};

// Why the limit is what it is, for a DBA to read.
enum class AdaptiveReason : uint32_t {
    kNotBinding, // fewer run than might
    kRoom,       // the processors have room: growing
    kCpu,        // enough transactions are ready to run
    kLocks,      // more would only queue for locks
    kBounds,     // weir.max_active_min or weir.max_active_max
};

// In shared memory, so that a new launcher goes on where the last one ended. Written by the launcher.
struct AdaptiveState {
    double exact; // the limit before rounding
    uint32_t limit;
    AdaptiveReason reason;
    double cpu_per_transaction_s; // smoothed; 0: not known
    double running;               // smoothed, like all that follow
    double useful;
    double blocked;
    double queues;
};

static_assert(std::is_trivially_copyable_v<AdaptiveState>);

// Starts at kStartPerCore slots a core.
void AdaptiveReset(AdaptiveState *state, const AdaptiveBounds &bounds) noexcept;

// Takes in one interval; returns the new limit, within the bounds.
uint32_t AdaptiveUpdate(AdaptiveState *state, const AdaptiveBounds &bounds,
                        const AdaptiveSample &sample) noexcept;

const char *AdaptiveReasonName(AdaptiveReason reason) noexcept;

} // namespace weir
