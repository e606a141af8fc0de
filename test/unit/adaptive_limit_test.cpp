#include "admission/adaptive_limit.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "simulator.hpp"

namespace weir
{
namespace
{

using namespace simulator;

constexpr uint32_t kFixedLimits[] = {2, 4, 6, 8, 12, 16, 32, 64, 128, 256, 512, 1000};
constexpr double kIntervalS = 0.1;
constexpr int kLooks = 20;

// What the launcher's view suffers from.
struct Disturbance {
    const char *name;
    double noise; // every figure is off by up to this share
    double late;  // this share of the intervals lasts 0.3 to 2 s, with few looks
};

constexpr Disturbance kNone = {"undisturbed", 0, 0};
constexpr Disturbance kNoisy = {"noisy", 0.2, 0};
constexpr Disturbance kNoisyAndLate = {"noisy and late", 0.2, 0.1};

// A server under the adaptive limit.
class Controlled
{
  public:
    Controlled(uint32_t cores, uint32_t clients, const Mix &mix, const Disturbance &disturbance = kNone)
        : server(cores, clients, mix, 2), bounds{cores, 2, 1000}, disturbance_(disturbance), random_(7)
    {
        AdaptiveReset(&state, bounds);
        server.SetLimit(state.limit);
    }

    void Interval()
    {
        const bool late = random_.Uniform(0, 1) < disturbance_.late;
        sample = late ? server.Observe(random_.Uniform(0.3, 2), 3) : server.Observe(kIntervalS, kLooks);
        // One look counts every holder once, so the parts are off and the total is theirs.
        AdaptiveSample seen = sample;
        const double elsewhere = (sample.active - sample.running - sample.lock_waiting) * Noise();
        for (double *figure : {&seen.running, &seen.lock_waiting, &seen.waiting})
            *figure *= Noise();
        seen.active = seen.running + seen.lock_waiting + elsewhere;
        seen.finished = static_cast<uint64_t>(static_cast<double>(seen.finished) * Noise());
        server.SetLimit(AdaptiveUpdate(&state, bounds, seen));
        lowest = std::min(lowest, state.limit);
        highest = std::max(highest, state.limit);
    }

    // Returns transactions per second.
    double For(double seconds)
    {
        const double from_s = server.now_s();
        const uint64_t finished = server.finished();
        lowest = UINT32_MAX;
        highest = 0;
        while (server.now_s() < from_s + seconds - 1e-6)
            Interval();
        return static_cast<double>(server.finished() - finished) / (server.now_s() - from_s);
    }

    Server server;
    AdaptiveBounds bounds;
    AdaptiveState state;
    AdaptiveSample sample; // the last, undisturbed
    uint32_t lowest = UINT32_MAX;
    uint32_t highest = 0; // of the last For

  private:
    double Noise() { return random_.Uniform(1 - disturbance_.noise, 1 + disturbance_.noise); }

