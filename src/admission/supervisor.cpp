#include "admission/supervisor.hpp"

#include "admission/gate_session.hpp"
#include "admission/lock_queues.hpp"
#include "admission/startup_supervisor.hpp"
#include "pg/compat.hpp"
#include "pg/machine.hpp"
#include "pg/shared.hpp"
#include "pg/wait.hpp"

extern "C" {
#include "storage/lock.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"
}

namespace weir
{

namespace
{

constexpr int64_t kControlIntervalUs = 100 * 1000;
constexpr int64_t kRescueIntervalUs = 100 * 1000;
constexpr int64_t kHistoryIntervalUs = USECS_PER_SEC;
constexpr int64_t kEstablishedUs = USECS_PER_SEC;
constexpr uint32 kWaitClassMask = 0xFF000000;

// What is remembered of a ticket from one round to the next.
struct Watch {
    uint32_t served; // at the last control interval
    uint64_t word;
    uint32_t beats;
    int64_t silent_since;  // 0: its client is not silent
    int64_t stalled_since; // 0: it works
};

struct Means {
    uint32_t samples;
    double active;
    double running;
    double lock_waiting;
    double contended;
    double queues;
    double waiting;
    double held_back; // of these: by the limit, not by their class's own
};

// One look at everybody who holds a slot.
struct Census {
    uint32_t held;
    uint32_t running;
    uint32_t lock_waiting;
    uint32_t contended;
    uint32_t queues; // for locks
    uint32_t stalled;
    uint32_t class_held[kMaxClasses];
    uint32_t class_stalled[kMaxClasses];
    uint32_t lent_stalled;
    int64_t oldest_wait_us;
};

} // namespace

struct Supervisor {
    StartupSupervisor *startups;
    Watch *watches;
    LockWait *lock_waits; // of one census
    Means control;
    Means second;
    int64_t control_began;
    int64_t second_began;
    int64_t rescue_next;
    uint64_t control_admitted;
    uint64_t second_admitted;
    uint32_t suspended;   // slots that stalled transactions lent when the last suspension began
    uint32_t established; // sessions at work, in the last control interval
};

namespace
{

uint32 WaitEventOf(uint32_t id)
{
    // One aligned word, written by its owner without a lock, as pg_stat_activity reads it.
    return *const_cast<volatile uint32 *>(&ProcGlobal->allProcs[id].wait_event_info);
}

uint64_t TotalAdmitted()
{
    uint64_t total = 0;
    for (uint32_t i = 0; i < kMaxClasses; i++)
        total += Gate::ClassAdmitted(gate.group(i));
    return total;
}

bool IsAwoken(uint32_t id)
{
    return const_cast<volatile Latch *>(&ProcGlobal->allProcs[id].procLatch)->is_set != 0;
}

// On a processor or ready to be; also one that was granted its slot and has not been scheduled yet to take
// note of it. In 15 and 16 any extension waits under that event: who is not awoken waits for something else.
bool IsReady(uint32_t id, uint32 wait_event)
{
    return wait_event == 0 || (wait_event == TransactionQueueWaitEvent() && IsAwoken(id));
}

// Only what the transaction does itself, or could not do faster with fewer companions, counts as work.
bool IsWork(uint32_t id, uint32 wait_event)
{
    const uint32 wait_class = wait_event & kWaitClassMask;
    return IsReady(id, wait_event) || wait_class == PG_WAIT_IO || wait_class == PG_WAIT_LWLOCK;
}

// Waits until somebody else has flushed WAL, often its own too: that is a share in an I/O. More companions
// make the share larger, not the wait longer.
bool IsSharedFlush(uint32 wait_event)
{
    return wait_event == (PG_WAIT_LWLOCK | WALWriteLock->tranche);
}

void Observe(Watch *watch, uint32_t id, uint64_t word, uint32 wait_event, int64_t now)
{
    const Ticket &t = gate.ticket(id);
    const uint32_t beats = t.beats.load(std::memory_order_relaxed);
    const bool same = watch->word == word && watch->beats == beats;
    watch->word = word;
    watch->beats = beats;
    if (wait_event != WAIT_EVENT_CLIENT_READ)
        watch->silent_since = 0;
    else if (!same || watch->silent_since == 0)
        watch->silent_since = now;
    if (IsWork(id, wait_event))
        watch->stalled_since = 0;
    else if (!same || watch->stalled_since == 0)
        watch->stalled_since = now;
}

bool MayLend(const Watch &watch, uint32 wait_event, int64_t now)
{
    if (settings.idle_yield_ms < 0)
        return false;
    return wait_event == WAIT_EVENT_SYNC_REP ||
           (watch.silent_since != 0 && now - watch.silent_since >= settings.idle_yield_ms * INT64CONST(1000));
}

bool IsStalled(const Watch &watch, int64_t now)
{
    return settings.stall_timeout_ms > 0 && watch.stalled_since != 0 &&
           now - watch.stalled_since >= settings.stall_timeout_ms * INT64CONST(1000);
}

// Without the lock of the lock table's partition, for statistics: the entry may meanwhile be another lock's,
// but it stays in shared memory.
LockWait LockWaitOf(uint32_t id)
{
    const volatile PGPROC *proc = &ProcGlobal->allProcs[id];
    const volatile LOCK *lock = proc->waitLock;
    LockWait wait = {0, proc->xid};
    // Who waits for a tuple is behind one who has it, and waits for a transaction.
    if (lock != nullptr && lock->tag.locktag_type != LOCKTAG_TUPLE)
        wait.awaited = lock->tag.locktag_type == LOCKTAG_TRANSACTION ? lock->tag.locktag_field1
                                                                     : reinterpret_cast<uintptr_t>(lock);
    return wait;
}

// Looks at every ticket, and lends what is idle if anybody waits for it.
Census TakeCensus(Supervisor *s, int64_t now)
{
    Census census = {};
    const bool somebody_waits = gate.Waiting() > 0;
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        Ticket &t = gate.ticket(id);
        const uint64_t word = t.word.load(std::memory_order_acquire);
        const TicketState state = Gate::StateOf(word);
        if (state == TicketState::kWaiting && now - t.since_us.load() > census.oldest_wait_us)
            census.oldest_wait_us = now - t.since_us.load();
        if (state == TicketState::kLent && t.stalled.load() != 0)
            census.lent_stalled++;
        if (state != TicketState::kHeld)
            continue;

        const uint32 wait_event = WaitEventOf(id);
        Watch *watch = &s->watches[id];
        Observe(watch, id, word, wait_event, now);
        if (somebody_waits && MayLend(*watch, wait_event, now) && gate.Lend(id, word, false))
            continue;
        const uint32_t class_id = t.class_id.load(std::memory_order_relaxed);
        const uint32 wait_class = wait_event & kWaitClassMask;
        census.held++;
        census.class_held[class_id]++;
        census.running += IsReady(id, wait_event);
        if (wait_class == PG_WAIT_LOCK)
            s->lock_waits[census.lock_waiting++] = LockWaitOf(id);
        census.contended +=
            (wait_class == PG_WAIT_LWLOCK && !IsSharedFlush(wait_event)) || wait_class == kWaitBufferPin;
        if (IsStalled(*watch, now)) {
            census.stalled++;
            census.class_stalled[class_id]++;
        }
    }
    census.queues = CountLockQueues(s->lock_waits, census.lock_waiting);
    return census;
}

// ---- the hidden deadlock ------------------------------------------------------------------------

bool IsBlockedLong(const PGPROC *proc, int64_t now)
{
    const uint32 wait_event = *const_cast<volatile uint32 *>(&proc->wait_event_info);
    if ((wait_event & kWaitClassMask) != PG_WAIT_LOCK)
        return false;
    const auto since =
        static_cast<int64_t>(pg_atomic_read_u64(const_cast<pg_atomic_uint64 *>(&proc->waitStart)));
    return since != 0 && now - since >= DeadlockTimeout * INT64CONST(1000);
}

// Also processes without a ticket: on a standby replay may wait for a waiter's lock.
bool AnybodyBlockedLong(int64_t now)
{
    for (uint32_t id = 0; id < ProcGlobal->allProcCount; id++)
        if (IsBlockedLong(&ProcGlobal->allProcs[id], now))
            return true;
    return false;
}

bool Conflicts(LOCKMASK held, LOCKMODE wanted)
{
    for (LOCKMODE mode = 1; mode <= MaxLockMode; mode++)
        if ((held & LOCKBIT_ON(mode)) != 0 && DoLockModesConflict(mode, wanted))
            return true;
    return false;
}

// Those of our waiters who hold a lock that somebody waits for. Under all partition locks, shared, as
// GetLockStatusData().
void CollectBlockers(WakeList *blockers, int64_t now)
{
    for (uint32_t id = 0; id < ProcGlobal->allProcCount && !blockers->Full(); id++) {
        PGPROC *proc = &ProcGlobal->allProcs[id];
        if (!IsBlockedLong(proc, now) || proc->waitLock == nullptr)
            continue;
        const LOCKMODE wanted = proc->waitLockMode;
        AnyProcLock(proc->waitLock, [=](const PROCLOCK *held) {
            const auto holder = static_cast<uint32_t>(held->tag.myProc - ProcGlobal->allProcs);
            if (holder < gate.ticket_count() && gate.State(holder) == TicketState::kWaiting &&
                Conflicts(held->holdMask, wanted))
                blockers->tickets[blockers->count++] = holder;
            return blockers->Full();
        });
    }
}

void RescueBlockers(int64_t now)
{
    if (!AnybodyBlockedLong(now))
        return;
    WakeList blockers;
    for (int i = 0; i < NUM_LOCK_PARTITIONS; i++)
        LWLockAcquire(LockHashPartitionLockByIndex(i), LW_SHARED);
    CollectBlockers(&blockers, now);
    for (int i = NUM_LOCK_PARTITIONS; --i >= 0;)
        LWLockRelease(LockHashPartitionLockByIndex(i));
    if (blockers.count == 0)
        return;

    LWLockAcquire(gate_lock, LW_EXCLUSIVE);
    for (uint32_t i = 0; i < blockers.count; i++)
        gate.GrantOver(blockers.tickets[i]);
    LWLockRelease(gate_lock);
    WakeAll(blockers);
}

// ---- suspension ---------------------------------------------------------------------------------

// Lends the stalled slots of a class, or of all (kMaxClasses). Its transactions go on when they can,
// uncounted until their next statement. The others get as many slots as are lent, not an open gate: a
// thousand waiters let in at once would be the very storm that the gate is for.
void Suspend(Supervisor *s, uint32_t class_id, int64_t now)
{
    uint32_t lent = 0;
    uint32_t lent_before = 0;
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        const Ticket &t = gate.ticket(id);
        const Watch &watch = s->watches[id];
        lent_before += gate.State(id) == TicketState::kLent && t.stalled.load() != 0;
        if ((class_id == kMaxClasses || t.class_id.load() == class_id) && IsStalled(watch, now) &&
            t.word.load() == watch.word && gate.Lend(id, watch.word, true))
            lent++;
    }
    if (lent == 0)
        return;
    s->suspended = lent_before + lent;
    shared->supervision.suspended.store(s->suspended);
    shared->supervision.suspensions.fetch_add(1);
    ereport(LOG,
            (errmsg("pg_weir: limit suspended: all %u transaction slots%s%s were stalled for %d ms", lent,
                    class_id == kMaxClasses ? "" : " of class ",
                    class_id == kMaxClasses ? "" : gate.group(class_id).name, settings.stall_timeout_ms),
             errdetail("%u more transactions may run until half of the stalled ones have ended.", lent)));
}

