#include "replicas/sampler.hpp"

#include <initializer_list>

#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/own_worker.hpp"
#include "pg/port.hpp"
#include "pg/shared.hpp"
#include "replicas/flow.hpp"
#include "replicas/heartbeat.hpp"
#include "replicas/self_quarantine.hpp"

extern "C" {
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "postmaster/walwriter.h"
#include "replication/slot.h"
#include "replication/walreceiver.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procsignal.h"
#include "tcop/tcopprot.h"
#include "utils/backend_status.h"
#include "utils/guc.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr char kName[] = "pg_weir sampler";
constexpr int kDormantMs = 1000;
constexpr int64_t kForgetUs = 24 * 3600 * USECS_PER_SEC; // a standby that is gone
constexpr int64_t kSummaryUs = USECS_PER_SEC;            // percentiles and history
constexpr int64_t kMeetAgainUs = USECS_PER_SEC;
constexpr int64_t kJitterUs = 50000;           // of messages
constexpr int64_t kClockSetUs = USECS_PER_SEC; // less is drift and a busy machine

// What the walsender tells under its lock.
struct Sender {
    int32_t pid;
    WalSndState state;
    int32_t sync_priority;
    uint64_t sent, write, flush, apply;
    int64_t reply_us;
};

// False: it does not send WAL, or has only just begun to.
bool ReadSender(int i, Sender *to)
{
    WalSnd *from = &WalSndCtl->walsnds[i];
    SpinLockAcquire(&from->mutex);
    to->pid = from->pid;
    to->state = from->state;
    to->sync_priority = from->sync_standby_priority;
    to->sent = from->sentPtr;
    to->write = from->write;
    to->flush = from->flush;
    to->apply = from->apply;
    to->reply_us = from->replyTime;
    SpinLockRelease(&from->mutex);
    return to->pid != 0 && to->sent != 0 &&
           (to->state == WALSNDSTATE_CATCHUP || to->state == WALSNDSTATE_STREAMING ||
            to->state == WALSNDSTATE_STOPPING);
}

ReplicaRow *RowOfPid(int32_t pid)
{
    for (ReplicaRow &row : shared->replicas.report.rows)
        if (row.in_use && row.pid == pid)
            return &row;
    return nullptr;
}

// A walsender that we have not seen: who is at its other end. The copy of all sessions' entries that this
// takes is made for new ones only, and once a second for those that find no row.
ReplicaRow *Meet(int32_t pid, int64_t now)
{
    static int64_t not_before = 0;
    if (now < not_before && not_before - now <= kMeetAgainUs)
        return nullptr;
    ReplicaRow *row = nullptr;
    const PgBackendStatus *status = FindBackendStatus(pid);
    if (status != nullptr)
        row = RowFor(&shared->replicas, status->st_appname, ToAddress(status->st_clientaddr));
    if (row != nullptr) {
        row->pid = pid;
        row->connected_us = now;
    } else
        not_before = now + kMeetAgainUs;
    pgstat_clear_backend_activity_snapshot();
    return row;
}

int64_t Behind(uint64_t end, uint64_t at)
{
    return end > at ? static_cast<int64_t>(end - at) : 0;
}

// What a receiver that replays nothing (pg_receivewal, pg_basebackup) has is what it flushed, or wrote.
void SetLags(ReplicaRow *row, uint64_t end, int64_t now)
{
    const LagClock &clock = shared->replicas.memory.clock;
    const uint64_t written = row->write_lsn != 0 ? row->write_lsn : row->sent_lsn;
    const uint64_t flushed = row->flush_lsn != 0 ? row->flush_lsn : written;
    const uint64_t replayed = row->replay_lsn != 0 ? row->replay_lsn : flushed;
    row->write_lag_bytes = Behind(end, written);
    row->flush_lag_bytes = Behind(end, flushed);
    row->replay_lag_bytes = Behind(end, replayed);
    row->write_lag_us = clock.LagUs(written, now, nullptr);
    row->flush_lag_us = clock.LagUs(flushed, now, nullptr);
    row->replay_lag_us = clock.LagUs(replayed, now, &row->lag_known);
}

void UpdateRow(ReplicaRow *row, const Sender &sender, uint64_t end, int64_t now)
{
    ReplicaMemory *memory = &shared->replicas.memory.rows[row - shared->replicas.report.rows];
    row->sync_priority = sender.sync_priority;
    row->sent_lsn = sender.sent;
    // Until its first reply, what it had when it was here before is all that is known of it.
    if (sender.write == 0)
        row->state = ReplicaState::kUnknown;
    else {
        row->state = sender.state == WALSNDSTATE_CATCHUP ? ReplicaState::kCatchup : ReplicaState::kStreaming;
        row->write_lsn = sender.write;
        row->flush_lsn = sender.flush;
        row->replay_lsn = sender.apply;
    }
    if (sender.reply_us != row->reply_us) {
        row->reply_us = sender.reply_us;
        row->heard_us = now;
    }
    SetLags(row, end, now);
    if (row->replay_lsn != 0)
        memory->replay.Note(row->replay_lsn, now);
    row->replay_rate = memory->replay.rate;
    row->catch_up_us = CatchUpUs(row->replay_lag_bytes, row->replay_rate, shared->replicas.report.wal_rate);
}

// Its lag goes on growing. A receiver that replayed nothing is nobody's replica and is forgotten.
void UpdateGone(ReplicaRow *row, uint64_t end, int64_t now)
{
    if (row->pid != 0) {
        row->pid = 0;
        row->state = ReplicaState::kDisconnected;
        row->connected_us = now;
        row->replay_rate = 0;
        shared->replicas.memory.rows[row - shared->replicas.report.rows].replay.Clear();
        if (IsReplaced(shared->replicas, *row))
            row->replay_lsn = 0;
    }
    SetLags(row, end, now);
    row->catch_up_us = -1;
    if (row->replay_lsn == 0 || now - row->connected_us > kForgetUs)
        *row = {};
}

void SampleSenders(uint64_t end, int64_t now)
{
    bool seen[kMaxReplicas] = {};
    ReplicaReport &report = shared->replicas.report;
    uint32_t standbys = 0;
    for (int i = 0; i < max_wal_senders; i++) {
        Sender sender;
        if (!ReadSender(i, &sender) || IsLogicalSender(&WalSndCtl->walsnds[i], sender.pid))
            continue;
        standbys++;
        ReplicaRow *row = RowOfPid(sender.pid);
        if (row == nullptr)
            row = Meet(sender.pid, now);
        if (row == nullptr)
            continue;
        seen[row - report.rows] = true;
        UpdateRow(row, sender, end, now);
    }
    for (uint32_t i = 0; i < kMaxReplicas; i++)
        if (report.rows[i].in_use && !seen[i])
            UpdateGone(&report.rows[i], end, now);
    for (ReplicaRow &row : report.rows)
        row.counts = row.in_use && row.replay_lsn != 0 &&
                     NameIsListed(settings.lag_replicas, row.application_name) &&
                     !IsReplaced(shared->replicas, row);
    shared->replicas.standbys.store(standbys);
}

// ---- this server as a standby -----------------------------------------------------------------------

struct Receiver {
    int32_t pid; // 0: it does not stream
    TimeLineID timeline;
    uint64_t end;
    int64_t end_us, sent_us, received_us;
};

Receiver ReadReceiver(OwnRow *own)
{
    Receiver r;
    SpinLockAcquire(&WalRcv->mutex);
    r.pid = WalRcv->walRcvState == WALRCV_STREAMING && WalRcv->ready_to_display ? WalRcv->pid : 0;
    r.timeline = WalRcv->receivedTLI;
    r.end = WalRcv->latestWalEnd;
    r.end_us = WalRcv->latestWalEndTime;
    r.sent_us = WalRcv->lastMsgSendTime;
    r.received_us = WalRcv->lastMsgReceiptTime;
    own->sender_port = WalRcv->sender_port;
    memcpy(own->sender_host, WalRcv->sender_host, kHostSize - 1);
    SpinLockRelease(&WalRcv->mutex);
    return r;
}

// Of a sender with the same weir.heartbeat_interval as ours. A beat must be flushed and come here; it is
// flushed at once if the WAL writer has not flushed for wal_writer_delay.
SilenceBounds BoundsOfSilence()
{
    const int64_t beat = settings.heartbeat_interval_ms * INT64CONST(1000);
    const int64_t unflushed = WalWriterDelay * INT64CONST(1000);
    return {beat, 2 * kJitterUs + (beat > unflushed ? 0 : unflushed),
            beat == 0 ? kNoBeats : beat + beat / 2 + 500000,
            settings.lag_sample_interval_ms * INT64CONST(1000) + kJitterUs};
}

// Another server has another clock. It may have the name of the one before, but not its timeline.
bool IsAnotherSender(const OwnRow &own, const Receiver &r)
{
    SenderIdentity &sender = shared->replicas.memory.sender;
    if (r.timeline == sender.timeline && own.sender_port == sender.port &&
        strcmp(own.sender_host, sender.host) == 0)
        return false;
    sender.timeline = r.timeline;
    sender.port = own.sender_port;
    memcpy(sender.host, own.sender_host, kHostSize);
    return true;
}

void ListenToSender(OwnRow *own, const Receiver &r, int64_t now)
{
    SamplerMemory &memory = shared->replicas.memory;
    const int64_t sent_before = memory.silence.sent_us;
    bool goes_on = r.pid != 0 && r.pid == memory.silence.receiver;
    if (r.pid != 0 && IsAnotherSender(*own, r)) {
        memory.skew.Clear();
        goes_on = false;
    }
    memory.silence.Note(r.pid, r.end, r.sent_us, r.received_us, BoundsOfSilence().bound_us, now);
    if (memory.silence.sent_us != sent_before)
        memory.skew.Note(r.received_us - r.sent_us, now);
    own->message_us = memory.silence.heard_us;
    own->skew_known = memory.skew.Known();
    own->skew_us = own->skew_known ? memory.skew.Us() : 0;
    memory.silence.NoteTransit(r.received_us - r.sent_us - own->skew_us);
    // Less than before is no end of WAL: a keepalive says what was sent (WalSndKeepalive() in walsender.c).
    if (r.pid != 0 && r.end != 0 && (!goes_on || r.end >= memory.upstream.Newest())) {
        own->sender_lsn = r.end;
        memory.upstream.Note(r.end, r.end_us + own->skew_us);
    }
}

// By our clock, of the latest commit that is replayed; there is one.
int64_t ReplayedCommitAgeUs(const OwnRow &own, int64_t now)
{
    return now - own.replayed_commit_us - own.skew_us;
}

// An archive says nothing of later WAL, and that nobody speaks means nothing there: what is not replayed is
// younger than the latest commit that is.
void BoundLagsOfArchive(OwnRow *own, int64_t now)
{
    if (own->state != ReplicaState::kArchive || own->replayed_commit_us == 0)
        return;
    const int64_t age = Max(ReplayedCommitAgeUs(*own, now), 0);
    for (int64_t *lag : {&own->write_lag_us, &own->flush_lag_us, &own->replay_lag_us})
        *lag = Min(*lag, age);
}

// The age of the oldest WAL of the sender's that is not here yet, or not replayed; and if we do not hear
// from it, we do not know of any later.
void SetOwnLags(OwnRow *own, int64_t now)
{
    const SamplerMemory &memory = shared->replicas.memory;
    const SilenceBounds bounds = BoundsOfSilence();
    const bool deaf = memory.silence.IsDeaf(bounds.bound_us, now);
    int64_t silence = memory.silence.LagUs(bounds, now);
    own->hears = !deaf && silence == 0;
    // Nothing was ever heard: since the start, at least.
    if (own->message_us == 0 && deaf)
        silence = now - shared->replicas.role_since_us.load();
    bool known;
    int64_t lag = memory.upstream.LagUs(own->replay_lsn, now, &known);
    if (memory.upstream.Count() == 0 && deaf)
        known = false;
    if (!known && own->replayed_commit_us != 0)
        lag = Max(lag, ReplayedCommitAgeUs(*own, now));
    own->replay_lag_us = Max(lag, silence);
    own->write_lag_us = Max(memory.upstream.LagUs(own->received_lsn, now, nullptr), silence);
    own->flush_lag_us = Max(memory.upstream.LagUs(own->flushed_lsn, now, nullptr), silence);
    BoundLagsOfArchive(own, now);
    own->write_lag_bytes = Behind(own->sender_lsn, own->received_lsn);
    own->flush_lag_bytes = Behind(own->sender_lsn, own->flushed_lsn);
    own->replay_lag_bytes = Behind(Max(own->sender_lsn, own->flushed_lsn), own->replay_lsn);
}

ReplicaState OwnState(const OwnRow &own, const Receiver &r)
{
    static int32_t caught_up = 0; // the walreceiver that had nothing more for us
    if (GetRecoveryPauseState() == RECOVERY_PAUSED)
        return ReplicaState::kPaused;
    if (r.pid == 0) {
        const bool archive = recoveryRestoreCommand != nullptr && recoveryRestoreCommand[0] != '\0';
        return archive ? ReplicaState::kArchive : ReplicaState::kDisconnected;
    }
    if (Behind(own.sender_lsn, own.replay_lsn) == 0)
        caught_up = r.pid;
    return caught_up == r.pid ? ReplicaState::kStreaming : ReplicaState::kCatchup;
}

void PublishOwn(const OwnRow &own)
{
    ReplicasShared &replicas = shared->replicas;
    replicas.own_replay_lsn.store(own.replay_lsn);
    replicas.own_lag_us.store(own.replay_lag_us);
    replicas.own_lag_bytes.store(own.replay_lag_bytes);
    replicas.own_hears.store(own.hears);
    replicas.own_state.store(static_cast<uint32_t>(own.state));
}

void SampleOwn(int64_t now)
{
    SamplerMemory &memory = shared->replicas.memory;
    OwnRow *own = &shared->replicas.report.own;
    TimeLineID timeline;
    const Receiver r = ReadReceiver(own);
    own->in_recovery = true;
    own->replay_lsn = GetXLogReplayRecPtr(&timeline);
    own->timeline = timeline;
    own->received_lsn = GetWalRcvWriteRecPtr();
    own->flushed_lsn = GetWalRcvFlushRecPtr(nullptr, nullptr);
    own->replayed_commit_us = GetLatestXTime();
    ListenToSender(own, r, now);
    own->state = OwnState(*own, r);
    SetOwnLags(own, now);
    memory.own.replay.Note(own->replay_lsn, now);
    memory.received.Note(Max(own->received_lsn, own->flushed_lsn), now);
    own->replay_rate = memory.own.replay.rate;
    own->receive_rate = memory.received.rate;
    own->catch_up_us = CatchUpUs(own->replay_lag_bytes, own->replay_rate, own->receive_rate);
    PublishOwn(*own);
}

void BecomePrimary(int64_t now)
{
    ReplicasShared &replicas = shared->replicas;
    SamplerMemory &memory = replicas.memory;
    replicas.report.own = {};
    memory.upstream.Clear();
    memory.skew.Clear();
    memory.silence = {};
    memory.own.windows.Clear();
    memory.own.replay.Clear();
    memory.received.Clear();
    PublishOwn(replicas.report.own);
    replicas.role_changes.fetch_add(1);
    replicas.role_since_us.store(now);
    ereport(LOG, (errmsg("pg_weir: promoted: replication is sampled as a primary's from now on")));
}

// ---- percentiles and history ------------------------------------------------------------------------

void NoteLags(int64_t now)
{
    ReplicasShared &replicas = shared->replicas;
    SamplerMemory &memory = replicas.memory;
    const bool summarize = now - memory.summarized_us >= kSummaryUs || now < memory.summarized_us;
    if (summarize)
        memory.summarized_us = now;
    for (uint32_t i = 0; i < kMaxReplicas; i++) {
        ReplicaRow &row = replicas.report.rows[i];
        if (!row.in_use)
            continue;
        memory.rows[i].windows.Note(row.replay_lag_us, now);
        if (!summarize)
            continue;
        memory.rows[i].windows.Summarize(now, row.summaries);
        replicas.history.Push({now, i, row.serial, row.replay_lag_us, row.replay_lag_bytes,
                               static_cast<float>(row.replay_rate)});
    }
    OwnRow &own = replicas.report.own;
    if (!own.in_recovery)
        return;
    memory.own.windows.Note(own.replay_lag_us, now);
    if (!summarize)
        return;
    memory.own.windows.Summarize(now, own.summaries);
    replicas.history.Push(
        {now, kOwnSample, 0, own.replay_lag_us, own.replay_lag_bytes, static_cast<float>(own.replay_rate)});
}

// ---- one look ---------------------------------------------------------------------------------------

// If somebody set the clock: what is remembered is as old as before. How far the system's clock went, less
// how far the one went that nobody sets.
void MindTheClock(int64_t now)
{
    static int64_t last_us = 0, last_monotonic_us = 0;
    const int64_t monotonic_us = MonotonicUs();
    const int64_t step = (now - last_us) - (monotonic_us - last_monotonic_us);
    if (last_us != 0 && (step > kClockSetUs || step < -kClockSetUs)) {
        SamplerMemory &memory = shared->replicas.memory;
        memory.clock.Shift(step);
        memory.upstream.Shift(step);
        memory.skew.Shift(step);
        memory.silence.Shift(step);
        memory.wal.Shift(step);
        memory.received.Shift(step);
        memory.own.replay.Shift(step);
        for (ReplicaMemory &row : memory.rows)
            row.replay.Shift(step);
        for (FlowStandby &standby : shared->flow.standbys)
            standby.Shift(step);
        shared->flow.controller.Shift(step);
        shared->replicas.role_since_us.fetch_add(step);
        for (ReplicaRow &row : shared->replicas.report.rows) {
            row.connected_us += step;
            row.heard_us += step;
        }
    }
    last_us = now;
    last_monotonic_us = monotonic_us;
}

void Sample(int64_t now)
{
    ReplicasShared &replicas = shared->replicas;
    SamplerMemory &memory = replicas.memory;
    const bool in_recovery = RecoveryInProgress();
    LWLockAcquire(replica_lock, LW_EXCLUSIVE);
    MindTheClock(now);
    OwnRow &own = replicas.report.own;
    if (in_recovery)
        SampleOwn(now);
    else if (own.in_recovery)
        BecomePrimary(now);
    replicas.in_recovery.store(in_recovery);
    const uint64_t end = in_recovery ? Max(own.flushed_lsn, own.replay_lsn) : GetFlushRecPtr(nullptr);
    replicas.end_lsn.store(end);
    memory.clock.Note(end, now);
    memory.wal.Note(end, now);
    replicas.report.wal_rate = memory.wal.rate;
    SampleSenders(end, now);
    ControlFlow(now);
    NoteLags(now);
    LWLockRelease(replica_lock);
    replicas.fresh_us.store(settings.lag_sample_interval_ms * INT64CONST(1000) + kLateUs);
    replicas.sampled_us.store(now);
    ReportFlow();
}

void OnSamplerExit(int, Datum)
{
    shared->replicas.sampler.store(0);
}

// Nobody sends us WAL, and we send it to nobody, nor did lately.
bool IsDormant()
{
    if (shared->replicas.in_recovery.load() != 0 || shared->replicas.standbys.load() > 0)
        return false;
    for (const ReplicaRow &row : shared->replicas.report.rows)
        if (row.in_use)
            return false;
    return true;
}

long NapMs(int64_t now)
{
    const int64_t nap_ms =
        IsDormant() ? Max(kDormantMs, settings.lag_sample_interval_ms) : settings.lag_sample_interval_ms;
    return static_cast<long>(Min(nap_ms, UntilBeatUs(now) / 1000 + 1));
}

} // namespace

