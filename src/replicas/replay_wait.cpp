#include "replicas/replay_wait.hpp"

#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "pg/together.hpp"
#include "pg/wait.hpp"

extern "C" {
#include "access/timeline.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

constexpr int64_t kShortestPollUs = 500;
constexpr int64_t kLongestPollUs = 5000;
// Of a waiter: it does not rest on the launcher alone, and less on one that is gone.
constexpr int64_t kLongestNapUs = USECS_PER_SEC;
constexpr int64_t kNapUnmindedUs = 100000;

uint32 ReplayWaitEvent()
{
    static uint32 event = 0;
    if (event == 0)
        event = NewWaitEvent("WeirReplay");
    return event;
}

// ---- where this server is -------------------------------------------------------------------------

void RefuseOtherHistory(const LsnToken &token, TimeLineID mine, XLogRecPtr parted)
{
    ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                    errmsg("WAL up to %X/%X of timeline %u is not part of this server's history",
                           WEIR_LSN_PARTS(token.lsn), token.timeline),
                    parted != InvalidXLogRecPtr
                        ? errdetail("This server is on timeline %u, which left timeline %u at %X/%X.", mine,
                                    token.timeline, WEIR_LSN_PARTS(parted))
                        : errdetail("This server is on timeline %u.", mine),
                    errhint("The write was lost when a standby was promoted, or made on another server. Read "
                            "without weir.min_lsn to see what there is.")));
}

// The token's timeline is older than this server's: was it left behind before or after the token's LSN?
void CheckHistory(const LsnToken &token, TimeLineID mine)
{
    if (!existsTimeLineHistory(mine))
        return; // then nobody knows, and the LSN alone decides
    List *history = readTimeLineHistory(mine);
    XLogRecPtr parted = InvalidXLogRecPtr;
    TimeLineID next;
    const bool ancestor = tliInHistory(token.timeline, history);
    if (ancestor)
        parted = tliSwitchPoint(token.timeline, history, &next);
    list_free_deep(history);
    if (!ancestor || token.lsn > parted)
        RefuseOtherHistory(token, mine, parted);
}

// `checked`: the timeline of this server that the token was last held against.
bool LookInRecovery(const LsnToken &token, TimeLineID *checked)
{
    TimeLineID mine;
    const XLogRecPtr replayed = GetXLogReplayRecPtr(&mine);
    if (token.timeline > mine)
        return false; // it will follow, or not
    if (token.timeline != 0 && token.timeline < mine && *checked != mine)
        CheckHistory(token, mine);
    *checked = mine;
    return replayed >= token.lsn;
}

bool LookOnPrimary(const LsnToken &token)
{
    const TimeLineID mine = GetWALInsertionTimeLine();
    if (token.timeline > mine)
        RefuseOtherHistory(token, mine, InvalidXLogRecPtr);
    if (token.timeline != 0 && token.timeline < mine)
        CheckHistory(token, mine);
    const XLogRecPtr end = GetXLogInsertRecPtr();
    if (token.lsn <= end)
        return true;
    ereport(ERROR, (errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
                    errmsg("LSN %X/%X is in the future of this primary", WEIR_LSN_PARTS(token.lsn)),
                    errdetail("Its WAL ends at %X/%X, on timeline %u.", WEIR_LSN_PARTS(end), mine),
                    errhint("The write was made on another server, or lost when this one was promoted.")));
    return false;
}

bool Look(const LsnToken &token, TimeLineID *checked)
{
    return RecoveryInProgress() ? LookInRecovery(token, checked) : LookOnPrimary(token);
}

// ---- one wait -------------------------------------------------------------------------------------

std::atomic<uint64_t> &Wanted()
{
    return replay_wanted[MyTicketId()];
}

// Which word those sleep on who want this LSN.
uint32_t CallOf(XLogRecPtr lsn)
{
    return static_cast<uint32_t>(lsn / XLOG_BLCKSZ) % kReplayCalls;
}

void StopWaiting()
{
    if (Wanted().exchange(0) != 0)
        shared->replay_waits.waiting.fetch_sub(1);
}

void OnProcessExit(int, Datum)
{
    StopWaiting();
}

