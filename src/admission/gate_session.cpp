#include "admission/gate_session.hpp"

#include "pg/compat.hpp"

namespace weir
{

void DispatchSlots(Gate *gate, LWLock *lock)
{
    WakeList wake;
    do {
        wake.count = 0;
        LWLockAcquire(lock, LW_EXCLUSIVE);
        gate->Dispatch(GetCurrentTimestamp(), &wake);
        LWLockRelease(lock);
        WakeAll(wake);
    } while (wake.Full());
}

void GateSession::Register()
{
    ticket = MyTicketId();
    gate->ticket(ticket).served.store(0);
    gate->ticket(ticket).connected_us.store(GetCurrentTimestamp());
    gate->ticket(ticket).pid.store(MyProcPid);
}

void GateSession::Release()
{
    holding = false;
    if (gate->Release(ticket))
        DispatchSlots(gate, *lock);
}

void GateSession::Drop()
{
    if (ticket == kNoTicket)
        return;
    if (State() == TicketState::kWaiting)
        Leave(Departure::kTerminated);
    if (State() != TicketState::kFree)
        Release();
}

bool GateSession::Leave(Departure departure)
{
    LWLockAcquire(*lock, LW_EXCLUSIVE);
    const bool left = gate->Leave(ticket);
    LWLockRelease(*lock);
    const Ticket &t = gate->ticket(ticket);
    if (left)
        CountDeparture(t.class_id.load(), departure, GetCurrentTimestamp() - t.since_us.load());
    else
        holding = true;
    return left;
}

void GateSession::CountDeparture(uint32_t class_id, Departure departure, int64_t waited_us)
{
    GateClass &c = gate->group(class_id);
    c.departures[static_cast<size_t>(departure)].fetch_add(1, std::memory_order_relaxed);
    if (departure != Departure::kRefused)
        c.waits.Record(waited_us);
}

int64_t GateSession::LeftUs(uint32_t class_id, int64_t waited_us) const
{
    const int32_t timeout_ms = gate->QueueTimeoutMs(class_id);
    return timeout_ms == 0 ? PG_INT64_MAX : timeout_ms * INT64CONST(1000) - waited_us;
}

long GateSession::NapMs(int64_t left_us)
{
    constexpr long kLongestNapMs = 5000;
    return left_us / 1000 >= kLongestNapMs ? kLongestNapMs : static_cast<long>((left_us + 999) / 1000);
}

bool GateSession::IsUnattended(int64_t now, int64_t *absent_since)
{
    if (!SupervisorIsAbsent(GetCurrentTimestamp())) {
        *absent_since = 0;
        return false;
    }
    if (*absent_since == 0)
        *absent_since = now;
    return shared->supervision.missed.load(std::memory_order_relaxed) != 0 ||
           now - *absent_since >= kAbsentAgainUs;
}

void GateSession::GoUnattended()
{
    LWLockAcquire(*lock, LW_EXCLUSIVE);
    gate->GrantOver(ticket);
    LWLockRelease(*lock);
    ReportAbsentSupervisor();
}

// Leaves the queue if the session is about to be cancelled or ended, and lets that happen.
void GateSession::HandleInterrupts()
{
    const Interrupt interrupt = PendingInterrupt();
    if (interrupt != Interrupt::kNone)
        Leave(departure_of(interrupt));
    CHECK_FOR_INTERRUPTS();
}

} // namespace weir
