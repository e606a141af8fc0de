// The quarantine's hysteresis, against two minutes of lag in all shapes that come to mind.

#include "replicas/quarantine.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <random>
#include <vector>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;
constexpr int64_t kSample = kSecond / 10;
constexpr QuarantineRule kRule = {10 * kSecond, 60 * kSecond};

using Shape = std::function<double(double)>; // lag in s at a time in s

struct Incident {
    int changes = 0;
    int changes_at_most = 0; // in any two minutes
    double first_s = -1;     // of the changes
    double last_s = -1;
    bool on = false;
};

Incident Watch(const QuarantineRule &rule, double seconds, const Shape &lag_s)
{
    Quarantine quarantine = {};
    Incident incident;
    std::vector<int64_t> changes;
    for (int64_t now = kSample; now <= static_cast<int64_t>(seconds * kSecond); now += kSample) {
        const double at_s = static_cast<double>(now) / kSecond;
        if (!quarantine.Note(std::llround(lag_s(at_s) * kSecond), now, rule))
            continue;
        changes.push_back(now);
        incident.changes++;
        incident.first_s = incident.first_s < 0 ? at_s : incident.first_s;
        incident.last_s = at_s;
    }
    for (size_t first = 0, last = 0; last < changes.size(); last++) {
        while (changes[last] - changes[first] > 120 * kSecond)
            first++;
        incident.changes_at_most = std::max(incident.changes_at_most, static_cast<int>(last - first + 1));
    }
    incident.on = quarantine.on != 0;
    return incident;
}

// The shape for two minutes, and none before and after.
Shape ForTwoMinutes(const Shape &shape)
{
    return [shape](double at_s) { return at_s < 30 || at_s >= 150 ? 0 : shape(at_s - 30); };
}

// Replay stands still for `stall_s`, once in `period_s`, and catches up at once.
Shape Stalls(double stall_s, double period_s)
{
    return [=](double at_s) {
        const double phase_s = std::fmod(at_s, period_s);
        return phase_s < stall_s ? phase_s : 0;
    };
}

TEST(Quarantine, ThreeSamplesOverTheLimit)
{
    Quarantine quarantine = {};
    int64_t now = kSecond;
    const auto note = [&](double lag_s) {
        now += kSample;
        return quarantine.Note(std::llround(lag_s * kSecond), now, kRule);
    };
    EXPECT_FALSE(note(11));
    EXPECT_FALSE(note(11));
    EXPECT_FALSE(note(10)); // at the limit is not over it
    EXPECT_FALSE(note(11));
    EXPECT_FALSE(note(11));
    EXPECT_EQ(quarantine.on, 0U);
    EXPECT_TRUE(note(11));
    EXPECT_EQ(quarantine.on, 1U);
    EXPECT_FALSE(note(11));
}

TEST(Quarantine, FiveSamplesBelowHalf)
{
    const QuarantineRule rule = {10 * kSecond, 0};
    Quarantine quarantine = {};
    int64_t now = kSecond;
    const auto note = [&](double lag_s) {
        now += kSample;
        return quarantine.Note(std::llround(lag_s * kSecond), now, rule);
    };
    for (int i = 0; i < 3; i++)
        note(11);
    EXPECT_EQ(quarantine.on, 1U);
    for (int i = 0; i < 100; i++)
        EXPECT_FALSE(note(5)); // half is not below half
    for (int i = 0; i < 4; i++)
        EXPECT_FALSE(note(4.9));
    EXPECT_FALSE(note(6));
    for (int i = 0; i < 4; i++)
        EXPECT_FALSE(note(0));
    EXPECT_TRUE(note(0));
    EXPECT_EQ(quarantine.on, 0U);
}

TEST(Quarantine, HoldsSinceTheLastSampleOver)
{
    const Incident incident = Watch(kRule, 200, [](double at_s) { return at_s < 12 ? at_s : 0.0; });
    EXPECT_EQ(incident.changes, 2);
    EXPECT_NEAR(incident.first_s, 10.3, 0.15);
    EXPECT_NEAR(incident.last_s, 72, 0.15);
}

// Lag between half of the limit and the limit holds the quarantine, and does not begin its hold anew.
TEST(Quarantine, WhatIsWithinTheLimitDoesNotProlong)
{
    const Incident incident =
        Watch(kRule, 200, [](double at_s) { return at_s < 12 ? at_s : Stalls(8, 15)(at_s - 12); });
    EXPECT_EQ(incident.changes, 2);
    EXPECT_LT(incident.last_s, 90);
}

