#pragma once

// Percentiles of a lag over the last minute, 5 minutes and hour: logarithmic buckets, in slices that are
// dropped when they are old.
//
// A bucket is 1.25 times as wide as the one before, from 1 ms to over an hour, so a percentile is at
// most 12.5 % off; what is below 1 ms counts as 0.5 ms. The minute is kept in slices of 10 s, the rest in
// slices of 5 minutes; a window is between its length and one slice less. The maximum is exact.
//
// Of one process (the sampler), in shared memory so that its successor goes on. All zero is empty.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr uint32_t kLagWindows = 3; // 1 minute, 5 minutes, 1 hour
constexpr uint32_t kLagBuckets = 72;

struct LagSummary {
    uint32_t samples;
    int64_t p50_us, p95_us, p99_us, max_us; // 0 when there are no samples
};

class LagWindows
{
  public:
    void Note(int64_t lag_us, int64_t now_us) noexcept;
    void Summarize(int64_t now_us, LagSummary (&to)[kLagWindows]) const noexcept;
    void Clear() noexcept { *this = {}; }

  private:
    static constexpr uint32_t kShortSlices = 30; // of 10 s
    static constexpr uint32_t kLongSlices = 12;  // of 5 minutes
    struct Slice {
        int64_t number; // time / length; says whether it is of now
        int64_t max_us;
        uint16_t buckets[kLagBuckets];
    };

    static void Add(Slice *slice, int64_t number, uint32_t bucket, int64_t lag_us) noexcept;

    Slice short_[kShortSlices];
    Slice long_[kLongSlices];
};

static_assert(std::is_trivially_copyable_v<LagWindows>);

} // namespace weir
