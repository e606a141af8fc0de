#include "http/http_worker.hpp"

#include "http/health.hpp"
#include "http/throttle_answer.hpp"
#include "pg/compat.hpp"
#include "pg/own_worker.hpp"
#include "pg/shared.hpp"
#include "replicas/self_quarantine.hpp"
#include "stats/metrics.hpp"
#include "stats/metrics_text.hpp"

extern "C" {
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "postmaster/postmaster.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/pmsignal.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kPauseUs = USECS_PER_SEC;      // after it ended
constexpr int64_t kRetryUs = 10 * USECS_PER_SEC; // after it could not be registered, or was and did not come
constexpr long kListenRetryMs = 10000;
constexpr int kServeMs = 10000; // signals end it sooner
constexpr size_t kMaxBody = 2048;

// ---- signals: the listener sleeps on its sockets, not on our latch ---------------------------------

void OnHangup(SIGNAL_ARGS)
{
    SignalHandlerForConfigReload(postgres_signal_arg);
    HttpWake();
}

void OnTerminate(SIGNAL_ARGS)
{
    die(postgres_signal_arg);
    HttpWake();
}

void OnUser1(SIGNAL_ARGS)
{
    procsignal_sigusr1_handler(postgres_signal_arg);
    HttpWake();
}

// ---- answers: called from within the listener's frames, so nothing here raises an error ------------

char *metrics = nullptr; // kMetricsCapacity bytes

ServerStatus CurrentStatus()
{
    ServerStatus status = {};
    status.in_recovery = RecoveryInProgress();
    TimeLineID timeline = 0;
    status.lsn = status.in_recovery ? GetXLogReplayRecPtr(&timeline) : GetFlushRecPtr(&timeline);
    status.timeline = timeline;
    const ReplicasShared &replicas = shared->replicas;
    const auto state = static_cast<ReplicaState>(replicas.own_state.load());
    status.state = ReplicaStateName(state);
    // The sampler's word, if it has looked lately, and since this became a standby.
    status.lag_known = status.in_recovery && replicas.in_recovery.load() != 0 &&
                       state != ReplicaState::kUnknown && IsFresh(replicas, GetCurrentTimestamp());
    status.bytes_known = status.lag_known && replicas.own_hears.load() != 0;
    status.refuses = RefusesNewSessions(GetCurrentTimestamp());
    status.lag_us = replicas.own_lag_us.load();
    status.lag_bytes = replicas.own_lag_bytes.load();
    status.minded = !SupervisorIsAbsent(GetCurrentTimestamp());
    status.mode = ModeName(static_cast<int>(CurrentMode()));
    return status;
}

void AnswerText(HttpAnswer *answer, int status, const char *text)
{
    *answer = {status, "text/plain", text, strlen(text)};
}

void Answer(const char *target, size_t length, HttpAnswer *answer)
{
    static char body[kMaxBody];
    TextWriter writer(body, sizeof(body));
    HttpRequest request;
    const char *error = ParseHttpTarget(target, length, &request);
    if (error != nullptr) {
        writer.Put(error);
        writer.PutChar('\n');
        *answer = {400, "text/plain", body, writer.Length()};
        return;
    }
    switch (request.endpoint) {
    case Endpoint::kNone:
        AnswerText(answer, 404, "there is /primary, /replica, /health, /throttle/check and /metrics\n");
        return;
    case Endpoint::kMetrics:
        *answer = {kHttpOk, kMetricsContentType, metrics, WriteMetrics(metrics, kMetricsCapacity)};
        return;
    case Endpoint::kThrottleCheck:
        answer->status =
            AnswerThrottle(request.app, CheckThrottle(request.app, GetCurrentTimestamp()), &writer);
        break;
    case Endpoint::kPrimary:
    case Endpoint::kReplica:
    case Endpoint::kHealth:
        answer->status = AnswerHealth(request, CurrentStatus(), &writer);
        break;
    }
    answer->content_type = "application/json";
    answer->body = body;
    answer->length = writer.Length();
}

// ---- the worker -----------------------------------------------------------------------------------

void Enter(HttpWorkerState state)
{
    shared->http.since.store(GetCurrentTimestamp());
    shared->http.state.store(static_cast<uint32_t>(state));
}

void OnExit(int, Datum)
{
    HttpClose();
    shared->http.port.store(0);
    shared->http.counters.open.store(0);
    Enter(HttpWorkerState::kAbsent);
}

// Listens where the settings say. False, and once a line in the log: it cannot.
bool Listen(bool report)
{
    char error[kHttpErrorSize];
    const char *address = settings.http_listen_address;
    if (HttpListen(address, static_cast<uint16_t>(settings.http_port), HttpLimits(), Answer,
                   &shared->http.counters, error) &&
        HttpWakeOn(postmaster_alive_fds[POSTMASTER_FD_WATCH], error)) {
        shared->http.port.store(HttpPort());
        ereport(LOG, (errmsg("pg_weir: the HTTP endpoint listens on \"%s\", port %d", address,
                             settings.http_port)));
        return true;
    }
    HttpClose();
    if (report)
        ereport(
            LOG,
            (errmsg("pg_weir: the HTTP endpoint cannot listen on \"%s\", port %d: %s", address,
                    settings.http_port, error),
             errdetail("It is tried again every %ld seconds. Everything else goes on.",
                       kListenRetryMs / 1000),
             errhint("Is another program on that port? See weir.http_port and weir.http_listen_address.")));
    return false;
}

void Reload()
{
    char address[NI_MAXHOST];
    const int port = settings.http_port;
    snprintf(address, sizeof(address), "%s", settings.http_listen_address);
    ProcessConfigFile(PGC_SIGHUP);
    if (settings.http_port == 0) {
        ereport(LOG, (errmsg("pg_weir: the HTTP endpoint ends, weir.http_port is 0")));
        proc_exit(0);
    }
    if (port != settings.http_port || strcmp(address, settings.http_listen_address) != 0) {
        HttpClose();
        shared->http.port.store(0);
    }
}

void Serve(uint32 wait_event)
{
    char error[kHttpErrorSize];
    pgstat_report_wait_start(wait_event);
    const bool served = HttpServe(kServeMs, error);
    pgstat_report_wait_end();
    if (!served)
        ereport(LOG, (errmsg("pg_weir: the HTTP endpoint failed at a request: %s", error)));
    if (!PostmasterIsAlive())
        proc_exit(1);
}

} // namespace

