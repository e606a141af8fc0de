#pragma once

// Which LSN was the end of WAL at which time: turns a position into an age. One clock, that of the server
// that writes, so a lag in time is never unknown, never frozen, and needs no clock of the standby's.
//
// The lag of a position is the age of the oldest WAL that lies behind it: now minus the time at which the end
// of WAL first went past it. 0 when nothing does. Entries are thinned: two neighbours stand for all between
// them when they are close against their age, so that 512 entries reach back for days with an error of a few
// per cent of the lag, and none below kExactUs (if there are more than 30 entries a second: below less).
//
// Also: a rate in bytes per second, and the difference of two clocks by the messages that pass.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr uint32_t kClockEntries = 512;

class LagClock
{
  public:
    // The end of WAL is at `lsn`. Calls come in the order of time. Memory that is all zero is an empty clock.
    // WAL that goes back (another timeline) is as old as what it takes the place of.
    void Note(uint64_t lsn, int64_t now_us) noexcept;

    // Age of what lies behind `lsn`; `known` (may be null): false if that is older than all that is
    // remembered, then the answer is the age of the oldest entry, at least.
    int64_t LagUs(uint64_t lsn, int64_t now_us, bool *known) const noexcept;

    // The clock was set: what was noted is as old as before.
    void Shift(int64_t step_us) noexcept;

    void Clear() noexcept { count_ = 0; }
    uint64_t Newest() const noexcept { return count_ > 0 ? entries_[count_ - 1].lsn : 0; }
    uint32_t Count() const noexcept { return count_; }

  private:
    // WAL past `lsn` of the entry before came between the two entries' times.
    struct Entry {
        uint64_t lsn;
        int64_t at_us;
    };

    void GoBackTo(uint64_t lsn) noexcept;
    void MakeRoom(int64_t now_us) noexcept;
    bool Thin(int64_t exact_us, int64_t now_us) noexcept;

    uint32_t count_;
    Entry entries_[kClockEntries]; // both rising
};

// Bytes per second over the last kRateSeconds or so.
struct RateMeter {
    double rate;
    uint64_t last_lsn;
    int64_t last_us;

    void Note(uint64_t lsn, int64_t now_us) noexcept;
    void Shift(int64_t step_us) noexcept;
    void Clear() noexcept { *this = {}; }
};

constexpr double kRateSeconds = 3;

// This clock minus the sender's: the smallest (receipt - sending) of the last 5 to 10 minutes. It contains
// the shortest transfer, so what is corrected by it is late by less than that.
struct SkewEstimate {
    int64_t previous; // smallest of the 5 minutes before
    int64_t current;
    int64_t began_us; // of `current`; 0: nothing seen
    bool has_previous;

    void Note(int64_t difference_us, int64_t now_us) noexcept;
    void Shift(int64_t step_us) noexcept; // this clock was set
    bool Known() const noexcept { return began_us != 0; }
    int64_t Us() const noexcept { return has_previous && previous < current ? previous : current; }
    void Clear() noexcept { *this = {}; }
};

static_assert(std::is_trivially_copyable_v<LagClock>);

// How long until `behind` bytes are worked off; -1: never, at these rates.
int64_t CatchUpUs(int64_t behind, double replay_rate, double wal_rate) noexcept;

} // namespace weir
