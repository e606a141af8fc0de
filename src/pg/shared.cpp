#include "pg/shared.hpp"

#include "admission/query_shedding.hpp"
#include "pg/compat.hpp"
#include "pg/machine.hpp"

extern "C" {
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/timestamp.h"
}

namespace weir
{

Shared *shared = nullptr;
Gate gate;
LWLock *gate_lock = nullptr;
LWLock *rules_lock = nullptr;
Gate startup_gate;
StartupInfo *startup_infos = nullptr;
LWLock *startup_lock = nullptr;
RequestSlot *request_slots = nullptr;
LWLock *coalesce_lock = nullptr;
LazyQueue lazy_queue;
RequestSlot *lazy_slots = nullptr;
std::atomic<uint32_t> *lazy_outstanding = nullptr;
LWLock *lazy_lock = nullptr;
std::atomic<uint64_t> *replay_wanted = nullptr;
LWLock *replica_lock = nullptr;
LWLock *flow_lock = nullptr;

namespace
{

constexpr char kTranche[] = "pg_weir";

std::atomic<uint64_t> *request_bitmaps = nullptr; // of all lanes, one after the other

shmem_request_hook_type previous_shmem_request_hook;
shmem_startup_hook_type previous_shmem_startup_hook;

uint32_t TicketCount()
{
    return static_cast<uint32_t>(MaxBackends);
}

uint32_t LazyCount()
{
    return static_cast<uint32_t>(settings.coalesce_queue_size);
}

Size LazySize()
{
    return (sizeof(RequestSlot) + sizeof(LazyLink)) * LazyCount() +
           sizeof(std::atomic<uint32_t>) * TicketCount();
}

Size BitmapsSize()
{
    return kLanes * RequestBitmap::Words(TicketCount()) * sizeof(uint64_t);
}

// The structures are aligned to cache lines; ShmemInitStruct promises that much (ShmemAlloc aligns to
// PG_CACHE_LINE_SIZE, 128), and the tickets follow at a multiple of it.
Size SharedSize()
{
    static_assert(PG_CACHE_LINE_SIZE % alignof(Shared) == 0 && sizeof(Shared) % alignof(Ticket) == 0);
    static_assert(sizeof(StartupInfo) % sizeof(uint64_t) == 0);
    const Size tickets = Gate::TicketsSize(TicketCount());
    return sizeof(Shared) + 2 * tickets + sizeof(RequestSlot) * TicketCount() +
           sizeof(StartupInfo) * TicketCount() + BitmapsSize() + sizeof(uint64_t) * TicketCount() +
           LazySize();
}

void RequestSharedMemory()
{
    if (previous_shmem_request_hook)
        previous_shmem_request_hook();
    RequestAddinShmemSpace(SharedSize());
    RequestNamedLWLockTranche(kTranche, 7);
}

// Runs in the postmaster, again after a crash restart; with EXEC_BACKEND also in every child.
void StartSharedMemory()
{
    if (previous_shmem_startup_hook)
        previous_shmem_startup_hook();

    LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
    bool found;
    void *memory = ShmemInitStruct("pg_weir", SharedSize(), &found);
    LWLockPadded *locks = GetNamedLWLockTranche(kTranche);
    gate_lock = &locks[0].lock;
    rules_lock = &locks[1].lock;
    startup_lock = &locks[2].lock;
    coalesce_lock = &locks[3].lock;
    lazy_lock = &locks[4].lock;
    replica_lock = &locks[5].lock;
    flow_lock = &locks[6].lock;
    auto *tickets = reinterpret_cast<Ticket *>(static_cast<char *>(memory) + sizeof(Shared));
    Ticket *startup_tickets = tickets + TicketCount();
    request_slots = reinterpret_cast<RequestSlot *>(startup_tickets + TicketCount());
    lazy_slots = request_slots + TicketCount();
    startup_infos = reinterpret_cast<StartupInfo *>(lazy_slots + LazyCount());
    request_bitmaps = reinterpret_cast<std::atomic<uint64_t> *>(startup_infos + TicketCount());
    replay_wanted = request_bitmaps + BitmapsSize() / sizeof(uint64_t);
    auto *links = reinterpret_cast<LazyLink *>(replay_wanted + TicketCount());
    lazy_outstanding = reinterpret_cast<std::atomic<uint32_t> *>(links + LazyCount());
    if (found) {
        shared = static_cast<Shared *>(memory);
        gate.Attach(&shared->gate, tickets, TicketCount());
        startup_gate.Attach(&shared->startups.gate, startup_tickets, TicketCount());
    } else {
        shared = new (memory) Shared();
        gate.Init(&shared->gate, tickets, TicketCount());
        startup_gate.Init(&shared->startups.gate, startup_tickets, TicketCount());
        memset(static_cast<void *>(request_slots), 0, sizeof(RequestSlot) * TicketCount());
        memset(static_cast<void *>(startup_infos), 0, sizeof(StartupInfo) * TicketCount());
        memset(static_cast<void *>(request_bitmaps), 0, BitmapsSize());
        // The pool's slots are written before they are read.
        memset(static_cast<void *>(lazy_outstanding), 0, sizeof(std::atomic<uint32_t>) * TicketCount());
        memset(static_cast<void *>(replay_wanted), 0, sizeof(uint64_t) * TicketCount());
        // The clients of a server that comes back come back together: they wait for the launcher, a moment.
        shared->supervision.last_tick.store(GetCurrentTimestamp());
        shared->statistics_since.store(GetCurrentTimestamp());
    }
    lazy_queue.Attach(&shared->coalescing.lazy_pool, links, LazyCount());
    LWLockRelease(AddinShmemInitLock);

    if (!found) {
        PublishSettings();
        LoadQueryRules();
        LoadThrottleRules();
    }
}

AdaptiveBounds AdaptiveBoundsFromSettings(uint32_t cores)
{
    const auto sessions = static_cast<uint32_t>(MaxConnections);
    AdaptiveBounds bounds;
    bounds.cores = cores;
    bounds.min = static_cast<uint32_t>(settings.max_active_min);
    bounds.max = settings.max_active_max > 0 ? static_cast<uint32_t>(settings.max_active_max) : sessions;
    if (bounds.max < bounds.min)
        bounds.max = bounds.min;
    return bounds;
}

void PublishLimit()
{
    GateShared &g = shared->gate;
    if (!LimitIsAdaptive()) {
        g.limit.store(settings.max_active == 0 ? kUnlimited : static_cast<uint32_t>(settings.max_active));
        return;
    }
    const AdaptiveBounds bounds = CurrentAdaptiveBounds();
    AdaptiveState &adaptive = shared->supervision.adaptive;
    // A limit that was being adapted goes on from where it is; one that was fixed or never set begins anew.
    if (!shared->supervision.adapting) {
        AdaptiveReset(&adaptive, bounds);
        shared->supervision.adapting = true;
        g.limit.store(adaptive.limit);
    }
}

void PublishStartupSettings(const ClassSpecs &specs)
{
    StartupShared &s = shared->startups;
    startup_gate.Configure(SpecsOfStartups(specs));
    if (settings.max_startups < 0)
        s.gate.limit.store(kStartupsPerCore * CurrentAdaptiveBounds().cores);
    else
        s.gate.limit.store(settings.max_startups == 0 ? kUnlimited
                                                      : static_cast<uint32_t>(settings.max_startups));
    s.paced.store(settings.max_startups < 0);
    // A rate of the user's own is kept; the adaptive one is the launcher's next decision.
    if (settings.max_startups >= 0 || settings.startup_rate > 0)
        s.gate.pace.Set(settings.startup_rate, static_cast<uint32_t>(settings.startup_burst));
    s.gate.queue_timeout_ms.store(settings.startup_timeout_ms);
    s.gate.queue_size.store(static_cast<uint32_t>(settings.startup_queue_size));
    s.failed_login_rate.store(static_cast<uint32_t>(settings.failed_login_rate));
    s.log_min_wait_ms.store(settings.log_min_startup_wait_ms);
    s.sqlstate.store(settings.startup_sqlstate);
}

} // namespace

uint32_t SessionCount()
{
    return TicketCount();
}

std::atomic<uint64_t> *RequestsOf(uint32_t lane)
{
    return request_bitmaps + lane * RequestBitmap::Words(TicketCount());
}

AdaptiveBounds CurrentAdaptiveBounds()
{
    static uint32_t cores = 0;
    if (cores == 0)
        cores = UsableCores();
    return AdaptiveBoundsFromSettings(cores);
}

bool LimitIsAdaptive()
{
    return settings.max_active < 0;
}

void PublishSettings()
{
    static const ClassSpecs no_classes = {};
    RuntimeSettings &to = shared->settings;
    GateShared &g = shared->gate;

    const ClassSpecs &specs = settings.class_specs != nullptr ? *settings.class_specs : no_classes;
    // The postmaster runs alone here and may not take LWLocks; the launcher does.
    const bool lock = MyProc != nullptr;
    if (lock)
        LWLockAcquire(gate_lock, LW_EXCLUSIVE);
    const uint32_t left_out = gate.Configure(SpecsOfTransactions(specs));
    if (lock) {
        LWLockRelease(gate_lock);
        LWLockAcquire(startup_lock, LW_EXCLUSIVE);
    }
    PublishStartupSettings(specs);
    if (lock)
        LWLockRelease(startup_lock);
    if (left_out > 0)
        ereport(LOG, (errmsg("pg_weir: %u of the classes in weir.classes found no room", left_out),
                      errdetail("Sessions still run or wait in classes that were removed."),
                      errhint("Reload again when they are gone.")));

    g.queue_timeout_ms.store(settings.queue_timeout_ms);
    g.queue_size.store(static_cast<uint32_t>(settings.queue_size));
    if (!LimitIsAdaptive())
        shared->supervision.adapting = false;
    PublishLimit();
    to.superuser_bypass.store(settings.superuser_bypass);
    to.reject_as_fatal.store(settings.reject_as == kRejectAsFatal);
    if (to.mode.load() != settings.mode) {
        to.mode_since.store(GetCurrentTimestamp());
        g.enforcing.store(settings.mode == static_cast<int>(Mode::kEnforce) ? 1 : 0);
        shared->startups.gate.enforcing.store(g.enforcing.load());
        to.mode.store(settings.mode);
    }
    to.generation.fetch_add(1);

    if (LimitIsAdaptive() || settings.class_specs == nullptr)
        return;
    const uint32_t reserved = TotalReserved(specs);
    if (settings.max_active > 0 && reserved >= static_cast<uint32_t>(settings.max_active))
        ereport(LOG, (errmsg("pg_weir: the classes reserve %u slots, weir.max_active is %d", reserved,
                             settings.max_active),
                      errdetail("All sessions without a reserve share one slot.")));
}

void InstallSharedMemoryHooks()
{
    previous_shmem_request_hook = shmem_request_hook;
    shmem_request_hook = RequestSharedMemory;
    previous_shmem_startup_hook = shmem_startup_hook;
    shmem_startup_hook = StartSharedMemory;
}

bool SupervisorIsAbsent(int64_t now)
{
    constexpr int64_t kAbsentUs = 10 * USECS_PER_SEC;
    return now - shared->supervision.last_tick.load(std::memory_order_relaxed) > kAbsentUs;
}

void ReportAbsentSupervisor()
{
    if (shared->supervision.missed.exchange(1) == 0)
        ereport(
            LOG,
            (errmsg("pg_weir: no launcher minds the queue, transactions and connections run over the limit"),
             errhint("Its background worker is missing or stuck. Is max_worker_processes large enough?")));
}

void CallSupervisor()
{
    if (shared->supervision.napping.load(std::memory_order_seq_cst) == 0)
        return;
    const uint32_t ticket = shared->supervision.ticket.load();
    if (ticket != 0)
        WakeTicket(ticket - 1);
}

void WakeTicket(uint32_t id)
{
    SetLatch(&ProcGlobal->allProcs[id].procLatch);
}

void WakeAll(const WakeList &list)
{
    for (uint32_t i = 0; i < list.count; i++)
        WakeTicket(list.tickets[i]);
}

} // namespace weir