void StartHttpWorkerIfWanted(int64_t now)
{
    HttpShared &http = shared->http;
    const auto state = static_cast<HttpWorkerState>(http.state.load());
    const int64_t wait_us =
        state == HttpWorkerState::kStarting || http.start_failed.load() != 0 ? kRetryUs : kPauseUs;
    if (settings.http_port == 0 || state == HttpWorkerState::kRunning || now - http.since.load() < wait_us)
        return;
    BackgroundWorker worker = OwnWorker("pg_weir http", "weir_http_main", BgWorkerStart_ConsistentState);
    Enter(HttpWorkerState::kStarting);
    if (RegisterDynamicBackgroundWorker(&worker, nullptr)) {
        http.start_failed.store(0);
        return;
    }
    Enter(HttpWorkerState::kAbsent);
    if (http.start_failed.exchange(1) == 0)
        ereport(LOG, (errmsg("pg_weir: the HTTP endpoint's worker could not be started"),
                      errhint("Consider increasing max_worker_processes.")));
}

} // namespace weir

void weir_http_main(Datum)
{
    using namespace weir;

    pqsignal(SIGHUP, OnHangup);
    pqsignal(SIGTERM, OnTerminate);
    pqsignal(SIGUSR1, OnUser1);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
    before_shmem_exit(OnExit, 0);
    metrics = static_cast<char *>(MemoryContextAlloc(TopMemoryContext, kMetricsCapacity));
    Enter(HttpWorkerState::kRunning);

    const uint32 wait_event = NewWaitEvent("WeirHttp");
    bool report = true;
    ConfigReloadPending = true; // the launcher may have seen a newer file than the postmaster we come from
    for (;;) {
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            Reload();
            report = true;
        }
        // A signal that came before there was anything to wake is looked at once more before we serve.
        if (HttpPort() != 0)
            Serve(wait_event);
        else if (!Listen(report))
            WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, kListenRetryMs, wait_event);
        report = HttpPort() != 0;
    }
}