TEST(Quarantine, OffEndsIt)
{
    Quarantine quarantine = {};
    for (int i = 1; i <= 3; i++)
        quarantine.Note(11 * kSecond, i * kSample, kRule);
    EXPECT_EQ(quarantine.on, 1U);
    EXPECT_TRUE(quarantine.Note(11 * kSecond, 4 * kSample, {0, kRule.hold_us}));
    EXPECT_FALSE(quarantine.Note(11 * kSecond, 5 * kSample, {0, kRule.hold_us}));
    EXPECT_EQ(quarantine.on, 0U);
    EXPECT_FALSE(quarantine.End());
}

TEST(Quarantine, ClockSetBack)
{
    Quarantine quarantine = {};
    int64_t now = 1000 * kSecond;
    for (int i = 0; i < 3; i++)
        quarantine.Note(11 * kSecond, now += kSample, kRule);
    now = kSecond;
    bool left = false;
    for (int i = 0; i < 610 && !left; i++)
        left = quarantine.Note(0, now += kSample, kRule);
    EXPECT_TRUE(left);
}

// ---- incidents of two minutes, and what follows: in once, out once --------------------------------------

TEST(Quarantine, NoiseAroundTheLimit)
{
    for (const double width : {0.1, 0.3, 0.6, 1.0})
        for (uint32_t seed = 0; seed < 200; seed++) {
            std::mt19937 random(seed);
            std::uniform_real_distribution<> noise(1 - width, 1 + width);
            const Incident incident =
                Watch(kRule, 300, ForTwoMinutes([&](double) { return 10 * noise(random); }));
            EXPECT_LE(incident.changes, 2) << width << " " << seed;
            EXPECT_FALSE(incident.on);
        }
}

TEST(Quarantine, WanderingAroundTheLimit)
{
    for (uint32_t seed = 0; seed < 500; seed++) {
        std::mt19937 random(seed);
        std::normal_distribution<> step(0, 0.4);
        double lag_s = 8;
        const Incident incident = Watch(kRule, 300, ForTwoMinutes([&](double) {
                                            lag_s += step(random) + 0.02 * (10 - lag_s);
                                            return lag_s = std::max(lag_s, 0.0);
                                        }));
        EXPECT_LE(incident.changes, 2) << seed;
    }
}

TEST(Quarantine, Waves)
{
    for (double period_s = 0.5; period_s <= 60; period_s += 0.5)
        for (const double amplitude : {0.2, 0.6, 1.0}) {
            const Incident incident =
                Watch(kRule, 300, ForTwoMinutes([=](double at_s) {
                          return 10 * (1 + amplitude * std::sin(2 * M_PI * at_s / period_s));
                      }));
            EXPECT_LE(incident.changes, 2) << period_s << " " << amplitude;
        }
}

// Replay that stands still again and again, and recovers wholly between: with the first numbers alone (three
// samples in, five out) this is a change every few seconds.
TEST(Quarantine, StallsThatFollowEachOther)
{
    for (double period_s = 12; period_s <= 60; period_s += 1)
        for (double stall_s = 10.5; stall_s < period_s; stall_s += 2) {
            const Incident incident = Watch(kRule, 300, ForTwoMinutes(Stalls(stall_s, period_s)));
            EXPECT_LE(incident.changes, 2) << stall_s << " of " << period_s;
        }
    const Incident without = Watch({kRule.limit_us, 0}, 300, ForTwoMinutes(Stalls(12, 15)));
    EXPECT_GE(without.changes, 10);
}

// Whatever the lag does: a change out is followed by a change in at will, and then by none for `hold_us`.
TEST(Quarantine, WorstCase)
{
    for (uint32_t seed = 0; seed < 300; seed++) {
        std::mt19937 random(seed);
        double until_s = 0;
        double lag_s = 0;
        const Incident incident = Watch(kRule, 3600, [&](double at_s) {
            if (at_s >= until_s) {
                until_s = at_s + std::exponential_distribution<>(1.0 / 30)(random);
                lag_s = std::uniform_real_distribution<>(0, 20)(random);
            }
            return lag_s;
        });
        EXPECT_LE(incident.changes_at_most, 4) << seed;
    }
}

} // namespace
} // namespace weir