void StartWaiting(XLogRecPtr lsn)
{
    static bool registered = false;
    if (!registered) {
        registered = true;
        before_shmem_exit(OnProcessExit, 0);
    }
    Wanted().store(lsn, std::memory_order_seq_cst);
    if (shared->replay_waits.waiting.fetch_add(1, std::memory_order_seq_cst) == 0)
        CallSupervisor();
}

struct ReplayWait {
    LsnToken token;
    int64_t began; // MonotonicUs
    XLogRecPtr replayed_then;
    TimeLineID checked;
};

// How far replay came since the wait began says how long the rest may take.
void ReportTimeout(const ReplayWait &wait, int timeout_ms)
{
    const XLogRecPtr replayed = GetXLogReplayRecPtr(nullptr);
    const uint64_t behind = wait.token.lsn > replayed ? wait.token.lsn - replayed : 0;
    const uint64_t came = replayed > wait.replayed_then ? replayed - wait.replayed_then : 0;
    const double waited_s = static_cast<double>(MonotonicUs() - wait.began) / USECS_PER_SEC;
    char estimate[128];
    if (GetRecoveryPauseState() != RECOVERY_NOT_PAUSED)
        snprintf(estimate, sizeof(estimate), "Replay is paused.");
    else if (came == 0)
        snprintf(estimate, sizeof(estimate), "Nothing was replayed meanwhile.");
    else
        snprintf(estimate, sizeof(estimate), "At the rate of this wait that takes about %.1f s more.",
                 static_cast<double>(behind) * waited_s / static_cast<double>(came));
    shared->replay_waits.timed_out.fetch_add(1, std::memory_order_relaxed);
    ereport(ERROR, (errcode(ERRCODE_QUERY_CANCELED),
                    errmsg("WAL up to %X/%X was not replayed within %d ms", WEIR_LSN_PARTS(wait.token.lsn),
                           timeout_ms),
                    errdetail("Replayed is %X/%X, %llu bytes before it. %s", WEIR_LSN_PARTS(replayed),
                              static_cast<unsigned long long>(behind), estimate),
                    errhint("Retry, read on the primary, or allow more time (weir.lsn_wait_timeout).")));
}

// Until it is replayed: true; false: the client is gone.
bool WaitPublished(ReplayWait *wait, int timeout_ms)
{
    std::atomic<uint32_t> *word = &shared->replay_waits.calls[CallOf(wait->token.lsn)];
    for (;;) {
        const uint32_t value =
            word->load(std::memory_order_seq_cst); // who is called after this does not sleep
        CHECK_FOR_INTERRUPTS();
        // Whoever waited through a promotion waits for a write of the old timeline: it may be lost.
        if (wait->checked != 0 && wait->token.timeline == 0 && !RecoveryInProgress())
            wait->token.timeline = wait->checked;
        if (Look(wait->token, &wait->checked))
            return true;
        const int64_t left_us = wait->began + timeout_ms * INT64CONST(1000) - MonotonicUs();
        if (left_us <= 0)
            ReportTimeout(*wait, timeout_ms);
        ResetLatch(MyLatch);
        if (WaitForLatchOrClient(0, ReplayWaitEvent()) == Woken::kClientGone)
            return false;
        const bool minded = shared->supervision.ticket.load(std::memory_order_relaxed) != 0;
        // A signal that comes between the two is not lost: the sleep ends within a second.
        if (!InterruptPending)
            SleepOn(word, value, Min(minded ? kLongestNapUs : kNapUnmindedUs, left_us), ReplayWaitEvent());
    }
}

} // namespace

bool IsReplayed(const LsnToken &token)
{
    TimeLineID checked = 0;
    return Look(token, &checked);
}

void WaitForReplay(const LsnToken &token, int timeout_ms)
{
    ReplayWait wait = {token, 0, 0, 0};
    if (Look(token, &wait.checked))
        return;
    wait.began = MonotonicUs();
    wait.replayed_then = GetXLogReplayRecPtr(nullptr);
    volatile bool there = false;
    PG_TRY();
    {
        StartWaiting(token.lsn);
        there = WaitPublished(&wait, timeout_ms);
    }
    PG_CATCH();
    {
        StopWaiting();
        shared->replay_waits.waits.Record(MonotonicUs() - wait.began);
        PG_RE_THROW();
    }
    PG_END_TRY();
    StopWaiting();
    shared->replay_waits.waits.Record(MonotonicUs() - wait.began);
    if (!there)
        EndForLostClient();
}

