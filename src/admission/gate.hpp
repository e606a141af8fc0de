#pragma once

// The transaction gate's shared state: who holds a slot, who waits for one, and who is next.
//
// Slots are counted, not numbered. A session has exactly one ticket (its index is its PGPROC number), and the
// ticket's state word is the truth about that session; the counters are sums over tickets, kept so that
// nobody has to add them up.
//
// clang-format off
//   kFree    ──acquire──▶ kHeld     the fast path: one compare-and-swap on `load`, one add on the class
//   kFree    ──enqueue──▶ kWaiting  under the lock
//   kWaiting ──grant────▶ kHeld     under the lock, by whoever dispatches
//   kWaiting ──leave────▶ kFree     under the lock: timeout, cancel, termination, client gone, queue full
//   kHeld    ──release──▶ kFree     without the lock
//   kHeld    ──lend─────▶ kLent     by the supervisor
//   kLent    ──reclaim──▶ kHeld     by the owner, over the limit if need be
//   kLent    ──release──▶ kFree     without the lock
// clang-format on
//
// Why no wake-up is lost. `load` holds the number of active slots and of waiters in one word. A releaser
// takes its slot out of that word and sees in the same operation whether anybody waits; a waiter enters the
// word under the lock and then runs Dispatch() itself. Whichever comes second on the word sees the other.
//
// Why it is fair. Within a class the queue is first in, first out. Between classes Dispatch() is stride
// scheduling (Waldspurger & Weihl, MIT/LCS/TM-528, 1995): every grant moves its class's `pass` on by kStride
// / weight, and the smallest `pass` is next. A class that comes back from idle, or from being held back by
// its own limit, goes on at the current virtual time, so it cannot save up credit. Grants from a class's
// reserve are not charged. Nobody overtakes: the fast path is closed while anybody waits.
//
// Pace. The gate and each class may have a rate, by the generic cell rate algorithm: see Pace. Who is due
// too soon waits although a slot is free; the launcher dispatches when the time has come.
//
// The same structure gates transactions and connections: two instances, each with tickets of its own. What a
// "slot" is right to, only the callers know.
//
// Death. A backend that exits releases its ticket in before_shmem_exit. One that is killed takes the whole
// shared memory with it: the postmaster restarts and Init() starts from nothing. So no state here needs
// repair in place.
//
// Pure: no PostgreSQL header, no clock, no system call. "Under the lock" means the caller holds it
// exclusively.

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "admission/class_spec.hpp"
#include "stats/histogram.hpp"

namespace weir
{

constexpr uint32_t kNoTicket = UINT32_MAX;
constexpr uint32_t kDefaultClass = 0;
constexpr uint32_t kUnlimited = 1u << 30;

enum class TicketState : uint32_t { kFree, kWaiting, kHeld, kLent };

// How a transaction's visit to the gate ended without a slot. Each is a counter of its own.
enum class Departure : uint32_t {
    kRefused,          // the queue was full
    kTimedOut,         // weir.queue_timeout
    kCancelled,        // pg_cancel_backend, or the client's cancel request
    kStatementTimeout, // statement_timeout or transaction_timeout
    kTerminated,       // pg_terminate_backend, shutdown, or an error nobody foresaw
    kClientGone,       // the client closed its connection
    kCount
};

// The time between two rounds of a busy launcher: what it comes late for would be lost.
constexpr int64_t kLeastSlackNs = 50 * 1000 * 1000;
constexpr int64_t kMostBunchNs = 150 * 1000 * 1000;

// A rate: the generic cell rate algorithm (ITU-T I.371, 1996), a token bucket in one number. `due_ns` is when
// the next would come if all came evenly; one may come early by as much as the slack.
//
// Who waits comes in bunches: the door that the slack has closed opens again when a bunch's worth of it is
// there, of the slack beyond kLeastSlackNs and at most kMostBunchNs. A login disturbs the sessions that work
// for longer than it takes, and six at once disturb them once.
struct Pace {
    // Written by the launcher under the lock; also read without it.
    std::atomic<int64_t> interval_ns; // 0: no rate
    std::atomic<int64_t> slack_ns;

    // Under the lock.
    int64_t due_ns;
    bool open; // since the last one came, the slack is not used up

    void Set(double per_second, uint32_t burst) noexcept; // per_second 0: no rate
    bool Limits() const noexcept { return interval_ns.load(std::memory_order_relaxed) != 0; }
    double PerSecond() const noexcept; // 0: no rate
    bool IsDue(int64_t now_us) const noexcept;
    void Charge(int64_t now_us) noexcept;
};

// One per session, at the index of its PGPROC. Two cache lines, so that neighbours do not share one.
struct alignas(128) Ticket {
    // Low 8 bits: TicketState. The rest: a sequence number that the owner moves on with every acquisition, so
    // that the supervisor's compare-and-swap to kLent cannot hit a later transaction of the same session.
    // Written by the owner; from kWaiting only under the lock; from kHeld to kLent by the supervisor.
    std::atomic<uint64_t> word;

