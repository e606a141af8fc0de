#include "replicas/lag_windows.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr int64_t kShortUs = 10 * 1000000;
constexpr int64_t kLongUs = 300 * INT64_C(1000000);
constexpr double kGrowth = 1.25;

// Bucket 0: below 1 ms; bucket i: from 1.25^(i-1) ms on.
uint32_t BucketOfLag(int64_t lag_us) noexcept
{
    if (lag_us < 1000)
        return 0;
    const double index = 1 + std::floor(std::log(static_cast<double>(lag_us) / 1000) / std::log(kGrowth));
    return index < kLagBuckets - 1 ? static_cast<uint32_t>(index) : kLagBuckets - 1;
}

int64_t MiddleUs(uint32_t bucket) noexcept
{
    return bucket == 0 ? 500
                       : static_cast<int64_t>(1000 * std::pow(kGrowth, static_cast<double>(bucket) - 0.5));
}

struct Sum {
    uint32_t count;
    int64_t max_us;
    uint32_t buckets[kLagBuckets];
};

int64_t Percentile(const Sum &sum, double fraction) noexcept
{
    const auto rank = static_cast<uint32_t>(std::ceil(fraction * sum.count));
    uint32_t before = 0;
    for (uint32_t i = 0; i < kLagBuckets; i++) {
        before += sum.buckets[i];
        if (before >= rank && before > 0)
            return MiddleUs(i) < sum.max_us ? MiddleUs(i) : sum.max_us;
    }
    return sum.max_us;
}

} // namespace

void LagWindows::Add(Slice *slice, int64_t number, uint32_t bucket, int64_t lag_us) noexcept
{
    if (slice->number != number)
        *slice = {number, 0, {}};
    if (slice->buckets[bucket] < UINT16_MAX)
        slice->buckets[bucket]++;
    if (lag_us > slice->max_us)
        slice->max_us = lag_us;
}

void LagWindows::Note(int64_t lag_us, int64_t now_us) noexcept
{
    const uint32_t bucket = BucketOfLag(lag_us);
    const int64_t short_number = now_us / kShortUs;
    const int64_t long_number = now_us / kLongUs;
    Add(&short_[static_cast<uint64_t>(short_number) % kShortSlices], short_number, bucket, lag_us);
    Add(&long_[static_cast<uint64_t>(long_number) % kLongSlices], long_number, bucket, lag_us);
}

void LagWindows::Summarize(int64_t now_us, LagSummary (&to)[kLagWindows]) const noexcept
{
    static constexpr int64_t kSlicesOf[kLagWindows] = {6, kShortSlices, kLongSlices};
    for (uint32_t w = 0; w < kLagWindows; w++) {
        const bool is_long = w == kLagWindows - 1;
        const Slice *slices = is_long ? long_ : short_;
        const int64_t newest = now_us / (is_long ? kLongUs : kShortUs);
        Sum sum = {};
        for (uint32_t i = 0; i < (is_long ? kLongSlices : kShortSlices); i++) {
            const Slice &slice = slices[i];
            if (slice.number > newest || newest - slice.number >= kSlicesOf[w])
                continue;
            for (uint32_t b = 0; b < kLagBuckets; b++) {
                sum.buckets[b] += slice.buckets[b];
                sum.count += slice.buckets[b];
            }
            if (slice.max_us > sum.max_us)
                sum.max_us = slice.max_us;
        }
        to[w] = {sum.count, 0, 0, 0, sum.max_us};
        if (sum.count > 0)
            to[w] = {sum.count, Percentile(sum, 0.5), Percentile(sum, 0.95), Percentile(sum, 0.99),
                     sum.max_us};
    }
}

} // namespace weir
