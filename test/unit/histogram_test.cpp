#include "stats/histogram.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <thread>
#include <vector>

namespace weir
{
namespace
{

const double kFractions[] = {0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0};

// Nearest rank, from all the values.
uint64_t ExactPercentile(const std::vector<uint64_t> &sorted, double fraction)
{
    const double rank = std::ceil(fraction * static_cast<double>(sorted.size()) - 1e-6);

    return sorted[std::max<size_t>(static_cast<size_t>(rank), 1) - 1];
}

void ExpectPercentilesNear(std::vector<uint64_t> values)
{
    Histogram histogram{};

    for (const uint64_t us : values)
        histogram.Record(static_cast<int64_t>(us));
    std::sort(values.begin(), values.end());

    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_EQ(snapshot.Count(), values.size());
    EXPECT_EQ(snapshot.MaxUs(), values.back());
    for (const double fraction : kFractions) {
        const auto exact = static_cast<double>(ExactPercentile(values, fraction));
        EXPECT_NEAR(static_cast<double>(snapshot.Percentile(fraction)), exact, exact * 0.125) << fraction;
    }
}

TEST(Histogram, BucketsCoverEveryDurationOnce)
{
    EXPECT_EQ(BucketLowUs(0), 0u);
    for (uint32_t i = 0; i < kHistogramBuckets; i++) {
        EXPECT_EQ(BucketOf(BucketLowUs(i)), i);
        EXPECT_EQ(BucketOf(BucketHighUs(i)), i);
        if (i > 0) {
            EXPECT_EQ(BucketLowUs(i), BucketHighUs(i - 1) + 1);
        }
    }
    EXPECT_EQ(BucketHighUs(kHistogramBuckets - 1), kMaxDurationUs);
    EXPECT_EQ(BucketOf(UINT64_MAX), kHistogramBuckets - 1);
}

TEST(Histogram, NoBucketIsWiderThanAnEighthOfItsLowerEdge)
{
    for (uint32_t i = 1; i < kHistogramBuckets; i++)
        EXPECT_LE((BucketHighUs(i) - BucketLowUs(i)) * 8, BucketLowUs(i)) << i;
}

TEST(Histogram, AnEmptyOneAnswersZero)
{
    Histogram histogram{};
    const HistogramSnapshot snapshot = histogram.Snapshot();

    EXPECT_EQ(snapshot.Count(), 0u);
    EXPECT_EQ(snapshot.Sum(), 0u);
    EXPECT_EQ(snapshot.MaxUs(), 0u);
    for (const double fraction : kFractions)
        EXPECT_EQ(snapshot.Percentile(fraction), 0u);
}

TEST(Histogram, ShortDurationsAreExact)
{
    Histogram histogram{};

    for (int us = 1; us < 16; us++)
        histogram.Record(us);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_EQ(snapshot.Count(), 15u);
    EXPECT_EQ(snapshot.Sum(), 120u);
    for (uint64_t us = 1; us < 16; us++)
        EXPECT_EQ(snapshot.Percentile(static_cast<double>(us) / 15), us);
    EXPECT_EQ(snapshot.Percentile(0.07), 2u); // rank 1.05
}

TEST(Histogram, StrangeFractionsAreTheEnds)
{
    Histogram histogram{};

    histogram.Record(3);
    histogram.Record(5000001);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_EQ(snapshot.Percentile(0), 3u);
    EXPECT_EQ(snapshot.Percentile(-1), 3u);
    EXPECT_EQ(snapshot.Percentile(std::numeric_limits<double>::quiet_NaN()), 3u);
    EXPECT_EQ(snapshot.Percentile(1), 5000001u);
    EXPECT_EQ(snapshot.Percentile(7), 5000001u);
}

TEST(Histogram, DurationsOutOfRangeAreClamped)
{
    Histogram histogram{};

    histogram.Record(-5);
    histogram.Record(INT64_MIN);
    histogram.Record(INT64_MAX);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_EQ(snapshot.Count(), 3u);
    EXPECT_EQ(snapshot.Percentile(0.5), 0u);
    EXPECT_EQ(snapshot.MaxUs(), kMaxDurationUs);
    EXPECT_EQ(snapshot.Sum(), kMaxDurationUs);
}

TEST(Histogram, PercentilesOfOneValue)
{
    for (const uint64_t us : {1ull, 17ull, 1000ull, 1024ull, 1151ull, 86400000000ull})
        ExpectPercentilesNear(std::vector<uint64_t>(1000, us));
}

TEST(Histogram, PercentilesOfUniformDurations)
{
    std::vector<uint64_t> values;

    for (uint64_t us = 1; us <= 100000; us++)
        values.push_back(us);
    ExpectPercentilesNear(values);
}

TEST(Histogram, PercentilesOfExponentialDurations)
{
    std::mt19937_64 random(1);
    std::exponential_distribution<double> distribution(1 / 20000.0);
    std::vector<uint64_t> values;

    for (int i = 0; i < 100000; i++)
        values.push_back(static_cast<uint64_t>(distribution(random)));
    ExpectPercentilesNear(values);
}

TEST(Histogram, PercentilesOfHeavyTails)
{
    std::mt19937_64 random(2);
    std::lognormal_distribution<double> distribution(8, 3);
    std::vector<uint64_t> values;

    for (int i = 0; i < 100000; i++)
        values.push_back(std::min(static_cast<uint64_t>(distribution(random)), kMaxDurationUs));
    ExpectPercentilesNear(values);
}

// Where interpolation is furthest off: everything at one edge of a bucket.
TEST(Histogram, PercentilesOfBucketEdges)
{
    for (uint32_t i = 1; i < kHistogramBuckets; i++) {
        ExpectPercentilesNear(std::vector<uint64_t>(100, BucketHighUs(i)));
        std::vector<uint64_t> low(100, BucketLowUs(i));
        low.push_back(kMaxDurationUs); // or the maximum would give it away
        ExpectPercentilesNear(low);
    }
}

TEST(Histogram, InterpolatesWithinABucket)
{
    Histogram histogram{};

    for (int us = 1024; us < 1152; us++)
        histogram.Record(us);
    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_NEAR(static_cast<double>(snapshot.Percentile(0.25)), 1024 + 32, 1);
    EXPECT_NEAR(static_cast<double>(snapshot.Percentile(0.75)), 1024 + 96, 1);
}

TEST(Histogram, ALoneRecordCountsAsTheMiddleOfItsBucket)
{
    Histogram histogram{};

    histogram.Record(1030);
    histogram.Record(1000000);
    EXPECT_EQ(histogram.Snapshot().Percentile(0.5), 1024u + 64);
}

TEST(Histogram, ResetForgetsAll)
{
    Histogram histogram{};

    histogram.Record(100);
    histogram.Reset();
    EXPECT_EQ(histogram.Snapshot().Count(), 0u);
    EXPECT_EQ(histogram.Snapshot().MaxUs(), 0u);
    EXPECT_EQ(histogram.Snapshot().Sum(), 0u);
    histogram.Record(7);
    EXPECT_EQ(histogram.Snapshot().MaxUs(), 7u);
}

TEST(HistogramSnapshot, AddedOnesAreLikeOneThatSawAll)
{
    Histogram a{}, b{}, both{};

    for (int us = 1; us < 5000; us += 7) {
        (us % 2 == 0 ? a : b).Record(us);
        both.Record(us);
    }
    HistogramSnapshot sum = {};
    sum.Add(a.Snapshot());
    sum.Add(b.Snapshot());
    const HistogramSnapshot expected = both.Snapshot();
    EXPECT_EQ(sum.Count(), expected.Count());
    EXPECT_EQ(sum.Sum(), expected.Sum());
    EXPECT_EQ(sum.MaxUs(), expected.MaxUs());
    for (const double fraction : kFractions)
        EXPECT_EQ(sum.Percentile(fraction), expected.Percentile(fraction));
}

TEST(HistogramSnapshot, SubtractingABaselineLeavesWhatCameAfter)
{
    Histogram histogram{};

    histogram.Record(10);
    histogram.Record(1000000);
    const HistogramSnapshot baseline = histogram.Snapshot();
    histogram.Record(12);
    histogram.Record(3000);

    HistogramSnapshot since = histogram.Snapshot();
    since.Subtract(baseline);
    EXPECT_EQ(since.Count(), 2u);
    EXPECT_EQ(since.Sum(), 3012u);
    EXPECT_EQ(since.Percentile(0.5), 12u);
    EXPECT_GE(since.MaxUs(), 3000u); // not the 1000000 from before
    EXPECT_LE(since.MaxUs(), 3375u);

    histogram.Record(2000000);
    since = histogram.Snapshot();
    since.Subtract(baseline);
    EXPECT_EQ(since.MaxUs(), 2000000u);
}

TEST(HistogramSnapshot, SubtractingAcrossAResetDoesNotWrap)
{
    Histogram histogram{};

    histogram.Record(10);
    histogram.Record(10);
    const HistogramSnapshot baseline = histogram.Snapshot();
    histogram.Reset();
    histogram.Record(10);

    HistogramSnapshot since = histogram.Snapshot();
    since.Subtract(baseline);
    EXPECT_EQ(since.Count(), 0u);
    EXPECT_EQ(since.Sum(), 0u);
    EXPECT_EQ(since.MaxUs(), 0u);
}

TEST(Histogram, ManyWritersLoseNothing)
{
    constexpr int kThreads = 4;
    constexpr int kRecords = 20000;
    static Histogram histogram;
    std::vector<std::thread> threads;

    for (int t = 0; t < kThreads; t++) {
        threads.emplace_back([t] {
            for (int i = 0; i < kRecords; i++)
                histogram.Record(i * kThreads + t);
        });
    }
    // Whatever a snapshot sees in between, it is consistent in itself.
    for (int i = 0; i < 100; i++) {
        const HistogramSnapshot snapshot = histogram.Snapshot();
        ASSERT_LE(snapshot.Percentile(0.99), snapshot.MaxUs());
        ASSERT_LE(snapshot.Count(), static_cast<uint64_t>(kThreads * kRecords));
    }
    for (std::thread &thread : threads)
        thread.join();

    constexpr uint64_t kTotal = kThreads * kRecords;
    const HistogramSnapshot snapshot = histogram.Snapshot();
    EXPECT_EQ(snapshot.Count(), kTotal);
    EXPECT_EQ(snapshot.MaxUs(), kTotal - 1);
    EXPECT_EQ(snapshot.Sum(), kTotal * (kTotal - 1) / 2);
}

} // namespace
} // namespace weir
