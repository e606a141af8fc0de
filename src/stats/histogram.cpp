#include "stats/histogram.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

// Durations below this have a bucket each: they are shorter than the number of sub-buckets.
constexpr uint64_t kExactBelowUs = kSubBuckets;

uint32_t HighestBit(uint64_t value) noexcept
{
    return 63 - static_cast<uint32_t>(__builtin_clzll(value));
}

// The power of two that a bucket subdivides; index >= kSubBuckets.
uint32_t ShiftOf(uint32_t index) noexcept
{
    return index / kSubBuckets - 1;
}

uint32_t HighestNonEmpty(const HistogramSnapshot &snapshot) noexcept
{
    for (uint32_t i = kHistogramBuckets; i > 0; i--) {
        if (snapshot.buckets[i - 1] != 0)
            return i - 1;
    }
    return kHistogramBuckets;
}

// Buckets and maximum are read one after the other while others record. Whatever came in between, the maximum
// of the result is one that its buckets can have.
void FitMaximum(HistogramSnapshot *snapshot) noexcept
{
    const uint32_t top = HighestNonEmpty(*snapshot);

    if (top == kHistogramBuckets) {
        snapshot->max_us = 0;
        return;
    }
    if (snapshot->max_us < BucketLowUs(top))
        snapshot->max_us = BucketLowUs(top);
    if (snapshot->max_us > BucketHighUs(top))
        snapshot->max_us = BucketHighUs(top);
}

uint64_t MinusClamped(uint64_t a, uint64_t b) noexcept
{
    return a > b ? a - b : 0;
}

} // namespace

uint32_t BucketOf(uint64_t us) noexcept
{
    if (us < kExactBelowUs)
        return static_cast<uint32_t>(us);
    if (us > kMaxDurationUs)
        us = kMaxDurationUs;

    const uint32_t shift = HighestBit(us) - kSubBucketBits;
    const uint32_t sub_bucket = static_cast<uint32_t>(us >> shift) - kSubBuckets;
    return (shift + 1) * kSubBuckets + sub_bucket;
}

uint64_t BucketLowUs(uint32_t index) noexcept
{
    if (index < kSubBuckets)
        return index;
    return static_cast<uint64_t>(kSubBuckets + index % kSubBuckets) << ShiftOf(index);
}

uint64_t BucketHighUs(uint32_t index) noexcept
{
    if (index < kSubBuckets)
        return index;
    return BucketLowUs(index) + (1ull << ShiftOf(index)) - 1;
}

uint64_t HistogramSnapshot::Count() const noexcept
{
    uint64_t count = 0;

    for (const uint64_t bucket : buckets)
        count += bucket;
    return count;
}

uint64_t HistogramSnapshot::Percentile(double fraction) const noexcept
{
    const uint64_t count = Count();

    if (count == 0)
        return 0;
    // Written so that a NaN is 0. Above the last record's rank there is nothing to interpolate.
    if (!(fraction > 0))
        fraction = 0;
    if (fraction >= 1)
        return max_us;

    // Nearest rank: the smallest one that is at least fraction * count, counted from 1. A product a hair
    // above a whole number is that number: 0.07 * 100 is 7.000000000000001.
    const double exact_rank = fraction * static_cast<double>(count) * (1 - 1e-12);
    uint64_t rank = static_cast<uint64_t>(exact_rank);
    if (static_cast<double>(rank) < exact_rank || rank == 0)
        rank++;

    uint64_t before = 0;
    for (uint32_t i = 0; i < kHistogramBuckets; i++) {
        if (before + buckets[i] < rank) {
            before += buckets[i];
            continue;
        }
        // As if the bucket's records stood at equal distances in it.
        const double within = (static_cast<double>(rank - before) - 0.5) / static_cast<double>(buckets[i]);
        const uint64_t low = BucketLowUs(i);
        const uint64_t width = BucketHighUs(i) - low;
        const uint64_t us = low + static_cast<uint64_t>(std::llround(within * static_cast<double>(width)));
        return us < max_us ? us : max_us;
    }
    return max_us;
}

void HistogramSnapshot::Add(const HistogramSnapshot &other) noexcept
{
    for (uint32_t i = 0; i < kHistogramBuckets; i++)
        buckets[i] += other.buckets[i];
    sum_us += other.sum_us;
    if (other.max_us > max_us)
        max_us = other.max_us;
}

void HistogramSnapshot::Subtract(const HistogramSnapshot &baseline) noexcept
{
    for (uint32_t i = 0; i < kHistogramBuckets; i++)
        buckets[i] = MinusClamped(buckets[i], baseline.buckets[i]);
    sum_us = MinusClamped(sum_us, baseline.sum_us);
    FitMaximum(this);
}

void Histogram::Record(int64_t us) noexcept
{
    uint64_t duration_us = us > 0 ? static_cast<uint64_t>(us) : 0;

    if (duration_us > kMaxDurationUs)
        duration_us = kMaxDurationUs;
    buckets_[BucketOf(duration_us)].fetch_add(1, std::memory_order_relaxed);
    sum_us_.fetch_add(duration_us, std::memory_order_relaxed);

    // Seldom more than the one load: a new maximum is rare. Each retry means that the maximum has grown
    // meanwhile.
    uint64_t max_us = max_us_.load(std::memory_order_relaxed);
    while (duration_us > max_us &&
           !max_us_.compare_exchange_weak(max_us, duration_us, std::memory_order_relaxed)) {
    }
}

void Histogram::Reset() noexcept
{
    for (std::atomic<uint64_t> &bucket : buckets_)
        bucket.store(0, std::memory_order_relaxed);
    sum_us_.store(0, std::memory_order_relaxed);
    max_us_.store(0, std::memory_order_relaxed);
}

HistogramSnapshot Histogram::Snapshot() const noexcept
{
    HistogramSnapshot snapshot;

    for (uint32_t i = 0; i < kHistogramBuckets; i++)
        snapshot.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
    snapshot.sum_us = sum_us_.load(std::memory_order_relaxed);
    snapshot.max_us = max_us_.load(std::memory_order_relaxed);
    FitMaximum(&snapshot);
    return snapshot;
}

} // namespace weir
