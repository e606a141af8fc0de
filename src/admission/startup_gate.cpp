#include "admission/startup_gate.hpp"

#include <sys/resource.h>

#include "admission/refusal.hpp"
#include "admission/session_class.hpp"
#include "pg/compat.hpp"
#include "pg/port.hpp"
#include "pg/shared.hpp"
#include "pg/wait.hpp"

extern "C" {
#include "access/xact.h"
#include "miscadmin.h"
#include "postmaster/postmaster.h"
#include "replication/walsender.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr long kLongestNapMs = 5000;

// Whether this process holds a startup slot, and its ticket.
bool starting = false;
uint32_t my_ticket = kNoTicket;

StartupShared &Startups()
{
    return shared->startups;
}

void WakeDispatched(bool somebody_waits)
{
    while (somebody_waits) {
        WakeList wake;
        LWLockAcquire(startup_lock, LW_EXCLUSIVE);
        startup_gate.Dispatch(GetCurrentTimestamp(), &wake);
        LWLockRelease(startup_lock);
        WakeAll(wake);
        somebody_waits = wake.Full();
    }
}

void ReleaseSlot()
{
    starting = false;
    WakeDispatched(startup_gate.Release(my_ticket));
}

// What the processors gave this process since its fork: the controller's price of a login.
void CountCost()
{
    rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0)
        return;
    const int64_t us = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * USECS_PER_SEC +
                       usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
    Startups().cpu_us.fetch_add(static_cast<uint64_t>(us), std::memory_order_relaxed);
    Startups().finished.fetch_add(1, std::memory_order_relaxed);
}

// The first commit of the process is InitPostgres's. Its abort ends the process.
void OnTransactionEnd(XactEvent event, void *)
{
    if (!starting || event != XACT_EVENT_COMMIT)
        return;
    CountCost();
    ReleaseSlot();
}

void CountDeparture(uint32_t class_id, Departure departure, int64_t waited_us)
{
    GateClass &c = startup_gate.group(class_id);
    c.departures[static_cast<size_t>(departure)].fetch_add(1, std::memory_order_relaxed);
    if (departure != Departure::kRefused)
        c.waits.Record(waited_us);
}

// Out of the queue, whichever way. False: the slot was granted in the same moment, and is now held.
bool LeaveQueue(Departure departure)
{
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    const bool left = startup_gate.Leave(my_ticket);
    LWLockRelease(startup_lock);
    const Ticket &t = startup_gate.ticket(my_ticket);
    if (left)
        CountDeparture(t.class_id.load(), departure, GetCurrentTimestamp() - t.since_us.load());
    else
        starting = true;
    return left;
}

void OnProcessExit(int, Datum)
{
    if (startup_gate.State(my_ticket) == TicketState::kWaiting)
        LeaveQueue(Departure::kTerminated);
    if (startup_gate.State(my_ticket) != TicketState::kFree)
        ReleaseSlot();
    StartupInfo &info = startup_infos[my_ticket];
    if (info.held_since_us.exchange(0) != 0)
        Startups().held_now.fetch_sub(1);
    startup_gate.ticket(my_ticket).pid.store(0);
}

// ---- who is judged ------------------------------------------------------------------------------

// The client's bytes have no encoding yet, and a view's text must have the database's.
void CopyAscii(char *to, const char *from)
{
    size_t length = 0;
    for (; from != nullptr && from[length] != '\0' && length < StartupInfo::kNameSize - 1; length++)
        to[length] = from[length] >= ' ' && from[length] <= '~' ? from[length] : '?';
    memset(to + length, 0, StartupInfo::kNameSize - length);
}

void Register(const ClientPort &port)
{
    my_ticket = MyTicketId();
    StartupInfo &info = startup_infos[my_ticket];
    CopyAscii(info.role, port.role);
    CopyAscii(info.database, port.database);
    CopyAscii(info.application_name, port.application_name);
    info.address = port.address;
    info.held_since_us.store(0);
    startup_gate.ticket(my_ticket).pid.store(MyProcPid);
    on_shmem_exit(OnProcessExit, 0);
    RegisterXactCallback(OnTransactionEnd, nullptr);
}

bool IsExempt(const ClientPort &port)
{
    if (am_walsender)
        return true;
    const Oid role = port.role != nullptr ? get_role_oid(port.role, true) : InvalidOid;
    return OidIsValid(role) && shared->settings.superuser_bypass.load(std::memory_order_relaxed) &&
           (superuser_arg(role) || MayUseReservedConnections(role));
}

