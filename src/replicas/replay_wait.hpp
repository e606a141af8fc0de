#pragma once

// To wait until WAL is replayed up to an LSN.
//
// GetXLogReplayRecPtr() takes a spinlock that the startup process takes twice per record, so the waiters do
// not poll it: each publishes what it wants and sleeps, and one process, the launcher, looks while anybody
// waits, each half millisecond, or each five while the nearest LSN is far, and wakes those whose LSN was
// passed. A waiter publishes before it looks for the last time; who publishes after the launcher's look sees
// at least what the launcher saw: no wake-up is lost. If the launcher is gone, waiters look for themselves
// ten times a second; if it hangs, each second.
//
// Waiters sleep on a few words (pg/together.hpp), so that one call wakes all whose LSNs are in the same page
// of WAL, or a multiple of kReplayCalls pages apart. Who is woken too early looks, and sleeps again.

#include "pg/prelude.hpp"
#include "replicas/lsn_token.hpp"
#include "stats/histogram.hpp"

namespace weir
{

constexpr uint32_t kReplayCalls = 64;

// In shared memory. The LSN that a session waits for stands in replay_wanted, one word per session, written
// by that session alone, 0 when it does not wait; it is cleared on every way out, the process's exit
// included.
struct ReplayWaitShared {
    std::atomic<uint32_t> waiting; // sessions with such a word
    // Slept on; counted up by the launcher alone, when somebody is to be woken.
    std::atomic<uint32_t> calls[kReplayCalls];
    std::atomic<uint64_t> timed_out; // since weir.reset(), like the following
    std::atomic<uint64_t> too_late;  // refused: the transaction could not wait any more
    Histogram waits;                 // of those that had to wait, however it ended
};

// Whether that is replayed; on a primary, whether its WAL contains it. An error if it never will be: LSNs
// from the future of a primary, and from a history that this server does not share.
bool IsReplayed(const LsnToken &token);

// Waits until it is, interruptibly, without touching snapshots. An error (57014) after timeout_ms.
void WaitForReplay(const LsnToken &token, int timeout_ms);

// The launcher's nap: wakes those whose LSN is replayed meanwhile. Ends when the latch is set.
void NapMindingReplay(long nap_ms, uint32 wait_event);

} // namespace weir