// Whether the slots that no class has reserved are all held by stalled transactions. Which of a class's are
// in its reserve nobody can say, so all of a class that has more than its reserve must be stalled.
bool PoolStalled(const Census &census)
{
    const uint32_t limit = gate.shared().limit.load();
    uint32_t pooled = 0;
    uint32_t reserved = 0;
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const uint32_t reserve = gate.group(i).reserved;
        reserved += reserve;
        if (census.class_held[i] <= reserve)
            continue;
        if (census.class_stalled[i] != census.class_held[i])
            return false;
        pooled += census.class_held[i] - reserve;
    }
    return pooled > 0 && pooled >= (limit > reserved ? limit - reserved : 1);
}

void CheckStalls(Supervisor *s, const Census &census, int64_t now)
{
    if (s->suspended != 0 && census.lent_stalled <= s->suspended / 2) {
        s->suspended = 0;
        shared->supervision.suspended.store(0);
        ereport(LOG, (errmsg("pg_weir: limit in force again")));
    }
    if (gate.Waiting() == 0)
        return;
    if (PoolStalled(census)) {
        Suspend(s, kMaxClasses, now);
        return;
    }
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = gate.group(i);
        if (c.waiting.load() > 0 && c.max_active != 0 && census.class_held[i] >= c.max_active &&
            census.class_stalled[i] == census.class_held[i])
            Suspend(s, i, now);
    }
}