uint32_t ClassOf(const ClientPort &port, bool failed)
{
    const char *name = failed ? kFailedLoginClassName : MappedClass(port);
    const uint32_t found = name == nullptr ? kMaxClasses : startup_gate.FindClass(name);
    return found == kMaxClasses ? kDefaultClass : found;
}

int SparePlaces()
{
    return Min(MaxConnections / 16, 16);
}

// ---- waiting ------------------------------------------------------------------------------------

// Up to 17 InitPostgres takes a snapshot before authentication, and reading catalogs takes one in any
// version: it would hold back the xmin horizon of the shared catalogs, on a standby every horizon.
void DropSnapshot()
{
    GetCatalogSnapshot(InvalidOid); // else the next line has nothing to invalidate, and leaves xmin alone
    InvalidateCatalogSnapshot();
}

// Until our own refusal must be out, because the server's, at authentication_timeout, is a closed connection
// without a word. Authentication itself may have used up most of it.
int64_t AuthenticationLeftUs(int64_t now)
{
    if (!get_timeout_active(STATEMENT_TIMEOUT))
        return PG_INT64_MAX;
    const int64_t whole = AuthenticationTimeout * USECS_PER_SEC;
    const int64_t margin = Max(whole / 20, 100 * INT64CONST(1000));
    return get_timeout_finish_time(STATEMENT_TIMEOUT) - margin - now;
}

int64_t LeftUs(uint32_t class_id, int64_t began, int64_t now)
{
    const int64_t timeout_us = startup_gate.QueueTimeoutMs(class_id) * INT64CONST(1000);
    const int64_t own = timeout_us == 0 ? PG_INT64_MAX : timeout_us - (now - began);
    return Min(own, AuthenticationLeftUs(now));
}

long NapMs(int64_t left_us)
{
    return left_us / 1000 >= kLongestNapMs ? kLongestNapMs : static_cast<long>((left_us + 999) / 1000);
}

// Somebody ends this process: takes it out of the queue, and lets that happen.
void HandleInterrupts()
{
    if (PendingInterrupt() != Interrupt::kNone)
        LeaveQueue(Departure::kTerminated);
    CHECK_FOR_INTERRUPTS();
}

// False: the time was over. True: the slot is held, or (if an interrupt did nothing) the queue was left.
bool WaitForSlot(uint32_t class_id, int64_t began)
{
    for (;;) {
        ResetLatch(MyLatch);
        if (startup_gate.State(my_ticket) != TicketState::kWaiting)
            break;
        const int64_t now = GetCurrentTimestamp();
        const int64_t left_us = LeftUs(class_id, began, now);
        if (left_us <= 0) {
            if (LeaveQueue(Departure::kTimedOut))
                return false;
            break;
        }
        if (SupervisorIsAbsent(now)) {
            LWLockAcquire(startup_lock, LW_EXCLUSIVE);
            startup_gate.GrantOver(my_ticket);
            LWLockRelease(startup_lock);
            ReportAbsentSupervisor();
            break;
        }
        HandleInterrupts();
        if (startup_gate.State(my_ticket) == TicketState::kFree)
            return true;
        if (WaitForLatchOrClient(NapMs(left_us), StartupQueueWaitEvent()) == Woken::kClientGone &&
            LeaveQueue(Departure::kClientGone))
            proc_exit(0); // nobody is left to be told, and the log has connections that end so every day
    }
    starting = true;
    startup_gate.group(class_id).waits.Record(GetCurrentTimestamp() - began);
    return true;
}

void LogWait(int64_t began)
{
    const int64_t threshold_ms = Startups().log_min_wait_ms.load(std::memory_order_relaxed);
    const int64_t waited_us = GetCurrentTimestamp() - began;
    if (threshold_ms >= 0 && waited_us >= threshold_ms * 1000)
        ereport(LOG,
                (errmsg("connection waited %.3f ms for its startup", static_cast<double>(waited_us) / 1000),
                 errdetail("user=%s database=%s application_name=%s", startup_infos[my_ticket].role,
                           startup_infos[my_ticket].database, startup_infos[my_ticket].application_name)));
}