// ---- the launcher's part --------------------------------------------------------------------------

namespace
{

bool IsCalled(uint64_t calls, uint32_t i)
{
    return (calls & (UINT64CONST(1) << i)) != 0;
}

// Wakes those whose LSN is replayed. Returns the nearest of the others', or 0.
XLogRecPtr WakeUpTo(XLogRecPtr up_to)
{
    static uint32_t *reached = nullptr;
    if (reached == nullptr)
        reached =
            static_cast<uint32_t *>(MemoryContextAlloc(TopMemoryContext, sizeof(uint32_t) * SessionCount()));
    uint32_t count = 0;
    uint64_t called = 0;
    XLogRecPtr nearest = InvalidXLogRecPtr;
    for (uint32_t id = 0; id < SessionCount(); id++) {
        const uint64_t wanted = replay_wanted[id].load(std::memory_order_seq_cst);
        if (wanted != 0 && wanted <= up_to) {
            reached[count++] = id;
            called |= UINT64CONST(1) << CallOf(wanted);
        } else if (wanted != 0 && (nearest == InvalidXLogRecPtr || wanted < nearest))
            nearest = wanted;
    }
    for (uint32_t i = 0; i < kReplayCalls; i++)
        if (IsCalled(called, i))
            shared->replay_waits.calls[i].fetch_add(1, std::memory_order_seq_cst);
    for (uint32_t i = 0; i < kReplayCalls; i++)
        if (IsCalled(called, i)) {
            WakeTogether(&shared->replay_waits.calls[i], reached, count);
            count = 0; // by their latches, all are awake
        }
    return nearest;
}

// Only what moves can have passed anybody, except for the first look; then those are woken who waited
// before. Returns when to look again: half of the time that the nearest one's WAL takes at the present rate.
int64_t WakeReplayed(bool first_look)
{
    static XLogRecPtr seen = InvalidXLogRecPtr;
    static TimeLineID seen_timeline = 0;
    static int64_t seen_at = 0;
    TimeLineID timeline = 0;
    const XLogRecPtr replayed = RecoveryInProgress() ? GetXLogReplayRecPtr(&timeline) : PG_UINT64_MAX;
    if (!first_look && replayed == seen && timeline == seen_timeline)
        return kShortestPollUs;
    // Another timeline: everybody's case is a new one.
    const bool same = timeline == seen_timeline;
    const XLogRecPtr nearest = WakeUpTo(same ? replayed : PG_UINT64_MAX);
    const int64_t now = MonotonicUs();
    const double came = same && replayed > seen ? static_cast<double>(replayed - seen) : 0;
    const auto took_us = static_cast<double>(now - seen_at);
    seen = replayed;
    seen_timeline = timeline;
    seen_at = now;
    if (first_look || came <= 0 || nearest <= replayed)
        return kShortestPollUs;
    const double half_us = static_cast<double>(nearest - replayed) / came * took_us / 2;
    return half_us >= static_cast<double>(kLongestPollUs)
               ? kLongestPollUs
               : Max(static_cast<int64_t>(half_us), kShortestPollUs);
}

} // namespace

void NapMindingReplay(long nap_ms, uint32 wait_event)
{
    const int64_t end = MonotonicUs() + nap_ms * INT64CONST(1000);
    bool first_look = true;
    while (shared->replay_waits.waiting.load(std::memory_order_seq_cst) > 0) {
        const int64_t poll_us = WakeReplayed(first_look);
        first_look = false;
        if (WaitLatchUs(Min(poll_us, nap_ms * INT64CONST(1000)), wait_event) || MonotonicUs() >= end)
            return;
    }
    const int64_t left_us = end - MonotonicUs();
    if (left_us > 0)
        WaitLatchUs(left_us, wait_event);
}

} // namespace weir