    // Set by the owner while kFree; read by anybody.
    std::atomic<uint32_t> class_id;
    std::atomic<int32_t> pid;
    std::atomic<int64_t> since_us; // when it began to wait, or to run; microseconds of the caller's clock

    // Statements begun by the owner: a ticket whose owner is silent shows the same number twice. Owner only.
    std::atomic<uint32_t> beats;

    // Transactions this session was granted, or had a coalescing worker for, since it connected. Owner only.
    std::atomic<uint32_t> served;

    // Set by the supervisor when it lends a stalled slot, not a silent one; cleared by the owner's next
    // acquisition.
    std::atomic<uint32_t> stalled;

    // When the session ran its first transaction. Owner only.
    std::atomic<int64_t> connected_us;

    // Links of the class's queue. Under the lock.
    uint32_t next;
    uint32_t previous;
};

struct alignas(128) GateClass {
    // Low 24 bits: slots held. High 40 bits: transactions admitted, ever. One add does both.
    std::atomic<uint64_t> flow;

    // Settings. Written by the launcher under the lock, atomically: they are also read without it.
    char name[kClassNameSize];
    std::atomic<uint32_t> in_use;
    uint32_t weight;
    uint32_t reserved;
    uint32_t max_active;                   // 0: none of its own
    uint32_t queue_size;                   // 0: none of its own
    std::atomic<int32_t> queue_timeout_ms; // -1: inherits the gate's
    Pace pace;

    // The queue. Under the lock; `waiting` is also read without it.
    uint32_t head;
    uint32_t tail;
    std::atomic<uint32_t> waiting;
    uint64_t pass;

    // Statistics; anybody, relaxed. A process that dies in between loses a count, nothing else.
    std::atomic<uint64_t> admitted_base; // `flow`'s count at the last reset
    std::atomic<uint64_t> queued;
    std::atomic<uint64_t> bypassed; // superusers and monitoring
    std::atomic<uint64_t> over;     // granted over the limit, because somebody waited for their locks
    std::atomic<uint64_t> lendings;
    std::atomic<uint64_t> departures[static_cast<size_t>(Departure::kCount)];
    Histogram waits; // of everybody who queued, also of those who left unserved
};

struct alignas(128) GateShared {
    // Low half: slots held (lent ones not counted). High half: waiters.
    std::atomic<uint64_t> load;

    // Written by the launcher. kUnlimited where there is no limit.
    alignas(128) std::atomic<uint32_t> limit;
    std::atomic<uint32_t> enforcing; // 0: Dispatch() grants everybody, nobody enqueues
    std::atomic<uint32_t> shaped;    // some class has a limit, a reserve or a rate: no fast path
    std::atomic<uint32_t> queue_size;
    std::atomic<int32_t> queue_timeout_ms;
    Pace pace;

    // Under the lock.
    uint64_t virtual_time;

    GateClass classes[kMaxClasses];
};

static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<uint32_t>::is_always_lock_free);
static_assert(sizeof(Ticket) == 128);

enum class Admission { kGranted, kQueued, kFull };

// Tickets to wake, filled under the lock, woken after it.
struct WakeList {
    static constexpr uint32_t kCapacity = 64;
    uint32_t count = 0;
    uint32_t tickets[kCapacity];

    bool Full() const noexcept { return count == kCapacity; }
};

// A process's handle on the shared state. Trivially constructible: it may be a global.
class Gate
{
  public:
    static size_t TicketsSize(uint32_t count) noexcept { return sizeof(Ticket) * count; }

    // Once, by the process that creates the shared memory.
    void Init(GateShared *shared, Ticket *tickets, uint32_t count) noexcept;
    void Attach(GateShared *shared, Ticket *tickets, uint32_t count) noexcept;

    // ---- Owner of ticket `id`, without the lock -------------------------------------------------

    // True: a slot was free, nobody waited, no class is shaped, there is no rate. `now_us` is what
    // weir.activity will show.
    bool TryAcquire(uint32_t id, uint32_t class_id, int64_t now_us) noexcept;

    // Observe mode: takes a slot whatever the limit says. True if the transaction would have waited.
    bool AcquireUncontrolled(uint32_t id, uint32_t class_id, int64_t now_us) noexcept;

    // Gives the slot back, from kHeld or kLent. True: somebody waits, call Dispatch() under the lock. Does
    // nothing and returns false when kFree; kWaiting must Leave() first.
    bool Release(uint32_t id) noexcept;

    // The owner of a lent slot speaks again: it has its slot back at once, over the limit if need be. Returns
    // whether it was lent.
    bool Reclaim(uint32_t id) noexcept;

