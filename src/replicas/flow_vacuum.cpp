// Autovacuum while the throttle is engaged. After many INSERTs it writes a record of 64 bytes for each new
// page, thousands within half a second, and a standby may take as long for each as for a large one: few
// bytes, and ten seconds of lag. So each autovacuum worker may have kShare of what the standbys replay,
// counted in bytes, or in records if that is more.
//
// The server has no hook in a vacuum, but a place where it rests by itself, with nothing locked that anybody
// but DDL waits for: vacuum_delay_point(), whenever its cost has come to the cost limit. A timer in the
// worker looks at what it has written, and if that was too much, and the worker is in such a rest, it
// prolongs it: the signal's handler sleeps where the code that it interrupts does the same.
//
// Never: a vacuum against wraparound, nor any in its failsafe; one without a cost delay; a client's VACUUM. A
// rest is prolonged by kLongestRestMs at most, after kLookMs of work, and ends at once when the vacuum is
// cancelled, as it is when somebody waits for its lock.

#include "pg/compat.hpp"
#include "pg/monotonic.hpp"
#include "pg/shared.hpp"
#include "replicas/flow_session.hpp"

extern "C" {
#include "storage/ipc.h"
#include "storage/proc.h"
#include "utils/timeout.h"
}

namespace weir
{

namespace
{

constexpr int kLookMs = 4;
constexpr int kIdleLookMs = 100; // while it need not yield
constexpr int64_t kLongestRestMs = 400;
constexpr double kShare = 0.2;
constexpr double kRampUs = 10e6; // the controller learns meanwhile how much slower it makes the standbys

// Of this process; of the timer's handler alone once that is started.
struct {
    bool started;
    TimeoutId timer;
    WalAmount mark;    // that was written at the last look
    int64_t looked_us; // MonotonicUs
    int64_t due_us;    // when it has had no more than its share
    double share;      // so far
} pace;

bool IsToYield()
{
    return CurrentMode() == Mode::kEnforce && FlowIsEngaged() &&
           shared->flow.paces_bulk.load(std::memory_order_relaxed) != 0 &&
           (MyProc->statusFlags & PROC_VACUUM_FOR_WRAPAROUND) == 0;
}

// How long the standbys take for that at this process's share.
int64_t ReplayUs(const WalAmount &amount)
{
    const FlowShared &flow = shared->flow;
    const double rate = pace.share * static_cast<double>(flow.check_capacity.load(std::memory_order_relaxed));
    const auto bytes = static_cast<double>(amount.bytes);
    const double by_record =
        static_cast<double>(amount.records) * flow.record_bytes.load(std::memory_order_relaxed);
    return rate > 0 ? static_cast<int64_t>(Min(Max(bytes, by_record) / rate, kLongestRestMs / 1e3) * 1e6) : 0;
}

// What it has written since the last look moves on when it is due again.
void Account(int64_t now)
{
    const WalAmount amount = WrittenSince(&pace.mark);
    const auto passed = static_cast<double>(now - pace.looked_us);
    pace.looked_us = now;
    pace.share = IsToYield() ? Min(kShare, pace.share + kShare * passed / kRampUs) : 0;
    const int64_t due_us = Max(pace.due_us, now) + ReplayUs(amount);
    pace.due_us = pace.share > 0 ? Min(due_us, now + kLongestRestMs * 1000) : now;
}

// Not in ANALYZE, which holds a snapshot meanwhile.
bool IsResting()
{
    return MyProc->wait_event_info == WAIT_EVENT_VACUUM_DELAY && (MyProc->statusFlags & PROC_IN_VACUUM) != 0;
}

// In a signal handler. It reads shared memory, and sleeps only in the place of another sleep. Any signal ends
// that, and then the code that was interrupted looks what it was.
void OnLook()
{
    const int64_t now = MonotonicUs();
    Account(now);
    if (pace.due_us > now && IsResting()) {
        shared->flow.bulk_waits.fetch_add(1, std::memory_order_relaxed);
        pg_usleep(static_cast<long>(pace.due_us - now));
    }
    enable_timeout_after(pace.timer, pace.share > 0 ? kLookMs : kIdleLookMs);
}

// While there is a PGPROC to look at.
void OnProcessExit(int, Datum)
{
    disable_timeout(pace.timer, false);
}

} // namespace

void PaceAutovacuum()
{
    if (MyBackendType != B_AUTOVAC_WORKER || pace.started || shared->flow.configured.load() == 0)
        return;
    pace.started = true;
    pace.looked_us = MonotonicUs();
    pace.timer = RegisterTimeout(USER_TIMEOUT, OnLook);
    before_shmem_exit(OnProcessExit, 0);
    enable_timeout_after(pace.timer, kLookMs);
}

} // namespace weir
