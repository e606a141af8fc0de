#pragma once

// This process's visit to one of the two gates: its ticket, the slot it may hold, and the wait for one.
//
// What the gates' callers decide stays with them: who is judged, what a slot is for, what a refused client is
// told, and when the slot is given back. A wait is interruptible, and bounded by the caller's deadline; who
// leaves the queue is counted under the reason, once.

#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/wait.hpp"

extern "C" {
#include "storage/latch.h"
#include "utils/timestamp.h"
}

namespace weir
{

// Hands out the free slots of a gate and wakes their new owners. Takes the gate's lock.
void DispatchSlots(Gate *gate, LWLock *lock);

enum class WaitEnd {
    kHeld,       // the slot is held
    kTimedOut,   // out of the queue, and counted, like the following
    kClientGone, //
    kInterrupted // by what then did nothing: not known to happen
};

struct GateSession {
    Gate *const gate;
    LWLock **const lock; // there is none before shared memory is
    uint32 (*const wait_event)();
    Departure (*const departure_of)(Interrupt); // what a wait that an interrupt ends is counted as

    uint32_t ticket = kNoTicket;
    bool holding = false; // the ticket is held or lent

    // Once per process, before anything else. The caller arranges for Drop() at the process's exit.
    void Register();

    TicketState State() const { return gate->State(ticket); }

    // Gives the slot back, and hands it on if anybody waits.
    void Release();

    // The safety net of every way out: what an error in between might have left.
    void Drop();

    // Out of the queue. False: the slot was granted in the same moment, and is now held.
    bool Leave(Departure departure);

    // Joins the queue; kFull instead of a wait if it may not wait. `note(admission)` runs under the gate's
    // lock. kFull is counted here.
    template <typename F> Admission Enqueue(uint32_t class_id, bool may_wait, F note)
    {
        WakeList wake;
        LWLockAcquire(*lock, LW_EXCLUSIVE);
        const Admission admission = gate->Enqueue(ticket, class_id, GetCurrentTimestamp(), &wake, may_wait);
        note(admission);
        LWLockRelease(*lock);
        WakeAll(wake);
        if (wake.Full())
            DispatchSlots(gate, *lock);
        holding = admission == Admission::kGranted;
        if (admission == Admission::kFull)
            CountDeparture(class_id, Departure::kRefused, 0);
        return admission;
    }

    // How long (us) the class's timeout, which a reload may change meanwhile, leaves who has waited so long;
    // PG_INT64_MAX: there is none.
    int64_t LeftUs(uint32_t class_id, int64_t waited_us) const;

    // Waits in the queue since `began` (MonotonicUs). `left_us(waited_us)` is asked anew each time it wakes.
    // Returns, or an interrupt ends the statement or the process, out of the queue.
    template <typename F> WaitEnd Wait(uint32_t class_id, int64_t began, F left_us)
    {
        int64_t absent_since = 0;
        for (;;) {
            ResetLatch(MyLatch);
            // Held; or lent already, if it was granted and then stalled before this process was scheduled.
            if (State() != TicketState::kWaiting)
                break;
            const int64_t now = MonotonicUs();
            const int64_t left = left_us(now - began);
            if (left <= 0) {
                if (Leave(Departure::kTimedOut))
                    return WaitEnd::kTimedOut;
                break;
            }
            if (IsUnattended(now, &absent_since)) {
                GoUnattended();
                break;
            }
            HandleInterrupts();
            // Run, rather than queue anew.
            if (State() == TicketState::kFree)
                return WaitEnd::kInterrupted;
            const int64_t nap_us = absent_since != 0 ? Min(left, kAbsentAgainUs) : left;
            if (WaitForLatchOrClient(NapMs(nap_us), wait_event()) == Woken::kClientGone &&
                Leave(Departure::kClientGone))
                return WaitEnd::kClientGone;
        }
        holding = true;
        gate->group(class_id).waits.Record(MonotonicUs() - began);
        return WaitEnd::kHeld;
    }

    void CountDeparture(uint32_t class_id, Departure departure, int64_t waited_us);

    // How long to sleep when so much is left: a waiter looks at the world every few seconds even if nobody
    // wakes it, the fallback for a launcher that is gone.
    static long NapMs(int64_t left_us);

  private:
    // That no launcher is there is no proof when it is seen for the first time: it may be about to start, or
    // the whole machine stood still.
    static constexpr int64_t kAbsentAgainUs = USECS_PER_SEC;
    static bool IsUnattended(int64_t now, int64_t *absent_since);

    void GoUnattended();
    void HandleInterrupts();
};

} // namespace weir