// ---- limit and history --------------------------------------------------------------------------

// In observe mode nobody waits; who is over the limit would.
double WaitingNow(const Census &census)
{
    const uint32_t waiting = gate.Waiting();
    const uint32_t limit = gate.shared().limit.load();
    if (waiting > 0 || CurrentMode() == Mode::kEnforce || census.held <= limit)
        return waiting;
    return census.held - limit;
}

// A class at its own limit gains nothing by a higher one: its waiters do not say that the limit binds.
double HeldBackNow(const Census &census)
{
    double held_back = WaitingNow(census);
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = gate.group(i);
        if (c.max_active != 0 && census.class_held[i] >= c.max_active)
            held_back -= c.waiting.load(std::memory_order_relaxed);
    }
    return held_back > 0 ? held_back : 0;
}

void Accumulate(Means *means, const Census &census)
{
    means->samples++;
    means->active += census.held;
    means->running += census.running;
    means->lock_waiting += census.lock_waiting;
    means->contended += census.contended;
    means->queues += census.queues;
    means->waiting += WaitingNow(census);
    means->held_back += HeldBackNow(census);
}

Means Averaged(const Means &sums)
{
    const double n = sums.samples > 0 ? sums.samples : 1;
    return {sums.samples,       sums.active / n, sums.running / n, sums.lock_waiting / n,
            sums.contended / n, sums.queues / n, sums.waiting / n, sums.held_back / n};
}

