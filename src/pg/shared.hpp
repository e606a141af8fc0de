#pragma once

// What pg_weir keeps in shared memory, and this process's way to it.

#include "admission/adaptive_limit.hpp"
#include "admission/gate.hpp"
#include "admission/limit_history.hpp"
#include "admission/query_rules.hpp"
#include "pg/prelude.hpp"
#include "pg/settings.hpp"

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

struct Shared {
    GateShared gate;
    RuntimeSettings settings;
    Supervision supervision;
    QueryRulesShared rules;
    std::atomic<int64_t> statistics_since; // TimestampTz of the last weir.reset()
};

extern Shared *shared; // null until shared_preload_libraries has done its work
extern Gate gate;
extern LWLock *gate_lock;  // queues, grants, class table
extern LWLock *rules_lock; // query rules

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

void WakeTicket(uint32_t id);
void WakeAll(const WakeList &list);

} // namespace weir
