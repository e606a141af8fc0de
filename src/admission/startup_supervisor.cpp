#include "admission/startup_supervisor.hpp"

#include "admission/gate_session.hpp"
#include "pg/compat.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "lib/stringinfo.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

// A held ticket, as it was first seen.
struct Watch {
    uint64_t word;
    int64_t since;
};

struct Totals {
    uint64_t admitted;
    uint64_t left;
};

} // namespace

struct StartupSupervisor {
    Watch *watches;
    int64_t control_began;
    uint64_t control_admitted;
    uint64_t control_cpu_us;
    uint64_t control_finished;
};

namespace
{

Totals CountTotals()
{
    Totals totals = {};
    for (uint32_t i = 0; i < kMaxClasses; i++) {
        const GateClass &c = startup_gate.group(i);
        totals.admitted += Gate::ClassAdmitted(c);
        for (const std::atomic<uint64_t> &departure : c.departures)
            totals.left += departure.load(std::memory_order_relaxed);
    }
    return totals;
}

// Returns how long the longest waiter has waited.
int64_t LookAtTickets(StartupSupervisor *s, int64_t now)
{
    int64_t oldest_wait_us = 0;
    for (uint32_t id = 0; id < startup_gate.ticket_count(); id++) {
        const Ticket &t = startup_gate.ticket(id);
        const uint64_t word = t.word.load(std::memory_order_acquire);
        Watch *watch = &s->watches[id];
        if (watch->word != word)
            *watch = {word, now};
        if (Gate::StateOf(word) == TicketState::kWaiting)
            oldest_wait_us = Max(oldest_wait_us, now - t.since_us.load());
        else if (Gate::StateOf(word) == TicketState::kHeld && settings.stall_timeout_ms > 0 &&
                 now - watch->since >= settings.stall_timeout_ms * INT64CONST(1000))
            startup_gate.Lend(id, word, true);
    }
    return oldest_wait_us;
}

void AppendTop(StringInfo to, const char *what, const StormTop (&top)[kStormTop])
{
    for (const StormTop &entry : top)
        if (entry.count > 0)
            appendStringInfo(to, "%s%s (" UINT64_FORMAT ")", &entry == &top[0] ? what : ", ",
                             entry.name[0] != '\0' ? entry.name : "\"\"", entry.count);
}

void LogStorm(StormEvent event, const StormRecord &storm)
{
    if (event == StormEvent::kBegan) {
        ereport(LOG, (errmsg("connection storm began: %u connections wait for their startup, " UINT64_FORMAT
                             " left unserved",
                             storm.peak_waiting, storm.left)));
        return;
    }
    StringInfoData who;
    initStringInfo(&who);
    AppendTop(&who, "Roles: ", storm.roles);
    AppendTop(&who, "; addresses: ", storm.addresses);
    AppendTop(&who, "; applications: ", storm.applications);
    ereport(LOG,
            (errmsg("connection storm ended after %.1f s: at most %u waited at once, the longest for %.1f s",
                    static_cast<double>(storm.ended_us - storm.began_us) / 1e6, storm.peak_waiting,
                    static_cast<double>(storm.longest_wait_us) / 1e6),
             errdetail(UINT64_FORMAT " had to wait, " UINT64_FORMAT " were admitted, " UINT64_FORMAT
                                     " left unserved. %s.",
                       storm.arrivals, storm.admitted, storm.left, who.data)));
    pfree(who.data);
}

void WatchForStorm(int64_t now, int64_t oldest_wait_us)
{
    StormRecord latest = {};
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    // Under the lock, like `waiting`: or a storm's last grant would fall into the quiet after it.
    const Totals totals = CountTotals();
    StormLog &storms = shared->startups.storms;
    const StormEvent event =
        storms.Update(now, startup_gate.Waiting(), oldest_wait_us, totals.admitted, totals.left);
    if (event != StormEvent::kNone)
        storms.Copy(&latest, 1);
    LWLockRelease(startup_lock);
    if (event != StormEvent::kNone)
        LogStorm(event, latest);
}

// The burst that makes those who wait come in whole bunches.
uint32_t BurstOf(double rate)
{
    return 1 + static_cast<uint32_t>(rate * (kLeastSlackNs + kMostBunchNs) / 1e9);
}

} // namespace

StartupSupervisor *StartStartupSupervisor(int64_t now)
{
    auto *s =
        static_cast<StartupSupervisor *>(MemoryContextAllocZero(TopMemoryContext, sizeof(StartupSupervisor)));
    s->watches = static_cast<Watch *>(
        MemoryContextAllocZero(TopMemoryContext, sizeof(Watch) * startup_gate.ticket_count()));
    s->control_began = now;
    s->control_admitted = CountTotals().admitted;
    s->control_cpu_us = shared->startups.cpu_us.load();
    s->control_finished = shared->startups.finished.load();
    return s;
}

void FollowClockBack(StartupSupervisor *s, int64_t now)
{
    s->control_began = now;
    for (uint32_t id = 0; id < startup_gate.ticket_count(); id++)
        s->watches[id].since = Min(s->watches[id].since, now);
}

void SuperviseStartups(StartupSupervisor *s, int64_t now)
{
    const bool somebody_waits = startup_gate.Waiting() > 0;
    const int64_t oldest_wait_us = somebody_waits ? LookAtTickets(s, now) : 0;
    if (somebody_waits)
        DispatchSlots(&startup_gate, startup_lock);
    WatchForStorm(now, oldest_wait_us);
}

void AdaptStartups(StartupSupervisor *s, double established, double cpu_idle, int64_t now)
{
    StartupShared &startups = shared->startups;
    const uint64_t admitted = CountTotals().admitted;
    const uint64_t cpu_us = startups.cpu_us.load();
    const uint64_t finished = startups.finished.load();
    StartupSample sample = {};
    sample.interval_s = static_cast<double>(now - s->control_began) / 1e6;
    sample.established = established;
    sample.cpu_idle = cpu_idle;
    sample.waiting = startup_gate.Waiting();
    sample.admitted = admitted - s->control_admitted;
    sample.cpu_s = static_cast<double>(cpu_us - s->control_cpu_us) / 1e6;
    sample.finished = finished - s->control_finished;
    s->control_began = now;
    s->control_admitted = admitted;
    s->control_cpu_us = cpu_us;
    s->control_finished = finished;

    StartupBounds bounds;
    bounds.cores = CurrentAdaptiveBounds().cores;
    bounds.share = settings.startup_share / 100.0;
    bounds.timeout_s = settings.startup_timeout_ms / 1000.0;
    const double rate = StartupPaceUpdate(&startups.pace, bounds, sample);
    if (settings.max_startups >= 0 || settings.startup_rate > 0) {
        startups.pace.rate = settings.startup_rate;
        startups.pace.reason = StartupReason::kFixed;
        return;
    }
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    startups.gate.pace.Set(settings.startup_share < 100 ? rate : 0, BurstOf(rate));
    LWLockRelease(startup_lock);
}

} // namespace weir