// Sessions that are not new, and had a transaction since the last control interval or are in one. By
// counters, not by a look: in a storm a session whose client has sent its statement, and which has no
// processor to read it, would look idle.
uint32_t CountEstablished(Supervisor *s, int64_t now)
{
    uint32_t established = 0;
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        const Ticket &t = gate.ticket(id);
        const uint32_t served = t.served.load(std::memory_order_relaxed);
        const bool had_one = served != s->watches[id].served;
        s->watches[id].served = served;
        if (t.pid.load() == 0 || now - t.connected_us.load(std::memory_order_relaxed) < kEstablishedUs)
            continue;
        const TicketState state = gate.State(id);
        const bool in_one = state == TicketState::kWaiting ||
                            (state == TicketState::kHeld && WaitEventOf(id) != WAIT_EVENT_CLIENT_READ);
        established += had_one || in_one;
    }
    return established;
}

void Adapt(Supervisor *s, int64_t now)
{
    if (now - s->control_began < kControlIntervalUs)
        return;
    const Means means = Averaged(s->control);
    const uint64_t admitted = TotalAdmitted();
    AdaptiveSample sample = {};
    sample.interval_s = static_cast<double>(now - s->control_began) / 1e6;
    sample.active = means.active;
    sample.running = means.running;
    sample.lock_waiting = means.lock_waiting;
    sample.contended = means.contended;
    sample.queues = means.queues;
    sample.waiting = means.held_back;
    sample.finished = admitted - s->control_admitted;
    s->control = Means();
    s->control_began = now;
    s->control_admitted = admitted;
    s->established = CountEstablished(s, now);
    AdaptStartups(s->startups, s->established, CpuIdleShare(), now);
    if (LimitIsAdaptive())
        gate.shared().limit.store(
            AdaptiveUpdate(&shared->supervision.adaptive, CurrentAdaptiveBounds(), sample));
}

