#pragma once

// Failed logins per client address, and for how long to hold the answer of each, so that an address hears of
// no more than `rate` of them per second: guessing passwords takes as long as we like, and costs us nothing.
//
// The rate is kept by the generic cell rate algorithm (ITU-T Recommendation I.371, "virtual scheduling"): per
// address one number, the theoretical arrival time, which is when its next failure would be due if they came
// evenly. A failure moves it on by 1 / rate from where it was, or from now, whichever is later. I.371
// discards the cell that comes too early; here its answer is held until it is not too early any more. Early
// by one second less one interval is allowed: a burst of `rate`, of one at least.
//
// A theoretical arrival time that has passed says the same as none: such an entry is free. There is nothing
// to expire, and memory is needed only for addresses whose failures come faster than `rate`.
//
// Addresses. IPv6 counts by /64, which is the least that one customer is given; IPv4 written as IPv6 as IPv4;
// all local sockets are one address, and all unknown ones.
//
// A full table. An address has a place in one set of kFailedLoginWays. In a full set the entry whose time
// comes first makes room: among addresses that fail equally often it is the oldest, and a guesser who keeps
// at it is not pushed out by a thousand who tried once. Who chooses addresses to collide in a set has so many
// of them that a rate per address is no obstacle to him; he gains nothing by it.
//
// The clock. Processes take the time before the lock, so a failure may come with a slightly earlier time than
// the one before it. Earlier by more than kFailedLoginClockSlackUs is a clock that was set back, and what is
// due moves back with it.
//
// Who writes: any process, under startup_lock. One that dies inside takes the shared memory with it; the
// crash restart begins with an empty table. Who leaves while its answer is held remains counted.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

#include "admission/address.hpp"

namespace weir
{

constexpr uint32_t kFailedLoginEntries = 1024;
constexpr uint32_t kFailedLoginWays = 8;
constexpr uint32_t kFailedLoginSets = kFailedLoginEntries / kFailedLoginWays;
constexpr uint32_t kMaxFailedLoginRate = 1000000;           // one in a microsecond
constexpr int64_t kFailedLoginClockSlackUs = 1000000;       // more than a process waits for the lock
constexpr int64_t kLongestHoldUs = 3600 * int64_t{1000000}; // where the caller knows no bound

struct FailedLoginEntry {
    uint64_t network; // the first 8 bytes of the address
    AddressFamily family;
    int64_t due_us; // the theoretical arrival time
};

// Zeroes are an empty table.
class FailedLogins
{
  public:
    // Records one failed login and returns for how long (us) its answer should be held: not below 0, not
    // above `longest_us`. The backlog of an address does not grow past `longest_us` either: a flood that
    // lasts is held that long each, and forgotten that long after its end. `rate` is per second, from 1 to
    // kMaxFailedLoginRate; what is outside counts as the nearest.
    int64_t Judge(const Address &address, uint32_t rate, int64_t now_us, int64_t longest_us) noexcept;

  private:
    void FollowClock(int64_t now_us) noexcept;
    FailedLoginEntry *Find(const Address &address, int64_t now_us) noexcept;

    int64_t latest_us_; // the latest time seen
    FailedLoginEntry sets_[kFailedLoginSets][kFailedLoginWays];
};

static_assert(std::is_trivially_copyable_v<FailedLogins> && std::is_standard_layout_v<FailedLogins>);
static_assert((kFailedLoginSets & (kFailedLoginSets - 1)) == 0, "a set is found by bits of the hash");

// The set of an address: for tests that want a collision.
uint32_t FailedLoginSet(const Address &address) noexcept;

} // namespace weir
