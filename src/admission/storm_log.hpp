#pragma once

// Connection storms: when they began and ended, how high they rose, who came. The last kMostStorms of them.
//
//     quiet     nobody waits, nothing is counted
//       │ somebody waits
//       ▼
//     run-up    back to quiet when nobody has waited for kStormQuietUs; begins anew after kStormRunUpUs
//       │ kStormWaiters wait at once, or have left unserved, both together
//       ▼
//     storm     back to quiet, and into the log, when nobody has waited for kStormQuietUs
//
// A storm is recognised only when a queue has built up, and those who built it belong to it. So everybody who
// begins to wait is counted, all the time, and a storm begins with the counts of its run-up. One that lasts
// without becoming a storm is no run-up but a trickle, and is forgotten; those who wait at that moment remain
// counted, without their names.
//
// A storm lasts until the last one ceased to wait, as far as the launcher saw it; that this was the end is
// known kStormQuietUs later.
//
// The clock. When it is set back, the times that were taken before move back as much, so that a storm keeps
// its length. Set forward it may make a storm longer, or two of one.
//
// Who writes: Arrive() any backend, Update() the launcher, both under startup_lock, exclusive; Copy() under
// startup_lock, shared. A process that dies inside takes the shared memory with it. A launcher that starts
// anew goes on; what it missed, it sees with its first Update().
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

#include "admission/address.hpp"
#include "stats/top_counts.hpp"

namespace weir
{

constexpr uint32_t kMostStorms = 100;
constexpr uint32_t kStormWaiters = 10; // the refused ones included: a short queue must not hide a storm
constexpr int64_t kStormQuietUs = 5 * int64_t{1000000};
constexpr int64_t kStormRunUpUs = 10 * int64_t{1000000};
constexpr uint32_t kStormTop = 3;

struct StormTop {
    char name[kTopNameSize];
    uint64_t count; // at least so many; 0: no entry, nor any after it
};

struct StormRecord {
    int64_t began_us;
    int64_t ended_us; // 0: still going
    uint32_t peak_waiting;
    int64_t longest_wait_us;
    uint64_t arrivals; // connections that had to wait, or were refused because they would
    uint64_t admitted; // let in while somebody waited
    uint64_t left;     // unserved: timed out, gone, terminated, refused
    StormTop roles[kStormTop];
    StormTop addresses[kStormTop];
    StormTop applications[kStormTop];
};

enum class StormEvent { kNone, kBegan, kEnded };

// Zeroes are an empty one.
class StormLog
{
  public:
    // A connection has to wait, or is refused because it would. Null strings count as empty.
    void Arrive(const char *role, const Address &address, const char *application) noexcept;

    // By the launcher, every 100 ms at most while somebody waits or a storm is going. `waiting`: how many
    // wait now; `oldest_wait_us`: for how long the first of them; `admitted_total` and `left_total`: counters
    // since the server's start, read under the lock like `waiting`. One that falls has been reset, and is
    // gone on with from there. After kBegan and kEnded the storm is the first that Copy() gives.
    StormEvent Update(int64_t now_us, uint32_t waiting, int64_t oldest_wait_us, uint64_t admitted_total,
                      uint64_t left_total) noexcept;

    // Copies at most `capacity` storms, newest first, the one that is going included; there are never more
    // than kMostStorms + 1. Returns how many.
    uint32_t Copy(StormRecord *out, uint32_t capacity) const noexcept;

  private:
    void FollowClock(int64_t now_us) noexcept;
    void CountTotals(bool busy, uint64_t admitted_total, uint64_t left_total) noexcept;
    void BeginRunUp(int64_t now_us, uint32_t waiting) noexcept;
    void End() noexcept;
    void Describe(StormRecord *out) const noexcept;

    bool storming_;
    int64_t began_us_;   // the storm, or its run-up
    int64_t waited_us_;  // somebody waited until then
    int64_t updated_us_; // the last Update(), like all that was seen
    uint32_t seen_waiting_;
    uint64_t seen_arrivals_;
    uint64_t seen_admitted_total_;
    uint64_t seen_left_total_;
    uint32_t peak_waiting_; // of the storm, like longest_wait_us_
    int64_t longest_wait_us_;
    uint64_t arrivals_; // since the run-up began, like all that follow
    uint64_t admitted_;
    uint64_t left_;
    TopCounts roles_;
    TopCounts addresses_;
    TopCounts applications_;
    uint64_t ended_; // storms ever; storm n is at n % kMostStorms
    StormRecord records_[kMostStorms];
};

static_assert(std::is_trivially_copyable_v<StormLog> && std::is_standard_layout_v<StormLog>);

} // namespace weir
