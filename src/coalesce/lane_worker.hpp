#pragma once

// What coalescers and submitters do alike with their lane. All of it is the worker's, whose lane it is.

#include "coalesce/lanes.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "storage/latch.h"
}

namespace weir
{

// Whether somebody waits whose request was not taken yet.
inline bool HasRequests(const Lane &lane)
{
    return RequestBitmap::Any(RequestsOf(LaneIndex(lane)), SessionCount());
}

// Sleeps until a client rings, `nap_ms` at most; not at all if there is something to do, or `more()` knows of
// something.
template <typename More> void SleepUntilRung(Lane *lane, long nap_ms, uint32 wait_event, More more)
{
    ResetLatch(MyLatch);
    lane->asleep.store(1, std::memory_order_seq_cst);
    if (!HasRequests(*lane) && lane->stop.load() == 0 && !more())
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, nap_ms, wait_event);
    lane->asleep.store(0, std::memory_order_relaxed);
}

// A client looks whose a lane is, packs its request, and publishes it; meanwhile the lane may have become
// another's.
inline bool IsForLane(const RequestSlot &slot, const Lane &lane)
{
    const Oid role = lane.role.load();
    return slot.database == lane.database.load() && (!OidIsValid(role) || slot.role == role);
}

// Takes at most `room` requests into batch `number`, from session `*next` on, and moves that: nobody is
// passed over for long. `sessions` has room for as many; add(slot, session) gets each one.
template <typename Add>
void TakeRequests(const Lane &lane, uint32_t number, uint32_t *next, uint32_t *sessions, uint32_t room,
                  Add add)
{
    const uint32_t found =
        RequestBitmap::Drain(RequestsOf(LaneIndex(lane)), SessionCount(), *next, sessions, room);
    for (uint32_t i = 0; i < found; i++) {
        RequestSlot *slot = &request_slots[sessions[i]];
        if (slot->Take(number)) {
            if (IsForLane(*slot, lane))
                add(slot, sessions[i]);
            else
                slot->Finish(Verdict::kNotExecuted, GiveBack::kWorkerEnding, 0);
        }
        *next = (sessions[i] + 1) % SessionCount();
    }
}

// Nobody new is served. `give_back()` takes and answers those who published before, kMaxCoalesceBatch at a
// time.
template <typename GiveBack> void EndService(Lane *lane, GiveBack give_back)
{
    lane->state.store(static_cast<uint32_t>(LaneState::kEnding), std::memory_order_seq_cst);
    for (uint32_t i = 0; i <= SessionCount() / kMaxCoalesceBatch; i++)
        give_back();
    lane->asleep.store(0);
    lane->pid.store(0);
    lane->ticket.store(0);
}

} // namespace weir