void Record(Supervisor *s, const Census &census, int64_t now)
{
    if (now - s->second_began < kHistoryIntervalUs)
        return;
    const Means means = Averaged(s->second);
    const uint64_t admitted = TotalAdmitted();
    const double seconds = static_cast<double>(now - s->second_began) / 1e6;
    LimitSample sample = {};
    sample.at_us = now;
    sample.limit = gate.shared().limit.load();
    sample.reason = LimitIsAdaptive() ? shared->supervision.adaptive.reason : AdaptiveReason::kNotBinding;
    sample.active = static_cast<float>(means.active);
    sample.running = static_cast<float>(means.running);
    sample.lock_waiting = static_cast<float>(means.lock_waiting);
    sample.lock_queues = static_cast<float>(means.queues);
    sample.waiting = static_cast<float>(means.waiting);
    sample.admitted_per_second =
        static_cast<float>(static_cast<double>(admitted - s->second_admitted) / seconds);
    sample.oldest_wait_ms = static_cast<float>(census.oldest_wait_us) / 1000;
    shared->supervision.history.Push(sample);
    s->second = Means();
    s->second_began = now;
    s->second_admitted = admitted;
}

void DispatchAll()
{
    const GateShared &g = gate.shared();
    if (gate.Waiting() == 0 ||
        (g.enforcing.load() != 0 && g.shaped.load() == 0 && gate.Active() >= g.limit.load()))
        return;
    DispatchSlots(&gate, gate_lock);
}

// Coalesced statements hold no slot: their sessions are seen in the count of those at work alone.
long NapMs(const Supervisor &s, const Census &census)
{
    constexpr long kBusy = 5;
    constexpr long kPacing = 20; // those at work are to be left alone
    constexpr long kWatching = 100;
    constexpr long kIdle = 1000;
    if (WaitingNow(census) > 0) {
        const bool shorter = settings.idle_yield_ms >= 0 && settings.idle_yield_ms < kBusy;
        return shorter ? Max(settings.idle_yield_ms, 1) : kBusy;
    }
    if (startup_gate.Waiting() > 0)
        return startup_gate.shared().pace.Limits() ? kPacing : kBusy;
    return census.held > 0 || s.established > 0 ? kWatching : kIdle;
}

// The clock was set back: what lies ahead of it now would be waited for.
void FollowClockBack(Supervisor *s, int64_t now)
{
    s->control_began = s->second_began = s->rescue_next = now;
    for (uint32_t id = 0; id < gate.ticket_count(); id++) {
        Watch &watch = s->watches[id];
        watch.silent_since = Min(watch.silent_since, now);
        watch.stalled_since = Min(watch.stalled_since, now);
    }
    FollowClockBack(s->startups, now);
    if (shared->settings.mode_since.load() > now)
        shared->settings.mode_since.store(now);
}

} // namespace

Supervisor *StartSupervisor()
{
    auto *s = static_cast<Supervisor *>(MemoryContextAllocZero(TopMemoryContext, sizeof(Supervisor)));
    s->watches =
        static_cast<Watch *>(MemoryContextAllocZero(TopMemoryContext, sizeof(Watch) * gate.ticket_count()));
    s->lock_waits = static_cast<LockWait *>(
        MemoryContextAllocZero(TopMemoryContext, sizeof(LockWait) * gate.ticket_count()));
    const int64_t now = GetCurrentTimestamp();
    s->startups = StartStartupSupervisor(now);
    s->control_began = now;
    s->second_began = now;
    s->control_admitted = TotalAdmitted();
    s->second_admitted = s->control_admitted;
    return s;
}

long Supervise(Supervisor *s, int64_t now)
{
    if (now < shared->supervision.last_tick.load(std::memory_order_relaxed))
        FollowClockBack(s, now);
    shared->supervision.last_tick.store(now, std::memory_order_relaxed);
    shared->supervision.missed.store(0, std::memory_order_relaxed);
    SuperviseStartups(s->startups, now);
    if (CurrentMode() == Mode::kOff && gate.Active() == 0 && gate.Waiting() == 0 &&
        startup_gate.Waiting() == 0)
        return 1000;

    const Census census = TakeCensus(s, now);
    Accumulate(&s->control, census);
    Accumulate(&s->second, census);
    if (gate.Waiting() > 0 && now >= s->rescue_next) {
        RescueBlockers(now);
        s->rescue_next = now + kRescueIntervalUs;
    }
    CheckStalls(s, census, now);
    Adapt(s, now);
    Record(s, census, now);
    DispatchAll();
    return NapMs(*s, census);
}

} // namespace weir
