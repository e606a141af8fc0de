#pragma once

// What pg_weir keeps in shared memory, and this process's way to it.

#include "admission/adaptive_limit.hpp"
#include "admission/failed_logins.hpp"
#include "admission/gate.hpp"
#include "admission/limit_history.hpp"
#include "admission/query_rules.hpp"
#include "admission/startup_gate.hpp"
#include "admission/startup_pace.hpp"
#include "admission/storm_log.hpp"
#include "coalesce/coalescing.hpp"
#include "coalesce/submit.hpp"
#include "http/http_worker.hpp"
#include "pg/prelude.hpp"
#include "pg/settings.hpp"
#include "replicas/flow.hpp"
#include "replicas/quarantine.hpp"
#include "replicas/replay_wait.hpp"
#include "replicas/replica_state.hpp"

extern "C" {
#include "storage/lwlock.h"
}

namespace weir
{

// The launcher's. Written by it alone, read by anybody; when it dies its successor goes on with what is here.
struct Supervision {
    std::atomic<uint32_t> ticket;   // the launcher's PGPROC number + 1; 0: no launcher runs
    std::atomic<uint32_t> napping;  // it sleeps long: wake it when the first waiter comes
    std::atomic<int64_t> last_tick; // TimestampTz
    std::atomic<uint32_t> missed;   // a waiter found it gone, and logged that; the next launcher clears it
    std::atomic<uint64_t> suspensions;
    std::atomic<uint32_t>
        suspended;          // slots lent because every one was stalled, while more than half of them are
    bool adapting;          // `adaptive` is in use; launcher only
    AdaptiveState adaptive; // readers may see an update half done: it is for display
    LimitHistory history;
};

// Connections that start. The gate's queues, the storm log and the failed logins are under startup_lock; the
// settings are the launcher's, for processes that cannot read their own; counters are anybody's, relaxed.
struct StartupShared {
    GateShared gate;
    StormLog storms;
    FailedLogins failed_logins;
    StartupPace pace;            // the launcher's; readers may see an update half done: it is for display
    std::atomic<uint32_t> paced; // weir.max_startups = -1

    std::atomic<uint32_t> failed_login_rate; // per address and second; 0: none
    std::atomic<int32_t> log_min_wait_ms;    // -1: never
    std::atomic<int32_t> sqlstate;           // of refusals, as errcode() takes it

    std::atomic<uint64_t> cpu_us;   // processor time of the logins that finished
    std::atomic<uint64_t> finished; // how many these are
    std::atomic<uint64_t> held;     // failed logins whose answer was held back, since weir.reset()
    std::atomic<uint32_t> held_now;
};

// weir.max_startups = -1, and no weir.startup_rate of the user's own.
inline bool StartupRateAdapts(const StartupShared &startups)
{
    return startups.paced.load() != 0 && startups.pace.reason != StartupReason::kFixed;
}

struct Shared {
    GateShared gate;
    RuntimeSettings settings;
    Supervision supervision;
    QueryRulesShared rules;
    StartupShared startups;
    CoalesceShared coalescing;
    SubmitShared submits;
    HttpShared http;
    ReplayWaitShared replay_waits;
    ReplicasShared replicas;
    RoutingShared routing;
    FlowShared flow;
    std::atomic<int64_t> statistics_since; // TimestampTz of the last weir.reset()
};

extern Shared *shared; // null until shared_preload_libraries has done its work
extern Gate gate;
extern LWLock *gate_lock;  // queues, grants, class table
extern LWLock *rules_lock; // query rules; files of rules

extern Gate startup_gate;          // its tickets: one per session, at the index of its PGPROC, like gate's
extern StartupInfo *startup_infos; // one per ticket
extern LWLock *startup_lock;       // its queues, grants, class table; storms; failed logins

extern RequestSlot *request_slots; // one per session, at the index of its PGPROC
extern LWLock *coalesce_lock;      // lanes, entries of tables' counters

// Requests that were answered before they are written: slots, of weir.coalesce_queue_size; how many of each
// session are not done yet.
extern LazyQueue lazy_queue;
extern RequestSlot *lazy_slots;
extern std::atomic<uint32_t> *lazy_outstanding;
extern LWLock *lazy_lock;                    // lazy_queue, lanes' lists, failures
extern std::atomic<uint64_t> *replay_wanted; // one per session, at the index of its PGPROC

extern LWLock *replica_lock; // rows and history of standbys
extern LWLock *flow_lock;    // rules of weir.check_throttle()

uint32_t SessionCount(); // tickets and request slots there are

// A lane's bitmap of sessions with requests.
std::atomic<uint64_t> *RequestsOf(uint32_t lane);

void InstallSharedMemoryHooks();

// Copies this process's settings into shared memory: by the postmaster at start, by the launcher after a
// reload. Everybody who waits is woken to look again.
void PublishSettings();

inline Mode CurrentMode()
{
    return static_cast<Mode>(shared->settings.mode.load(std::memory_order_relaxed));
}

// weir.max_active = -1, in this process's settings.
bool LimitIsAdaptive();
AdaptiveBounds CurrentAdaptiveBounds();

// Nobody minds the queues: neither lending nor the hidden deadlock would be seen, and no rate would ever let
// anybody in. Then the limits must not bind.
bool SupervisorIsAbsent(int64_t now);
void ReportAbsentSupervisor(); // in the log, once

// Somebody begins to wait: the launcher may be in a long sleep.
void CallSupervisor();

void WakeTicket(uint32_t id);
void WakeAll(const WakeList &list);

} // namespace weir
