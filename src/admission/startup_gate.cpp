#include "admission/startup_gate.hpp"

#include <sys/resource.h>

#include "admission/gate_session.hpp"
#include "admission/refusal.hpp"
#include "admission/session_class.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/port.hpp"
#include "pg/shared.hpp"
#include "pg/wait.hpp"
#include "replicas/self_quarantine.hpp"

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

// Nothing but termination is told apart: there is no statement yet, and no cancel key.
Departure DepartureOf(Interrupt)
{
    return Departure::kTerminated;
}

GateSession session = {&startup_gate, &startup_lock, StartupQueueWaitEvent, DepartureOf};

StartupShared &Startups()
{
    return shared->startups;
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
    if (!session.holding || event != XACT_EVENT_COMMIT)
        return;
    CountCost();
    session.Release();
}

void OnProcessExit(int, Datum)
{
    session.Drop();
    StartupInfo &info = startup_infos[session.ticket];
    if (info.held_since_us.exchange(0) != 0)
        Startups().held_now.fetch_sub(1);
    startup_gate.ticket(session.ticket).pid.store(0);
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
    session.Register();
    StartupInfo &info = startup_infos[session.ticket];
    CopyAscii(info.role, port.role);
    CopyAscii(info.database, port.database);
    CopyAscii(info.application_name, port.application_name);
    info.address = port.address;
    info.held_since_us.store(0);
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
    return startup_gate.FindClassOrDefault(failed ? kFailedLoginClassName : MappedClass(port));
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
int64_t AuthenticationLeftUs()
{
    if (!get_timeout_active(STATEMENT_TIMEOUT))
        return PG_INT64_MAX;
    const int64_t whole = AuthenticationTimeout * USECS_PER_SEC;
    const int64_t margin = Max(whole / 20, 100 * INT64CONST(1000));
    return get_timeout_finish_time(STATEMENT_TIMEOUT) - margin - GetCurrentTimestamp();
}

int64_t LeftUs(uint32_t class_id, int64_t waited_us)
{
    return Min(session.LeftUs(class_id, waited_us), AuthenticationLeftUs());
}

void LogWait(int64_t began, WaitEnd end)
{
    const int64_t threshold_ms = Startups().log_min_wait_ms.load(std::memory_order_relaxed);
    const int64_t waited_us = MonotonicUs() - began;
    if (threshold_ms < 0 || waited_us < threshold_ms * 1000)
        return;
    const StartupInfo &info = startup_infos[session.ticket];
    char address[kAddressTextSize];
    ereport(LOG, (errmsg("connection waited %.3f ms for its startup%s", static_cast<double>(waited_us) / 1000,
                         end == WaitEnd::kClientGone ? ", until its client went away" : ""),
                  errdetail("user=%s database=%s host=%s application_name=%s", info.role, info.database,
                            AddressText(info.address, address), info.application_name)));
}

// A failed login that may not wait is answered at once: it gets the refusal that it was due anyway.
void AdmitSlowly(uint32_t class_id, bool failed)
{
    const int64_t began = MonotonicUs();
    const StartupInfo &info = startup_infos[session.ticket];
    const bool places = HaveFreePlaces(SparePlaces());
    const auto note = [&](Admission admission) {
        if (admission != Admission::kGranted)
            Startups().storms.Arrive(info.role, info.address, info.application_name);
    };
    switch (session.Enqueue(class_id, places, note)) {
    case Admission::kGranted:
        return;
    case Admission::kFull:
        if (!failed)
            RefuseStartupQueueFull(class_id, places);
        return;
    case Admission::kQueued:
        break;
    }
    CallSupervisor();
    DropSnapshot();
    const WaitEnd end =
        session.Wait(class_id, began, [=](int64_t waited) { return LeftUs(class_id, waited); });
    LogWait(began, end);
    if (end == WaitEnd::kClientGone)
        proc_exit(0); // nobody is left to be told, and the log has connections that end so every day
    if (end == WaitEnd::kTimedOut && !failed)
        RefuseStartupTimedOut(class_id, MonotonicUs() - began);
    (void)GetTransactionSnapshot(); // InitPostgres believes that it has one
}

// ---- failed logins ------------------------------------------------------------------------------

// So many answers may be held at once, and none in the last places; a guesser with more connections than
// that has them answered at once, rather than fill max_connections with them.
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
    const int64_t began = MonotonicUs();
    const int64_t now = GetCurrentTimestamp();
    const int64_t longest = LeftUs(kDefaultClass, 0);
    const bool places = HaveFreePlaces(SparePlaces());
    LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    const int64_t hold_us = s.failed_logins.Judge(address, rate, now, longest);
    const bool hold =
        hold_us > 0 && places && s.held_now.load() < MostHeld() && CurrentMode() == Mode::kEnforce;
    if (hold)
        s.held_now.fetch_add(1);
    LWLockRelease(startup_lock);
    if (!hold)
        return;
    s.held.fetch_add(1, std::memory_order_relaxed);
    StartupInfo &info = startup_infos[session.ticket];
    info.held_since_us.store(now);
    DropSnapshot();
    for (;;) {
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        const int64_t left_us = began + hold_us - MonotonicUs();
        if (left_us <= 0 || CurrentMode() != Mode::kEnforce ||
            s.failed_login_rate.load(std::memory_order_relaxed) == 0)
            break;
        if (WaitForLatchOrClient(GateSession::NapMs(left_us), StartupQueueWaitEvent()) == Woken::kClientGone)
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
    session.holding = true;
    if (startup_gate.AcquireUncontrolled(session.ticket, class_id, now) || too_soon)
        startup_gate.group(class_id).queued.fetch_add(1, std::memory_order_relaxed);
}

void JudgeConnection(const ClientPort &port, int status)
{
    if (shared == nullptr || MyProc == nullptr || CurrentMode() == Mode::kOff || status == STATUS_EOF)
        return;
    const bool failed = status != STATUS_OK;
    if (!failed)
        RefuseInQuarantine(port.role);
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
    else if (startup_gate.TryAcquire(session.ticket, class_id, now))
        session.holding = true;
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
        event = NewWaitEvent("WeirConnectionQueue");
    return event;
}

} // namespace weir