    Disturbance disturbance_;
    Random random_;
};

double FixedThroughput(uint32_t cores, uint32_t clients, const Mix &mix, uint32_t limit, double seconds)
{
    Server server(cores, clients, mix, 1);
    server.SetLimit(limit);
    server.Run(2e6);
    const uint64_t finished = server.finished();
    server.Run(seconds * 1e6);
    return static_cast<double>(server.finished() - finished) / seconds;
}

// The simulator against what was measured on two cores.

void ExpectNear(double simulated, double measured, double tolerance)
{
    EXPECT_NEAR(simulated / measured, 1, tolerance) << simulated << " simulated, " << measured << " measured";
}

TEST(AdaptiveSimulator, HotRowsAsMeasured)
{
    const std::pair<uint32_t, double> measured[] = {{4, 1032}, {6, 1062}, {8, 940}, {12, 823},
                                                    {16, 822}, {32, 762}, {64, 753}};
    for (const auto &[limit, tps] : measured)
        ExpectNear(FixedThroughput(2, 400, HotRows(), limit, 5), tps, 0.12);
    ExpectNear(FixedThroughput(2, 1000, HotRows(), 1000, 5), 124, 0.25);
}

TEST(AdaptiveSimulator, HotRowsWaitAsMeasured)
{
    const std::pair<uint32_t, double> measured[] = {{4, 1.8},  {6, 3.6}, {8, 5.6},
                                                    {12, 9.4}, {32, 28}, {64, 59}};
    for (const auto &[limit, lock_waiting] : measured) {
        Server server(2, 400, HotRows(), 1);
        server.SetLimit(limit);
        server.Run(1e6);
        ExpectNear(server.Observe(5, 500).lock_waiting, lock_waiting, 0.2);
    }
}

// The measured 2115 at 64 is 30 ms a transaction, of which the simulator knows 22.
TEST(AdaptiveSimulator, SleepersAsMeasured)
{
    const std::pair<uint32_t, double> measured[] = {{8, 362}, {64, 2115}, {256, 6135}, {500, 7273}};
    for (const auto &[limit, tps] : measured)
        ExpectNear(FixedThroughput(2, 500, Sleeping(), limit, 3), tps, 0.4);
}

TEST(AdaptiveSimulator, ProcessorBoundIsFlat)
{
    const double unlimited = FixedThroughput(2, 512, Computing(40), 1000, 2);
    EXPECT_GT(FixedThroughput(2, 512, Computing(40), 6, 2), 0.94 * unlimited);
    EXPECT_GT(FixedThroughput(2, 512, Computing(40), 16, 2), 0.99 * unlimited);
    const double slow = FixedThroughput(2, 256, Computing(2000), 1000, 5);
    for (const uint32_t limit : {4u, 16u, 64u})
        ExpectNear(FixedThroughput(2, 256, Computing(2000), limit, 5), slow, 0.03);
}

TEST(AdaptiveSimulator, SameSeedSameRun)
{
    EXPECT_EQ(FixedThroughput(2, 100, ReadsAndHotRows(), 8, 1),
              FixedThroughput(2, 100, ReadsAndHotRows(), 8, 1));
}

// Steady load: 0.9 of the best fixed limit, settle_s after the start.

struct Steady {
    const char *name;
    uint32_t cores;
    uint32_t clients;
    Mix (*mix)();
    double settle_s;
    double measured_s;
    double swing = 1.35; // how much higher than its lowest the limit may be at its highest, undisturbed
};

void PrintTo(const Steady &steady, std::ostream *out)
{
    *out << steady.name;
}

const Steady kSteady[] = {
    {"hot_rows", 2, 400, HotRows, 3, 10},
    {"hot_rows_1000_clients", 2, 1000, HotRows, 3, 10},
    {"ten_warm_rows", 2, 500, TenWarmRows, 3, 10, 2.2},
    {"ten_rows_held_long", 2, 500, [] { return RowsHeldLong(10); }, 10, 20, 1.7},
    {"fifty_rows_held_long", 2, 500, [] { return RowsHeldLong(50); }, 10, 20, 1.7},
    {"one_row_held_long", 2, 500, [] { return RowsHeldLong(1); }, 10, 20},
    {"compute_50us", 2, 512, [] { return Computing(50); }, 3, 3},
    {"compute_2ms", 2, 500, [] { return Computing(2000); }, 3, 10},
    {"compute_50ms", 2, 500, [] { return Computing(50000); }, 3, 40},
    {"sleepers", 2, 500, Sleeping, 3, 10},
    {"reads_and_hot_rows", 2, 400, ReadsAndHotRows, 3, 10},
    {"sleepers_and_hot_rows", 2, 500, SleepersAndHotRows, 10, 10},
    {"hot_rows_64_cores", 64, 1000, HotRows, 3, 10},
    {"compute_2ms_64_cores", 64, 1000, [] { return Computing(2000); }, 3, 2},
    {"sleepers_64_cores", 64, 1000, Sleeping, 3, 2},
    {"reads_and_hot_rows_64_cores", 64, 1000, ReadsAndHotRows, 3, 20},
};

class AdaptiveSteady : public ::testing::TestWithParam<Steady>
{
};

TEST_P(AdaptiveSteady, NearTheBestFixedLimit)
{
    const Steady &steady = GetParam();
    double best = 0;
    uint32_t best_limit = 0;
    for (const uint32_t limit : kFixedLimits) {
        const double tps =
            FixedThroughput(steady.cores, steady.clients, steady.mix(), limit, steady.measured_s);
        if (tps > best) {
            best = tps;
            best_limit = limit;
        }
    }
    for (const Disturbance &disturbance : {kNone, kNoisy, kNoisyAndLate}) {
        SCOPED_TRACE(disturbance.name);
        Controlled controlled(steady.cores, steady.clients, steady.mix(), disturbance);
        controlled.For(steady.settle_s);
        const double tps = controlled.For(steady.measured_s);
        std::printf("%-28s %-15s best %7.0f at %4u, adaptive %7.0f at %3u..%3u: %.3f\n", steady.name,
                    disturbance.name, best, best_limit, tps, controlled.lowest, controlled.highest,
                    tps / best);
        EXPECT_GE(tps, 0.9 * best) << "at " << best_limit;
        // Above the number of clients it is no limit.
        EXPECT_LE(std::min(controlled.highest, steady.clients),
                  (disturbance.noise > 0 ? 2.5 : steady.swing) * controlled.lowest);
    }
}

INSTANTIATE_TEST_SUITE_P(Loads, AdaptiveSteady, ::testing::ValuesIn(kSteady),
                         [](const auto &info) { return std::string(info.param.name); });

// A load that changes every 20 s, 120 s in all. Phases differ tenfold in throughput: each is compared with
// the same phase, and the geometric mean counts.

constexpr double kPhaseS = 20;
constexpr size_t kPhases = 6;

using Phases = std::vector<double>; // throughput

double GeometricMeanRatio(const Phases &one, const Phases &other)
{
    double sum = 0;
    for (size_t i = 0; i < one.size(); i++)
        sum += std::log(one[i] / other[i]);
    return std::exp(sum / static_cast<double>(one.size()));
}

Phases FixedPhases(const std::vector<Mix> &mixes, uint32_t limit)
{
    Server server(2, 500, mixes[0], 1);
    server.SetLimit(limit);
    Phases phases;
    for (size_t i = 0; i < kPhases; i++) {
        const uint64_t finished = server.finished();
        server.Use(mixes[i % mixes.size()]);
        server.Run(kPhaseS * 1e6);
        phases.push_back(static_cast<double>(server.finished() - finished) / kPhaseS);
    }
    return phases;
}

void ExpectFollows(const std::vector<Mix> &mixes, const Disturbance &disturbance)
{
    SCOPED_TRACE(disturbance.name);
    Controlled controlled(2, 500, mixes[0], disturbance);
    Phases adaptive;
    for (size_t i = 0; i < kPhases; i++) {
        controlled.server.Use(mixes[i % mixes.size()]);
        adaptive.push_back(controlled.For(kPhaseS));
    }
    Phases hindsight(kPhases, 0);
    double worst_against_fixed = std::numeric_limits<double>::infinity();
    for (const uint32_t limit : kFixedLimits) {
        const Phases fixed = FixedPhases(mixes, limit);
        worst_against_fixed = std::min(worst_against_fixed, GeometricMeanRatio(adaptive, fixed));
        for (size_t i = 0; i < kPhases; i++)
            hindsight[i] = std::max(hindsight[i], fixed[i]);
    }
    const double against_hindsight = GeometricMeanRatio(adaptive, hindsight);
    std::printf("%s: against the best fixed limit of each phase %.3f, against the best single one %.3f\n",
                disturbance.name, against_hindsight, worst_against_fixed);
    for (size_t i = 0; i < kPhases; i++)
        EXPECT_GE(adaptive[i], 0.8 * hindsight[i]) << "phase " << i;
    EXPECT_GE(against_hindsight, 0.85);
    EXPECT_GE(worst_against_fixed, 0.9);
}

TEST(AdaptiveChanging, HotRowsSleepersComputing)
{
    ExpectFollows({HotRows(), Sleeping(), Computing(2000)}, kNone);
    ExpectFollows({HotRows(), Sleeping(), Computing(2000)}, kNoisyAndLate);
}

TEST(AdaptiveChanging, SleepersHotRowsComputing)
{
    ExpectFollows({Sleeping(), HotRows(), Computing(2000)}, kNone);
    ExpectFollows({Sleeping(), HotRows(), Computing(2000)}, kNoisyAndLate);
}

// With a limit of 600, which binds, and with one of 1000, which the 700 clients do not reach.
void ExpectLocksCutWithinThreeIntervals(uint32_t max, const Disturbance &disturbance)
{
    SCOPED_TRACE(max);
    SCOPED_TRACE(disturbance.name);
    Controlled controlled(2, 700, HotRows(), disturbance);
    controlled.For(5);
    const uint32_t right_limit = controlled.state.limit;
    controlled.bounds.max = max;
    controlled.server.Use(Sleeping());
    controlled.For(10);
    ASSERT_GE(controlled.state.limit, 600u);

    controlled.server.Use(HotRows());
    for (int i = 0; i < 50; i++) {
        controlled.Interval();
        if (controlled.sample.lock_waiting > controlled.sample.active / 2)
            break;
    }
    ASSERT_GT(controlled.sample.lock_waiting, 100);
    controlled.Interval();
    controlled.Interval();
    EXPECT_LE(controlled.state.limit, max / 8);
    controlled.For(10);
    EXPECT_LE(controlled.state.limit, 2 * right_limit);
    EXPECT_EQ(controlled.state.reason, AdaptiveReason::kLocks);
}

TEST(AdaptiveChanging, LocksAfterSleepersCutWithinThreeIntervals)
{
    for (const Disturbance &disturbance : {kNone, kNoisy}) {
        ExpectLocksCutWithinThreeIntervals(600, disturbance);
        ExpectLocksCutWithinThreeIntervals(1000, disturbance);
    }
}

TEST(AdaptiveChanging, GrowsForSleepersWithinTwoSeconds)
{
    Controlled controlled(2, 500, Sleeping());
    EXPECT_EQ(controlled.state.limit, 8u);
    controlled.For(2);
    EXPECT_GE(controlled.state.limit, 256u);
}

TEST(AdaptiveChanging, ShortPileUpIsForgotten)
{
    Controlled controlled(2, 500, Sleeping());
    controlled.For(5);
    const double before = controlled.For(3);
    controlled.server.Use(HotRows());
    controlled.For(0.3);
    controlled.server.Use(Sleeping());
    controlled.For(5);
    EXPECT_GE(controlled.For(3), 0.95 * before);
}

TEST(AdaptiveChanging, WhatSleepersProvedFadesUnderLightLoad)
{
    Controlled controlled(2, 700, Sleeping());
    controlled.For(5);
    ASSERT_GE(controlled.state.limit, 300u);
    controlled.server.Use(Computing(2000));
    controlled.server.SetClients(3);
    controlled.For(1);
    EXPECT_GE(controlled.state.limit, 256u) << "a pause of a second must not cost what was learnt";
    controlled.For(180);
    EXPECT_LE(controlled.state.limit, 16u);
    EXPECT_GE(controlled.state.limit, 8u) << "not below the start";
    EXPECT_EQ(controlled.state.reason, AdaptiveReason::kNotBinding);
}

// Bounds.

TEST(AdaptiveLimit, StartsWithinItsBounds)
{
    AdaptiveState state;
    AdaptiveReset(&state, {2, 2, 1000});
    EXPECT_EQ(state.limit, 8u);
    AdaptiveReset(&state, {64, 2, 100});
    EXPECT_EQ(state.limit, 100u);
    AdaptiveReset(&state, {1, 20, 100});
    EXPECT_EQ(state.limit, 20u);
}

TEST(AdaptiveLimit, FollowsBoundsThatChange)
{
    Controlled controlled(2, 500, Sleeping());
    controlled.For(5);
    ASSERT_GT(controlled.state.limit, 200u);
    controlled.bounds.max = 50;
    controlled.Interval();
    EXPECT_EQ(controlled.state.limit, 50u);
    controlled.For(1);
    EXPECT_EQ(controlled.state.limit, 50u);
    EXPECT_EQ(controlled.state.reason, AdaptiveReason::kBounds);
    controlled.bounds.max = 1000;
    controlled.For(5);
    EXPECT_GT(controlled.state.limit, 200u);

    controlled.server.Use(HotRows());
    controlled.For(10);
    ASSERT_LT(controlled.state.limit, 20u);
    controlled.bounds.min = 40;
    controlled.Interval();
    EXPECT_EQ(controlled.state.limit, 40u);
    controlled.bounds.min = 2;
    controlled.For(5);
    EXPECT_LT(controlled.state.limit, 20u);
}

TEST(AdaptiveLimit, BoundsHoldUnderLightLoadToo)
{
    AdaptiveState state;
    AdaptiveReset(&state, {2, 2, 1000});
    EXPECT_EQ(AdaptiveUpdate(&state, {2, 30, 1000}, {0.1, 1, 0, 0, 0, 0, 10}), 30u);
    EXPECT_EQ(AdaptiveUpdate(&state, {2, 2, 5}, {0.1, 1, 0, 0, 0, 0, 10}), 5u);
}

// Two cores and 40 holders, of whom `running` run transactions of `cpu_s`.
AdaptiveSample Busy(double running, double cpu_s)
{
    return {0.1, 40, running, 0, 0, 100, static_cast<uint64_t>(0.1 * std::min(running, 2.0) / cpu_s)};
}

TEST(AdaptiveLimit, ShortTransactionsMayQueueForTheProcessors)
{
    const AdaptiveBounds bounds = {2, 2, 1000};
    AdaptiveState state;
    const auto settled = [&](double cpu_s) {
        AdaptiveReset(&state, bounds);
        for (int i = 0; i < 50; i++)
            AdaptiveUpdate(&state, bounds, Busy(40, cpu_s));
        return state.limit;
    };
    EXPECT_NEAR(settled(50e-6), 42, 1);
    EXPECT_NEAR(settled(300e-6), 12, 1);
    EXPECT_NEAR(settled(50e-3), 6, 1);
}

TEST(AdaptiveLimit, OneOddIntervalHardlyLowersIt)
{
    const AdaptiveBounds bounds = {2, 2, 1000};
    AdaptiveState state;
    AdaptiveReset(&state, bounds);
    for (int i = 0; i < 50; i++)
        AdaptiveUpdate(&state, bounds, Busy(6.4, 5e-3));
    ASSERT_NEAR(state.limit, 40, 1);
    EXPECT_GE(AdaptiveUpdate(&state, bounds, Busy(12.8, 5e-3)), 32u);
}

// Signals that are missing or absurd.

TEST(AdaptiveLimit, IdleServerKeepsItsStart)
{
    AdaptiveState state;
    AdaptiveReset(&state, {2, 2, 1000});
    for (int i = 0; i < 1000; i++)
        EXPECT_EQ(AdaptiveUpdate(&state, {2, 2, 1000}, {0.1, 0, 0, 0, 0, 0, 0}), 8u);
}

TEST(AdaptiveLimit, NeedsNeitherIdleShareNorFinishedCount)
{
    for (const Mix &mix : {HotRows(), Sleeping()}) {
        Controlled with(2, 400, mix);
        Controlled without(2, 400, mix);
        with.For(5);
        for (int i = 0; i < 50; i++) {
            AdaptiveSample sample = without.server.Observe(kIntervalS, kLooks);
            sample.finished = 0;
            without.server.SetLimit(AdaptiveUpdate(&without.state, without.bounds, sample));
        }
        EXPECT_LE(without.state.limit, 2 * with.state.limit);
        EXPECT_GE(2 * without.state.limit, with.state.limit);
    }
}

TEST(AdaptiveLimit, NobodyActiveButManyWaiting)
{
    AdaptiveState state;
    AdaptiveReset(&state, {2, 2, 1000});
    for (int i = 0; i < 100; i++)
        AdaptiveUpdate(&state, {2, 2, 1000}, {0.1, 0, 0, 0, 0, 100, 0});
    EXPECT_GE(state.limit, 8u) << "who waits while nobody runs must not be kept out";
}

TEST(AdaptiveLimit, NeverOutOfBoundsWhateverComesIn)
{
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    const double absurd[] = {0, -1, -1e300, 1e300, 1e-300, kInfinity, -kInfinity, std::nan(""), 0.1, 5, 500};
    Random random(11);
    const auto pick = [&] {
        return random.Below(3) == 0 ? absurd[random.Below(std::size(absurd))] : random.Uniform(0, 700);
    };
    AdaptiveState state;
    AdaptiveReset(&state, {2, 2, 1000});
    for (int i = 0; i < 200000; i++) {
        const AdaptiveBounds bounds = {random.Below(130), 1 + random.Below(50), 50 + random.Below(2000)};
        const uint64_t finished = random.Below(4) == 0 ? random.Next() : random.Below(5000);
        const uint32_t limit =
            AdaptiveUpdate(&state, bounds, {pick(), pick(), pick(), pick(), pick(), pick(), finished});
        ASSERT_GE(limit, bounds.min);
        ASSERT_LE(limit, bounds.max);
        ASSERT_EQ(limit, state.limit);
        for (const double figure :
             {state.exact, state.cpu_per_transaction_s, state.running, state.useful, state.blocked})
            ASSERT_TRUE(std::isfinite(figure) && figure >= 0) << figure;
    }
}

TEST(AdaptiveLimit, RecoversFromAbsurdInput)
{
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    Controlled controlled(2, 400, HotRows());
    controlled.For(3);
    AdaptiveUpdate(&controlled.state, controlled.bounds,
                   {kInfinity, kInfinity, std::nan(""), -kInfinity, 1e300, kInfinity, 1});
    controlled.For(5);
    EXPECT_LE(controlled.state.limit, 12u);
    EXPECT_GE(controlled.state.limit, 3u);
}

TEST(AdaptiveLimit, EveryReasonHasAName)
{
    for (const AdaptiveReason reason :
         {AdaptiveReason::kNotBinding, AdaptiveReason::kRoom, AdaptiveReason::kCpu, AdaptiveReason::kLocks,
          AdaptiveReason::kBounds})
        EXPECT_STRNE(AdaptiveReasonName(reason), "unknown");
}

} // namespace
} // namespace weir