void RegisterSampler()
{
    BackgroundWorker worker = OwnWorker(kName, "weir_sampler_main", BgWorkerStart_ConsistentState);
    worker.bgw_restart_time = 1;
    RegisterBackgroundWorker(&worker);
}

} // namespace weir

void weir_sampler_main(Datum)
{
    using namespace weir;

    pqsignal(SIGHUP, SignalHandlerForConfigReload);
    pqsignal(SIGTERM, die);
    BackgroundWorkerUnblockSignals();
    BackgroundWorkerInitializeConnection(nullptr, nullptr, 0);
    before_shmem_exit(OnSamplerExit, 0);

    const uint32 wait_event = NewWaitEvent("WeirSampler");
    ReplicasShared &replicas = shared->replicas;
    replicas.sampler.store(MyTicketId() + 1);
    if (replicas.role_since_us.load() == 0)
        replicas.role_since_us.store(GetCurrentTimestamp());
    for (;;) {
        Sample(GetCurrentTimestamp());
        MindQuarantines(replicas.sampled_us.load());
        BeatIfDue(GetCurrentTimestamp());
        WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, NapMs(GetCurrentTimestamp()),
                  wait_event);
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        if (ConfigReloadPending) {
            ConfigReloadPending = false;
            ProcessConfigFile(PGC_SIGHUP);
        }
    }
}
