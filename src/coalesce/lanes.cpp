#include "coalesce/lanes.hpp"

#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/own_worker.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "catalog/pg_authid.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "storage/latch.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kRetryUs = 10 * USECS_PER_SEC;       // after a worker could not be registered
constexpr int64_t kStalledForUs = 2 * USECS_PER_SEC;   // at least
constexpr int64_t kComesWithinUs = 10 * USECS_PER_SEC; // one that was registered, and did not come

Lane *lanes_of_mine[kMaxCoalesceWorkers]; // where they were last seen
Lane *submit_lane_of_mine = nullptr;

// `role`: InvalidOid for a coalescer's lane.
bool IsOurs(const Lane &lane, uint32_t number, Oid role)
{
    return lane.database.load(std::memory_order_relaxed) == MyDatabaseId &&
           lane.number.load(std::memory_order_relaxed) == number &&
           lane.role.load(std::memory_order_relaxed) == role && lane.State() != LaneState::kFree;
}

void Enter(Lane *lane, LaneState state, int64_t since)
{
    lane->since.store(since);
    lane->state.store(static_cast<uint32_t>(state), std::memory_order_seq_cst);
}

// Finds the lane, or claims one. Null: all are in use, or as many for units as there may be.
Lane *ClaimLane(uint32_t number, Oid role)
{
    Lane *lanes = shared->coalescing.lanes;
    Lane *found = nullptr;
    Lane *free_lane = nullptr;
    int submitters = 0;
    LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
    for (uint32_t i = 0; i < kLanes; i++) {
        if (IsOurs(lanes[i], number, role))
            found = &lanes[i];
        else if (lanes[i].State() == LaneState::kFree)
            free_lane = free_lane == nullptr ? &lanes[i] : free_lane;
        else if (OidIsValid(lanes[i].role.load()))
            submitters++;
    }
    const bool may_claim = !OidIsValid(role) || submitters < settings.submit_workers;
    if (found == nullptr && free_lane != nullptr && may_claim) {
        found = free_lane;
        found->database.store(MyDatabaseId);
        found->number.store(number);
        found->role.store(role);
        found->stop.store(0);
        Enter(found, LaneState::kWanted, 0);
    }
    LWLockRelease(coalesce_lock);
    return found;
}

bool Register(uint32_t lane, bool submits)
{
    BackgroundWorker worker =
        submits ? OwnWorker("pg_weir submitter", "weir_submitter_main", BgWorkerStart_RecoveryFinished)
                : OwnWorker("pg_weir coalescer", "weir_coalescer_main", BgWorkerStart_RecoveryFinished);
    worker.bgw_main_arg = UInt32GetDatum(lane);
    return RegisterDynamicBackgroundWorker(&worker, nullptr);
}

void Start(Lane *lane, int64_t now)
{
    CoalesceShared &c = shared->coalescing;
    Enter(lane, LaneState::kStarting, now);
    if (Register(LaneIndex(*lane), OidIsValid(lane->role.load()))) {
        c.starts_failing.store(0);
        return;
    }
    Enter(lane, LaneState::kWanted, now + kRetryUs);
    c.starts_failed.fetch_add(1);
    if (c.starts_failing.exchange(1) == 0)
        ereport(LOG,
                (errmsg("pg_weir: no coalescing worker could be started: statements go the ordinary way"),
                 errhint("Consider increasing max_worker_processes.")));
}

void AskLauncher()
{
    if (shared->coalescing.wanted.exchange(1) != 0)
        return;
    const uint32_t launcher = shared->supervision.ticket.load();
    if (launcher != 0)
        WakeTicket(launcher - 1);
}

bool MayConnect(Oid role)
{
    HeapTuple tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
    if (!HeapTupleIsValid(tuple))
        return false;
    const bool may_login = reinterpret_cast<Form_pg_authid>(GETSTRUCT(tuple))->rolcanlogin;
    ReleaseSysCache(tuple);
    return may_login && MayConnectToDatabase(MyDatabaseId, role);
}

// The lane if its worker runs. If one is wanted, and nobody knows yet, the launcher is asked.
Lane *IfRunning(Lane *lane)
{
    if (lane == nullptr)
        return nullptr;
    if (lane->State() == LaneState::kRunning)
        return lane;
    if (lane->State() == LaneState::kWanted)
        AskLauncher();
    return nullptr;
}

} // namespace

uint32_t LaneIndex(const Lane &lane)
{
    return static_cast<uint32_t>(&lane - shared->coalescing.lanes);
}

Lane *FindLane(Oid relation)
{
    const uint32_t number = relation % static_cast<uint32_t>(settings.coalesce_workers);
    Lane *lane = lanes_of_mine[number];
    if (lane == nullptr || !IsOurs(*lane, number, InvalidOid)) {
        lane = ClaimLane(number, InvalidOid);
        lanes_of_mine[number] = lane;
    }
    return IfRunning(lane);
}

