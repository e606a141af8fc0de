#pragma once

// How fast connections may start while others work: the adaptive form of weir.max_startups.
//
// A login is a fork, an authentication and a catalog load: milliseconds of processor for a client that has
// not asked anything yet. The number of logins at once does not bound that: one at a time, without a pause,
// is a processor's whole fair share. So what is bounded is their rate.
//
// Nobody to protect. While no established session (one that ran its first transaction a second ago or
// earlier) has transactions, logins are the only work: they run as fast as they can, kStartupsPerCore at
// once, which is what keeps the processors busy and a thousand processes out of each other's way.
//
// Somebody to protect. The rate falls, by kFall per interval, while the processors are busy (idle less than
// kBusyIdle), and grows by kRise while they are not (idle more than kRoomyIdle). Without a figure for idle,
// what established transactions leave of the processors stands in for it. It does not fall below
//   share: weir.startup_share per cent of the processors, divided by what a login costs (each adds
//          its processor time, times kWholeLogin for the fork, the first query and the exit, which it cannot
//          see);
//   drain: the rate at which those who wait now are all served within kDrainShare of weir.startup_timeout.
//          Slower would be no relief: who is refused comes back at once, and costs another login.
// When the rate is far above what the processors could serve, there is none.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr uint32_t kStartupsPerCore = 4;
// So many are protected like more, and hundreds that left are not remembered for longer than these: they may
// be who comes back.
constexpr double kCrowd = 4;

// One control interval, about 100 ms. A longer one counts for as many: a second without anybody at work ends
// the pace.
struct StartupSample {
    double interval_s;
    double established; // established sessions that had a transaction in the interval
    double cpu_idle;    // idle share of all cores, 0..1; negative: not known
    double waiting;     // connections that wait now
    uint64_t admitted;  // logins let in during the interval
    double cpu_s;       // processor time that logins finished in the interval took
    uint64_t finished;  // how many these were
};

struct StartupBounds {
    double cores;
    double share;     // of the processors, 0..1: weir.startup_share
    double timeout_s; // weir.startup_timeout; 0: none
};

enum class StartupReason : uint32_t {
    kFree,   // nobody to protect, or the processors have room for all
    kRoom,   // paced; the processors have room: growing
    kBusy,   // paced; the processors are busy: falling
    kSteady, // paced, and left as it is
    kShare,  // at weir.startup_share
    kDrain,  // as fast as those who wait need, to be served in time
    kFixed,  // weir.max_startups is not -1
};

// In shared memory, so that a new launcher goes on where the last one ended. Written by the launcher.
struct StartupPace {
    double rate; // logins a second; 0: not paced
    StartupReason reason;
    double established; // smoothed, like all that follow
    double guarded;     // the same of at most kCrowd at a time: for how long they are remembered
    double idle;
    double cost_s;      // processor time of a login; 0: not known
    double served_rate; // logins a second
    double queue_rate;  // the same while somebody waits: for who is told when to come back
};

static_assert(std::is_trivially_copyable_v<StartupPace>);

// Takes in one interval; returns the new rate, 0: not paced.
double StartupPaceUpdate(StartupPace *pace, const StartupBounds &bounds,
                         const StartupSample &sample) noexcept;

const char *StartupReasonName(StartupReason reason) noexcept;

} // namespace weir