    // The owner begins a statement.
    void Beat(uint32_t id) noexcept
    {
        std::atomic<uint32_t> &beats = tickets_[id].beats;
        beats.store(beats.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }

    // The owner has had a transaction, with a slot or without one.
    void CountServed(uint32_t id) noexcept
    {
        std::atomic<uint32_t> &served = tickets_[id].served;
        served.store(served.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }

    // ---- Under the lock -------------------------------------------------------------------------

    // Joins the queue of its class and dispatches. kGranted when its turn came at once, even if the queue is
    // full, or it may not wait.
    Admission Enqueue(uint32_t id, uint32_t class_id, int64_t now_us, WakeList *wake,
                      bool may_wait = true) noexcept;

    // Leaves the queue. False: it is not in it, because the slot was granted in the meantime (the caller
    // holds it).
    bool Leave(uint32_t id) noexcept;

    // Hands free slots to the next waiters. Returns when there is no slot, no waiter, or when `wake` is full:
    // then call it again.
    void Dispatch(int64_t now_us, WakeList *wake) noexcept;

    // Observe mode: whether the rates would have made it wait; else it is charged to them.
    bool IsTooSoon(uint32_t class_id, int64_t now_us) noexcept;

    // Grants a slot over the limit. False: the ticket does not wait any more.
    bool GrantOver(uint32_t id) noexcept;

    // Makes the class table that of `specs`. Classes keep their index as long as they exist or are in use.
    // Returns the number of specs that found no room.
    uint32_t Configure(const ClassSpecs &specs) noexcept;

    // Writes each waiter's place in the queue of the class, 0 for the first, to positions[its ticket].
    void PositionsOf(uint32_t class_id, uint32_t *positions) const noexcept;

    // ---- The supervisor, without the lock -------------------------------------------------------

    // Lends the slot of the acquisition that `word` was read from. True: call Dispatch() under the lock if
    // any waits.
    bool Lend(uint32_t id, uint64_t word, bool stalled) noexcept;

    // ---- Anybody --------------------------------------------------------------------------------

    uint32_t Active() const noexcept { return ActiveOf(shared_->load.load(std::memory_order_relaxed)); }
    uint32_t Waiting() const noexcept { return WaitingOf(shared_->load.load(std::memory_order_seq_cst)); }
    uint32_t FindClass(const char *name) const noexcept;          // kMaxClasses: none
    uint32_t FindClassOrDefault(const char *name) const noexcept; // null: the default class
    int32_t QueueTimeoutMs(uint32_t class_id) const noexcept;
    static TicketState StateOf(uint64_t word) noexcept { return static_cast<TicketState>(word & 0xff); }
    TicketState State(uint32_t id) const noexcept
    {
        return StateOf(tickets_[id].word.load(std::memory_order_acquire));
    }
    static uint32_t ClassActive(const GateClass &c) noexcept
    {
        return static_cast<uint32_t>(c.flow.load(std::memory_order_relaxed) & kActiveMask);
    }
    static uint64_t ClassAdmitted(const GateClass &c) noexcept
    {
        return c.flow.load(std::memory_order_relaxed) >> kAdmittedShift;
    }
    Ticket &ticket(uint32_t id) noexcept { return tickets_[id]; }
    const Ticket &ticket(uint32_t id) const noexcept { return tickets_[id]; }
    GateClass &group(uint32_t class_id) noexcept { return shared_->classes[class_id]; }
    GateShared &shared() noexcept { return *shared_; }
    uint32_t ticket_count() const noexcept { return ticket_count_; }

    // Forgets statistics; slots and queues are untouched.
    void ResetStatistics() noexcept;

  private:
    static constexpr uint64_t kWaiter = 1ull << 32;
    static constexpr uint32_t kAdmittedShift = 24;
    static constexpr uint64_t kActiveMask = (1ull << kAdmittedShift) - 1;
    static constexpr uint64_t kAdmission = (1ull << kAdmittedShift) + 1; // one more admitted, one more active
    static constexpr uint64_t kStride = 1ull << 20;

    static uint32_t ActiveOf(uint64_t load) noexcept { return static_cast<uint32_t>(load); }
    static uint32_t WaitingOf(uint64_t load) noexcept { return static_cast<uint32_t>(load >> 32); }

    void Hold(uint32_t id, uint32_t class_id, int64_t now_us) noexcept;
    void Unlink(uint32_t id) noexcept;
    uint32_t NextClass(int64_t now_us) const noexcept;
    void Grant(uint32_t id) noexcept;
    void Charge(GateClass *c) noexcept;
    uint32_t TakeClassEntry(const char *name) noexcept;
    bool ClassIdle(const GateClass &c) const noexcept;

    GateShared *shared_ = nullptr;
    Ticket *tickets_ = nullptr;
    uint32_t ticket_count_ = 0;
};

} // namespace weir