Lane *FindSubmitLane(Oid role)
{
    Lane *lane = submit_lane_of_mine;
    if (lane == nullptr || !IsOurs(*lane, 0, role)) {
        // A worker that may not connect would only fill the log.
        lane = settings.submit_workers > 0 && MayConnect(role) ? ClaimLane(0, role) : nullptr;
        submit_lane_of_mine = lane;
    }
    return IfRunning(lane);
}

uint32_t Leave(Lane *lane, int64_t not_before)
{
    if (lane->lazy.count == 0) {
        lane->database.store(InvalidOid);
        Enter(lane, LaneState::kFree, 0);
        return 0;
    }
    lane->stop.store(0);
    Enter(lane, LaneState::kWanted, not_before);
    return lane->lazy.count;
}

bool CloseLane(Lane *lane)
{
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    const bool empty = lane->lazy.count == 0;
    if (empty)
        lane->state.store(static_cast<uint32_t>(LaneState::kEnding), std::memory_order_seq_cst);
    LWLockRelease(lazy_lock);
    return empty;
}

uint32_t FreeLane(Lane *lane)
{
    constexpr int64_t kPauseUs = 2 * USECS_PER_SEC; // the database may be wanted for somebody alone
    LWLockAcquire(lazy_lock, LW_EXCLUSIVE);
    const uint32_t rest = Leave(lane, lane->stop.load() != 0 ? MonotonicUs() + kPauseUs : 0);
    LWLockRelease(lazy_lock);
    if (rest > 0)
        AskLauncher();
    return rest;
}

bool EnterLane(Lane *lane, Oid role)
{
    LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
    const bool ours = lane->State() == LaneState::kStarting && lane->database.load() == MyDatabaseId &&
                      lane->role.load() == role;
    if (ours) {
        lane->epoch.fetch_add(1);
        lane->ticket.store(MyTicketId() + 1);
        lane->pid.store(static_cast<uint32_t>(MyProcPid));
        lane->asleep.store(0);
        lane->throttled.store(0);
        lane->stalled.store(0);
        lane->xid.store(InvalidTransactionId);
        lane->state.store(static_cast<uint32_t>(LaneState::kRunning), std::memory_order_seq_cst);
    }
    LWLockRelease(coalesce_lock);
    return ours;
}

void NoteStall(Lane *lane)
{
    if (OidIsValid(lane->role.load()))
        return; // units of weir.submit() differ: one that is long says nothing of the next
    lane->stalled_round.store(lane->rounds.load());
    lane->stalled_until.store(MonotonicUs() + kStalledForUs);
    if (lane->stalled.exchange(1) == 0)
        ereport(LOG,
                (errmsg("pg_weir: the worker with PID %u does not take requests: statements go the ordinary "
                        "way until it moves on",
                        lane->pid.load())));
}

bool IsStalled(Lane *lane)
{
    if (lane->stalled.load(std::memory_order_relaxed) == 0)
        return false;
    if (lane->State() == LaneState::kRunning &&
        (lane->rounds.load() == lane->stalled_round.load() || lane->stalled_until.load() > MonotonicUs()))
        return true;
    if (lane->stalled.exchange(0) != 0)
        ereport(LOG, (errmsg("pg_weir: the worker with PID %u takes requests again", lane->pid.load())));
    return false;
}

void Ring(Lane *lane)
{
    if (lane->asleep.load(std::memory_order_seq_cst) == 0 || lane->asleep.exchange(0) == 0)
        return;
    const uint32_t ticket = lane->ticket.load();
    if (ticket != 0)
        WakeTicket(ticket - 1);
}

bool StartWantedWorkers(int64_t now)
{
    CoalesceShared &c = shared->coalescing;
    bool more = false;
    if (c.wanted.load() == 0)
        return false;
    c.wanted.store(0);
    for (Lane &lane : c.lanes) {
        if (lane.State() == LaneState::kWanted && lane.since.load() <= now)
            Start(&lane, now);
        LWLockAcquire(coalesce_lock, LW_EXCLUSIVE);
        if (lane.State() == LaneState::kStarting && now - lane.since.load() > kComesWithinUs)
            Leave(&lane, now + kRetryUs);
        LWLockRelease(coalesce_lock);
        more = more || lane.State() == LaneState::kWanted || lane.State() == LaneState::kStarting;
    }
    if (more)
        c.wanted.store(1);
    return more;
}

void EndWorkersOf(Oid database)
{
    constexpr int kTries = 100;
    constexpr long kPauseMs = 20;
    for (int i = 0; i < kTries; i++) {
        bool any = false;
        for (Lane &lane : shared->coalescing.lanes) {
            const uint32_t ticket = lane.ticket.load();
            if (lane.database.load() != database || ticket == 0)
                continue;
            any = true;
            lane.stop.store(1);
            WakeTicket(ticket - 1);
        }
        if (!any)
            return;
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, kPauseMs, PG_WAIT_EXTENSION);
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
    }
}

} // namespace weir