// A failed login that may not wait is answered at once: it gets the refusal that it was due anyway.
void AdmitSlowly(uint32_t class_id, bool failed)
{
    const int64_t began = GetCurrentTimestamp();
    const StartupInfo &info = startup_infos[my_ticket];
    const bool places = HaveFreePlaces(SparePlaces());
    WakeList wake;
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    Admission admission = startup_gate.Enqueue(my_ticket, class_id, began, &wake);
    if (admission == Admission::kQueued && !places) {
        startup_gate.Leave(my_ticket);
        admission = Admission::kFull;
    }
    if (admission != Admission::kGranted)
        Startups().storms.Arrive(info.role, info.address, info.application_name);
    LWLockRelease(startup_lock);
    WakeAll(wake);
    WakeDispatched(wake.Full());

    switch (admission) {
    case Admission::kGranted:
        starting = true;
        return;
    case Admission::kFull:
        CountDeparture(class_id, Departure::kRefused, 0);
        if (!failed)
            RefuseStartupQueueFull(class_id, places);
        return;
    case Admission::kQueued:
        break;
    }
    CallSupervisor();
    DropSnapshot();
    const bool served = WaitForSlot(class_id, began);
    LogWait(began);
    if (!served && !failed)
        RefuseStartupTimedOut(class_id, GetCurrentTimestamp() - began);
    (void)GetTransactionSnapshot(); // InitPostgres believes that it has one
}

// ---- failed logins ------------------------------------------------------------------------------

// So many answers may be held at once; a guesser with more connections than that has them answered at once,
// rather than fill max_connections with them.
uint32_t MostHeld()
{
    return static_cast<uint32_t>(Max(MaxConnections / 16, 1));
}

// Holds the answer of a failed login so that its address hears at most weir.failed_login_rate of them per
// second.
void HoldFailedLogin(const Address &address)
{
    StartupShared &s = Startups();
    const uint32_t rate = s.failed_login_rate.load(std::memory_order_relaxed);
    if (rate == 0)
        return;
    const int64_t began = GetCurrentTimestamp();
    const int64_t longest = LeftUs(kDefaultClass, began, began);
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    const int64_t hold_us = s.failed_logins.Judge(address, rate, began, longest);
    const bool hold = hold_us > 0 && s.held_now.load() < MostHeld();
    if (hold)
        s.held_now.fetch_add(1);
    LWLockRelease(startup_lock);
    if (!hold || CurrentMode() != Mode::kEnforce) {
        if (hold)
            s.held_now.fetch_sub(1);
        return;
    }
    s.held.fetch_add(1, std::memory_order_relaxed);
    StartupInfo &info = startup_infos[my_ticket];
    info.held_since_us.store(began);
    DropSnapshot();
    for (;;) {
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        const int64_t left_us = began + hold_us - GetCurrentTimestamp();
        if (left_us <= 0)
            break;
        if (WaitForLatchOrClient(NapMs(left_us), StartupQueueWaitEvent()) == Woken::kClientGone)
            proc_exit(0);
    }
    info.held_since_us.store(0);
    s.held_now.fetch_sub(1);
}

// ---- the hook -----------------------------------------------------------------------------------

void Observe(uint32_t class_id, int64_t now)
{
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    const bool too_soon = startup_gate.IsTooSoon(class_id, now);
    LWLockRelease(startup_lock);
    starting = true;
    if (startup_gate.AcquireUncontrolled(my_ticket, class_id, now) || too_soon)
        startup_gate.group(class_id).queued.fetch_add(1, std::memory_order_relaxed);
}

void JudgeConnection(const ClientPort &port, int status)
{
    if (shared == nullptr || MyProc == nullptr || CurrentMode() == Mode::kOff || status == STATUS_EOF)
        return;
    const bool failed = status != STATUS_OK;
    const bool exempt = !failed && IsExempt(port);
    const uint32_t class_id = ClassOf(port, failed);
    if (exempt) {
        startup_gate.group(class_id).bypassed.fetch_add(1, std::memory_order_relaxed);
        return;
    }
    Register(port);
    if (failed)
        HoldFailedLogin(port.address);
    const int64_t now = GetCurrentTimestamp();
    if (CurrentMode() == Mode::kObserve)
        Observe(class_id, now);
    else if (startup_gate.TryAcquire(my_ticket, class_id, now))
        starting = true;
    else
        AdmitSlowly(class_id, failed);
}

} // namespace

void InstallStartupGate()
{
    InstallAuthenticationHook(JudgeConnection);
}

uint32 StartupQueueWaitEvent()
{
    static uint32 event = 0;
    if (event == 0)
        event = NewWaitEvent("WeirStartupQueue");
    return event;
}

} // namespace weir
