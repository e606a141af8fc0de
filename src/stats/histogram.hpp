#pragma once

// How long something took: a log-linear histogram of durations in shared memory.
//
// Each power of two of microseconds is divided into 8 buckets of equal width (as HdrHistogram does), so a
// bucket is never wider than 1/8 of its lower edge: durations below 16 us are counted exactly, and a
// percentile is never further than 12.5 % from the exact one. (Four buckets with interpolation would allow 25
// %.) What lasts longer than kMaxDurationUs, about 38 hours, is counted as that long.
//
// Who writes: Record() is for any number of processes at once, lock-free, relaxed. A process that dies inside
// it loses that one record, or leaves it in the buckets but not in sum and maximum; nothing to repair.
// Reset() runs beside Record() without harm but is not atomic: records of that moment may stay or go. Readers
// take a snapshot; its count is the sum of its buckets, so percentiles always add up, while sum and maximum
// may be a few records ahead or behind.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace weir
{

constexpr uint32_t kSubBucketBits = 3;
constexpr uint32_t kSubBuckets = 1u << kSubBucketBits;
constexpr uint32_t kDurationBits = 37;
constexpr uint64_t kMaxDurationUs = (1ull << kDurationBits) - 1;
constexpr uint32_t kHistogramBuckets = (kDurationBits - kSubBucketBits + 1) * kSubBuckets;

// The bucket of a duration; longer than kMaxDurationUs: the last.
uint32_t BucketOf(uint64_t us) noexcept;

// The shortest and the longest duration that bucket counts; index < kHistogramBuckets.
uint64_t BucketLowUs(uint32_t index) noexcept;
uint64_t BucketHighUs(uint32_t index) noexcept;

// A histogram at one moment: plain numbers, to add, subtract, and ask. Zeroes are an empty one.
struct HistogramSnapshot {
    uint64_t buckets[kHistogramBuckets];
    uint64_t sum_us;
    uint64_t max_us;

    uint64_t Count() const noexcept;
    uint64_t Sum() const noexcept { return sum_us; }

    // The longest duration, exact; after Subtract() an upper bound, within 12.5 %. 0 when empty.
    uint64_t MaxUs() const noexcept { return max_us; }

    // The duration that a `fraction` (0..1; 0.99 is p99) of the records did not exceed, by nearest rank,
    // interpolated within its bucket: within 12.5 % of the exact one, exact below 16 us. 0 when empty.
    uint64_t Percentile(double fraction) const noexcept;

    // Other classes, other servers' rows: their records count here too.
    void Add(const HistogramSnapshot &other) noexcept;

    // Leaves what was recorded since `baseline`, an earlier snapshot of the same histogram. Where the
    // histogram was reset in between, no bucket goes below zero.
    void Subtract(const HistogramSnapshot &baseline) noexcept;
};

// The shared histogram. Zeroes are an empty one; anything else needs Reset() before its first use.
class Histogram
{
  public:
    // A negative duration (a clock that was set back) counts as 0.
    void Record(int64_t us) noexcept;

    void Reset() noexcept;

    HistogramSnapshot Snapshot() const noexcept;

  private:
    std::atomic<uint64_t> buckets_[kHistogramBuckets];
    std::atomic<uint64_t> sum_us_;
    std::atomic<uint64_t> max_us_;
};

static_assert(std::atomic<uint64_t>::is_always_lock_free);
static_assert(std::is_standard_layout_v<Histogram> && std::is_trivially_destructible_v<Histogram>);
static_assert(sizeof(Histogram) == (kHistogramBuckets + 2) * sizeof(uint64_t));
static_assert(kMaxDurationUs >= 24ull * 3600 * 1000000);
static_assert(std::is_trivially_copyable_v<HistogramSnapshot>);

} // namespace weir
