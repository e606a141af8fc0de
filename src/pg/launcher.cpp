#include "pg/launcher.hpp"

#include "admission/supervisor.hpp"
#include "coalesce/lanes.hpp"
#include "http/http_worker.hpp"
#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/own_worker.hpp"
#include "pg/shared.hpp"
#include "replicas/replay_wait.hpp"

extern "C" {
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr char kName[] = "pg_weir launcher";
constexpr long kMaxStartNapMs = 1000; // while coalescing workers are to be started

void OnLauncherExit(int, Datum)
{
    shared->supervision.ticket.store(0);
    shared->supervision.napping.store(0);
}

// Settings may have changed while no launcher ran.
void ReloadSettings(bool from_file)
{
    if (from_file)
        ProcessConfigFile(PGC_SIGHUP);
    PublishSettings();
    // Those who wait look again at mode, limits and timeouts.
    for (uint32_t id = 0; id < gate.ticket_count(); id++)
        if (gate.State(id) == TicketState::kWaiting || startup_gate.State(id) == TicketState::kWaiting ||
            startup_infos[id].held_since_us.load() != 0)
            WakeTicket(id);
}

} // namespace

void RegisterLauncher()
{
    BackgroundWorker worker = OwnWorker(kName, "weir_launcher_main", BgWorkerStart_ConsistentState);
    worker.bgw_restart_time = 1;
    RegisterBackgroundWorker(&worker);
}

} // namespace weir

void weir_launcher_main(Datum)
{
    using namespace weir;

    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
    before_shmem_exit(OnLauncherExit, 0);

    const uint32 wait_event = NewWaitEvent("WeirLauncher");
    shared->supervision.ticket.store(MyTicketId() + 1);
    shared->supervision.missed.store(0);
    Supervisor *supervisor = StartSupervisor();
    ReloadSettings(false);
    for (;;) {
        long nap_ms = Supervise(supervisor, GetCurrentTimestamp());
        if (StartWantedWorkers(MonotonicUs()))
            nap_ms = Min(nap_ms, kMaxStartNapMs);
        StartHttpWorkerIfWanted(GetCurrentTimestamp());
        // Before we look at the latch: a waiter that comes now sees that it must wake us.
        const bool long_nap = nap_ms > kShortNapMs;
        shared->supervision.napping.store(long_nap ? 1 : 0, std::memory_order_seq_cst);
        if (long_nap && (gate.Waiting() > 0 || startup_gate.Waiting() > 0))
            SetLatch(MyLatch);
        NapMindingReplay(nap_ms, wait_event);
        ResetLatch(MyLatch);
        shared->supervision.napping.store(0, std::memory_order_seq_cst);
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ReloadSettings(true);
        }
    }
}
