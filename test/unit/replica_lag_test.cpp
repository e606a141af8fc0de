// Lag from positions and times: the clock of LSNs, rates, clock skew, percentiles, what silence means, and
// the rows of standbys that come and go.

#include "replicas/replica_state.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace weir
{
namespace
{

constexpr int64_t kMs = 1000;
constexpr int64_t kSecond = 1000 * kMs;
constexpr int64_t kMinute = 60 * kSecond;
constexpr int64_t kStart = 800000000 * kSecond;

// ---- LSNs and times

TEST(LagClock, EmptyKnowsNoLag)
{
    auto clock = std::make_unique<LagClock>();
    EXPECT_EQ(0, clock->LagUs(100, kStart, nullptr));
    EXPECT_EQ(0u, clock->Newest());
}

TEST(LagClock, IdleIsNoLagHoweverLong)
{
    LagClock clock = {};
    clock.Note(100, kStart);
    for (int i = 1; i < 100; i++)
        clock.Note(100, kStart + i * kSecond);
    EXPECT_EQ(1u, clock.Count());
    EXPECT_EQ(0, clock.LagUs(100, kStart + kMinute, nullptr));
    EXPECT_EQ(0, clock.LagUs(101, kStart + kMinute, nullptr)) << "ahead of what we looked at";
}

TEST(LagClock, LagIsTheAgeOfTheOldestWalThatIsMissing)
{
    LagClock clock = {};
    clock.Note(100, kStart);
    clock.Note(200, kStart + 1 * kSecond);
    clock.Note(300, kStart + 2 * kSecond);
    const int64_t now = kStart + 10 * kSecond;
    bool known = false;
    EXPECT_EQ(0, clock.LagUs(300, now, &known));
    EXPECT_EQ(8 * kSecond, clock.LagUs(299, now, &known));
    EXPECT_EQ(8 * kSecond, clock.LagUs(200, now, &known));
    EXPECT_EQ(9 * kSecond, clock.LagUs(199, now, &known));
    EXPECT_EQ(9 * kSecond, clock.LagUs(100, now, &known));
    EXPECT_TRUE(known);
    EXPECT_EQ(10 * kSecond, clock.LagUs(99, now, &known)) << "at least";
    EXPECT_FALSE(known);
}

TEST(LagClock, ThinnedItIsStillAccurateForDays)
{
    LagClock clock = {};
    std::mt19937_64 random(1);
    std::vector<std::pair<uint64_t, int64_t>> truth; // all that was noted
    uint64_t lsn = 1000;
    int64_t now = kStart;
    for (int i = 0; i < 2 * 24 * 36000; i++) { // two days, each 100 ms
        now += 100 * kMs;
        if (random() % 10 < 7)
            lsn += 1 + random() % 100000;
        clock.Note(lsn, now);
        if (truth.empty() || truth.back().first != lsn)
            truth.emplace_back(lsn, now);
        ASSERT_LE(clock.Count(), kClockEntries);
        if (i % 997 != 0)
            continue;
        const size_t young = truth.size() - 2 - random() % 60;
        if (truth.size() > 100 && now - truth[young + 1].second < 10 * kSecond) {
            ASSERT_EQ(now - truth[young + 1].second, clock.LagUs(truth[young].first, now, nullptr));
        }
        const size_t at = random() % truth.size();
        const int64_t exact = at + 1 < truth.size() ? now - truth[at + 1].second : 0;
        const int64_t lag = clock.LagUs(truth[at].first, now, nullptr);
        ASSERT_LE(std::llabs(lag - exact), exact < 10 * kSecond ? 0 : exact / 15)
            << "at " << i << ": " << exact;
    }
}

TEST(LagClock, FullOfYoungEntriesItStillTakesMore)
{
    LagClock clock = {};
    for (uint32_t i = 0; i < 10 * kClockEntries; i++)
        clock.Note(100 + i, kStart + i);
    EXPECT_LE(clock.Count(), kClockEntries);
    EXPECT_EQ(100 + 10 * kClockEntries - 1, clock.Newest());
    EXPECT_EQ(0, clock.LagUs(clock.Newest(), kStart + kSecond, nullptr));
}

TEST(LagClock, FineSamplesOfABusyServerReachBackAsFar)
{
    for (const int64_t interval : {10 * kMs, 20 * kMs, 25 * kMs}) {
        LagClock clock = {};
        int64_t now = kStart;
        clock.Note(100, now);
        for (uint64_t lsn = 101; now < kStart + 60 * kMinute; lsn++) {
            now += interval;
            clock.Note(lsn, now);
            ASSERT_LE(clock.Count(), kClockEntries);
        }
        bool known = false;
        for (const int64_t lag : {kSecond, 30 * kSecond, 10 * kMinute, 59 * kMinute}) {
            const uint64_t replayed = clock.Newest() - static_cast<uint64_t>(lag / interval);
            const int64_t shown = clock.LagUs(replayed, now, &known);
            EXPECT_TRUE(known) << lag;
            EXPECT_NEAR(static_cast<double>(lag), static_cast<double>(shown), static_cast<double>(lag) / 15)
                << "sampled each " << interval;
        }
    }
}

TEST(LagClock, OnAnotherTimelineLagIsOnlyOfWhatIsStillThere)
{
    LagClock clock = {};
    clock.Note(100, kStart);
    clock.Note(200, kStart + kSecond);
    clock.Note(300, kStart + 2 * kSecond);
    clock.Note(150, kStart + 3 * kSecond);
    EXPECT_EQ(150u, clock.Newest());
    EXPECT_EQ(0, clock.LagUs(150, kStart + kMinute, nullptr));
    EXPECT_EQ(kMinute - kSecond, clock.LagUs(100, kStart + kMinute, nullptr))
        << "who was late is as late as before";
    clock.Note(250, kStart + 4 * kSecond);
    EXPECT_EQ(kSecond, clock.LagUs(150, kStart + 5 * kSecond, nullptr));
    clock.Note(50, kStart + 6 * kSecond);
    EXPECT_EQ(1u, clock.Count());
    EXPECT_EQ(0, clock.LagUs(50, kStart + kMinute, nullptr));
}

TEST(LagClock, TimeThatGoesBackALittleIsHeldFarItBeginsAnew)
{
    LagClock clock = {};
    clock.Note(100, kStart);
    clock.Note(200, kStart - 10 * kMs);
    EXPECT_EQ(2u, clock.Count());
    EXPECT_EQ(kSecond, clock.LagUs(100, kStart + kSecond, nullptr));
    EXPECT_EQ(0, clock.LagUs(100, kStart - kSecond, nullptr)) << "never negative";
    clock.Note(300, kStart - kMinute);
    EXPECT_EQ(1u, clock.Count());
}

TEST(LagClock, ShiftedWithTheClockLagStays)
{
    LagClock clock = {};
    clock.Note(100, kStart);
    clock.Note(200, kStart + kSecond);
    clock.Shift(3600 * kSecond);
    EXPECT_EQ(4 * kSecond, clock.LagUs(100, kStart + 3605 * kSecond, nullptr));
}

// ---- rates

TEST(RateMeter, FindsTheRateAndForgetsIt)
{
    RateMeter meter = {};
    uint64_t lsn = 1 << 20;
    int64_t now = kStart;
    for (int i = 0; i < 300; i++)
        meter.Note(lsn += 100000, now += 100 * kMs);
    EXPECT_NEAR(1e6, meter.rate, 1e3);
    for (int i = 0; i < 300; i++)
        meter.Note(lsn, now += 100 * kMs);
    EXPECT_LT(meter.rate, 100);
}

TEST(RateMeter, DoesNotDependOnTheInterval)
{
    RateMeter fine = {}, coarse = {};
    for (int i = 0; i <= 50; i++)
        fine.Note(1000 + i * 100, kStart + i * 100 * kMs);
    for (int i = 0; i <= 5; i++)
        coarse.Note(1000 + i * 1000, kStart + i * kSecond);
    EXPECT_NEAR(fine.rate, coarse.rate, 1);
    EXPECT_NEAR(1000 * (1 - std::exp(-5 / kRateSeconds)), fine.rate, 1);
}

TEST(RateMeter, GoingBackCountsAsNothing)
{
    RateMeter meter = {};
    meter.Note(1000, kStart);
    meter.Note(2000, kStart + kSecond);
    const double rate = meter.rate;
    meter.Note(500, kStart + 2 * kSecond);
    EXPECT_EQ(rate, meter.rate);
    meter.Note(9000, kStart + 2 * kSecond);
    meter.Note(9000, kStart + kSecond);
    EXPECT_EQ(rate, meter.rate) << "no time passed";
    meter.Note(1500, kStart + 3 * kSecond);
    EXPECT_GT(meter.rate, 0);
}

TEST(CatchUp, AtTheseRates)
{
    EXPECT_EQ(0, CatchUpUs(0, 0, 0));
    EXPECT_EQ(0, CatchUpUs(-5, 0, 0));
    EXPECT_EQ(2 * kSecond, CatchUpUs(1000, 600, 100));
    EXPECT_EQ(-1, CatchUpUs(1000, 100, 100));
    EXPECT_EQ(-1, CatchUpUs(1000, 50, 100));
    EXPECT_EQ(-1, CatchUpUs(INT64_MAX, 1e-9, 0)) << "a year and longer";
}

// ---- two clocks

TEST(Skew, IsTheFastestMessage)
{
    SkewEstimate skew = {};
    EXPECT_FALSE(skew.Known());
    const int64_t off = -7000 * kSecond;
    std::mt19937_64 random(2);
    for (int i = 0; i < 3600; i++)
        skew.Note(off + 200 + static_cast<int64_t>(random() % (50 * kMs)), kStart + i * kSecond);
    EXPECT_TRUE(skew.Known());
    EXPECT_GE(skew.Us(), off + 200);
    EXPECT_LE(skew.Us(), off + 3 * kMs);
}

TEST(Skew, FollowsAClockThatWasSetThere)
{
    SkewEstimate skew = {};
    skew.Note(kSecond, kStart);
    skew.Note(-kSecond, kStart + 1);
    EXPECT_EQ(-kSecond, skew.Us()) << "at once in this direction";
    for (int i = 0; i <= 610; i++)
        skew.Note(5 * kSecond, kStart + i * kSecond);
    EXPECT_EQ(5 * kSecond, skew.Us()) << "after ten minutes in the other";
}

TEST(Skew, IsShiftedWithOurClock)
{
    SkewEstimate skew = {};
    skew.Shift(kSecond);
    EXPECT_FALSE(skew.Known());
    skew.Note(10, kStart);
    skew.Shift(kSecond);
    EXPECT_EQ(kSecond + 10, skew.Us());
}

// ---- percentiles

TEST(LagWindows, NothingIsZero)
{
    auto windows = std::make_unique<LagWindows>();
    LagSummary to[kLagWindows];
    windows->Summarize(kStart, to);
    for (const LagSummary &s : to)
        EXPECT_EQ(0, s.samples + s.p50_us + s.p99_us + s.max_us);
}

TEST(LagWindows, PercentilesAreWithinAnEighth)
{
    auto windows = std::make_unique<LagWindows>();
    std::mt19937_64 random(3);
    std::vector<int64_t> lags;
    int64_t now = kStart;
    for (int i = 0; i < 540; i++) { // within one window of a minute
        const auto lag = static_cast<int64_t>(std::exp(static_cast<double>(random() % 14000) / 1000) * 2000);
        lags.push_back(lag);
        windows->Note(lag, now);
        now += 100 * kMs;
    }
    std::sort(lags.begin(), lags.end());
    LagSummary to[kLagWindows];
    windows->Summarize(now, to);
    for (const LagSummary &s : to) {
        EXPECT_EQ(lags.size(), s.samples);
        EXPECT_NEAR(lags[269], s.p50_us, 0.125 * static_cast<double>(lags[269]));
        EXPECT_NEAR(lags[512], s.p95_us, 0.125 * static_cast<double>(lags[512]));
        EXPECT_NEAR(lags[534], s.p99_us, 0.125 * static_cast<double>(lags[534]));
        EXPECT_EQ(lags.back(), s.max_us);
    }
}

TEST(LagWindows, TheMedianOfTwoIsTheSmaller)
{
    auto windows = std::make_unique<LagWindows>();
    windows->Note(10 * kMs, kStart);
    windows->Note(kSecond, kStart);
    LagSummary to[kLagWindows];
    windows->Summarize(kStart, to);
    EXPECT_LT(to[0].p50_us, 12 * kMs);
    EXPECT_GT(to[0].p95_us, 800 * kMs);
}

TEST(LagWindows, EachForgetsInItsTime)
{
    auto windows = std::make_unique<LagWindows>();
    windows->Note(10 * kSecond, kStart);
    for (int64_t age = 0; age < 70 * kMinute; age += kSecond) {
        windows->Note(kMs, kStart + age);
        LagSummary to[kLagWindows];
        windows->Summarize(kStart + age, to);
        const bool remembered[] = {to[0].max_us > kSecond, to[1].max_us > kSecond, to[2].max_us > kSecond};
        EXPECT_TRUE(age < 50 * kSecond ? remembered[0] : age >= kMinute ? !remembered[0] : true) << age;
        EXPECT_TRUE(age < 290 * kSecond ? remembered[1] : age >= 5 * kMinute ? !remembered[1] : true) << age;
        EXPECT_TRUE(age < 55 * kMinute ? remembered[2] : age >= 60 * kMinute ? !remembered[2] : true) << age;
    }
}

TEST(LagWindows, NoPercentileIsAboveTheLargest)
{
    auto windows = std::make_unique<LagWindows>();
    LagSummary to[kLagWindows];
    windows->Note(0, kStart);
    windows->Summarize(kStart, to);
    EXPECT_EQ(0, to[0].p99_us);
    windows->Note(100 * 3600 * kSecond, kStart);
    windows->Summarize(kStart, to);
    EXPECT_EQ(100 * 3600 * kSecond, to[0].max_us);
    EXPECT_LE(to[0].p99_us, to[0].max_us);
    EXPECT_GT(to[0].p99_us, 3600 * kSecond);
}

TEST(LagWindows, AFullBucketStaysFull)
{
    auto windows = std::make_unique<LagWindows>();
    for (int i = 0; i < 200000; i++)
        windows->Note(5 * kMs, kStart);
    LagSummary to[kLagWindows];
    windows->Summarize(kStart, to);
    EXPECT_EQ(static_cast<uint32_t>(UINT16_MAX), to[0].samples);
}

// ---- silence

constexpr int64_t kBound = 2 * kSecond;
constexpr int64_t kSlack = 150 * kMs;
constexpr int64_t kLate = 100 * kMs;
constexpr SilenceBounds kBounds = {kSecond, kLate, kBound, kSlack};

void Look(SenderSilence *silence, int64_t now)
{
    silence->Note(silence->receiver, silence->end_lsn, silence->sent_us, silence->heard_us, kBound, now);
}

// A sender with heartbeats each second, heard until it stops.
SenderSilence Heard(int beats, int64_t *now)
{
    SenderSilence silence = {};
    *now = kStart;
    for (int i = 0; i < beats; i++) {
        silence.Note(7, 100 + static_cast<uint64_t>(i) * 40, *now - 1, *now, kBound, *now);
        *now += kSecond;
        Look(&silence, *now - kSlack / 2);
    }
    *now -= kSecond;
    return silence;
}

TEST(SenderSilence, OfASenderThatBeatsIsLag)
{
    int64_t now;
    SenderSilence silence = Heard(10, &now);
    Look(&silence, now + kSecond);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kSecond));
    Look(&silence, now + 3 * kSecond);
    EXPECT_NEAR(2.0 * kSecond, static_cast<double>(silence.LagUs(kBounds, now + 3 * kSecond)), kSlack)
        << "since the beat that did not come";
    // It is heard again.
    silence.Note(7, 10000, now + 4 * kSecond - 1, now + 4 * kSecond, kBound, now + 4 * kSecond);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + 4 * kSecond));
}

// A sample each 100 ms of a sender that says something each `gap`, for `seconds`.
void Listen(SenderSilence *silence, int64_t gap, int64_t seconds, int64_t *now)
{
    const int64_t end = *now + seconds * kSecond;
    for (; *now < end; *now += 100 * kMs) {
        const int64_t heard = *now - *now % gap;
        silence->Note(7, 1000 + static_cast<uint64_t>(heard / gap), heard - 1, heard, kBound, *now);
    }
}

TEST(SenderSilence, LongerThanUsualIsLag)
{
    int64_t now = kStart;
    SenderSilence silence = {};
    Listen(&silence, 10 * kMs, 20, &now); // busy
    const int64_t cut = silence.heard_us;
    for (; now < cut + kSecond; now += 100 * kMs) {
        Look(&silence, now);
        const int64_t lag = silence.LagUs(kBounds, now);
        if (now - cut > kSlack + 10 * kMs) {
            EXPECT_NEAR(static_cast<double>(now - cut), static_cast<double>(lag), 10.0 * kMs);
        }
    }
    // Before a beat is late it may only have become idle.
    for (; now < cut + kSecond + kLate; now += 100 * kMs) {
        Look(&silence, now);
        EXPECT_LE(silence.LagUs(kBounds, now), kSecond);
    }
    now = cut + kSecond + kLate + 1;
    Look(&silence, now);
    EXPECT_GT(silence.LagUs(kBounds, now), kSecond + kLate - kSlack);
    // It was only idle: its beats come each second. For some seconds that is remembered.
    Listen(&silence, kSecond, 2, &now);
    for (int i = 0; i < 100; i++) {
        Listen(&silence, kSecond, 1, &now);
        for (int64_t later = 0; later < kSecond; later += 100 * kMs)
            EXPECT_EQ(0, silence.LagUs(kBounds, silence.heard_us + later));
    }
    // And a cut then: what is missing is the next beat.
    EXPECT_NEAR(4.0 * kSecond, static_cast<double>(silence.LagUs(kBounds, silence.heard_us + 5 * kSecond)),
                100.0 * kMs);
    EXPECT_EQ(0, silence.LagUs({kSecond, kLate, kNoBeats, kSlack}, silence.heard_us + 5 * kSecond))
        << "no beats are expected";
}

// Seen once it was 150 ms: longer silences are taken for that for some seconds. What is missing is not
// younger for it.
TEST(SenderSilence, IsCountedFromTheMeanGapNotFromTheLongest)
{
    int64_t now = kStart + 5 * kMs;
    SenderSilence silence = {};
    Listen(&silence, 10 * kMs, 20, &now);
    Look(&silence, silence.heard_us + 150 * kMs);
    now += 200 * kMs;
    Listen(&silence, 10 * kMs, 1, &now);
    const int64_t cut = silence.heard_us;
    EXPECT_EQ(0, silence.LagUs(kBounds, cut + 300 * kMs));
    EXPECT_NEAR(500.0 * kMs, static_cast<double>(silence.LagUs(kBounds, cut + 500 * kMs)), 30.0 * kMs);
    EXPECT_EQ(kSecond, silence.LagUs(kBounds, cut + kSecond + kLate));
}

TEST(SenderSilence, WhatWasUnderWayInACutIsNotNews)
{
    int64_t now = kStart;
    SenderSilence silence = {};
    Listen(&silence, 10 * kMs, 20, &now);
    const int64_t cut = silence.heard_us;
    now = cut + 8 * kSecond;
    // It comes when the cut ends, and was sent when it began.
    silence.Note(7, silence.end_lsn + 40, cut + 10 * kMs, now, kBound, now);
    silence.NoteTransit(now - cut - 10 * kMs);
    EXPECT_EQ(8 * kSecond - 10 * kMs, silence.LagUs(kBounds, now));
    EXPECT_EQ(8 * kSecond + 90 * kMs, silence.LagUs(kBounds, now + 100 * kMs));
    SenderSilence other_clock = silence, dead = silence;
    // What is sent now.
    now += 200 * kMs;
    silence.Note(7, silence.end_lsn + 40, now - 1, now, kBound, now);
    silence.NoteTransit(1);
    EXPECT_EQ(0, silence.LagUs(kBounds, now));
    // Or nothing more comes.
    EXPECT_EQ(18 * kSecond - 10 * kMs, dead.LagUs(kBounds, cut + 18 * kSecond));
    dead.NoteTransit(8 * kSecond - 10 * kMs);
    EXPECT_EQ(18 * kSecond - 10 * kMs, dead.LagUs(kBounds, cut + 18 * kSecond));
    // Or nothing ever is new, because the sender's clock was set back, by an hour.
    now = cut + 8 * kSecond;
    for (int i = 0; i < 60; i++, now += 100 * kMs) {
        other_clock.Note(7, other_clock.end_lsn + 40, now - 3600 * kSecond, now, kBound, now);
        other_clock.NoteTransit(3600 * kSecond);
        EXPECT_LE(other_clock.LagUs(kBounds, now), 8 * kSecond);
    }
    EXPECT_EQ(0, other_clock.LagUs(kBounds, now));
}

TEST(SenderSilence, OfOneWithoutBeatsSaysNothingOfWhatWasUnderWay)
{
    int64_t now = kStart;
    SenderSilence silence = {};
    for (int i = 0; i < 10; i++, now += 3 * kSecond) {
        silence.Note(7, 1000 + static_cast<uint64_t>(i), now - 300 * kMs, now, kBound, now);
        silence.NoteTransit(299 * kMs);
        EXPECT_EQ(0, silence.LagUs(kBounds, now + kSecond));
    }
}

TEST(SenderSilence, OfALongCutIsNotTakenForUsual)
{
    int64_t now = kStart;
    SenderSilence silence = {};
    Listen(&silence, 10 * kMs, 20, &now);
    for (int i = 0; i < 100; i++, now += 100 * kMs)
        Look(&silence, now);
    Listen(&silence, 10 * kMs, 2, &now);
    EXPECT_GT(silence.LagUs(kBounds, now + kSecond), 900 * kMs);
}

TEST(SenderSilence, OfOneThatWasNotHeardToBeatIsNothing)
{
    int64_t now;
    SenderSilence silence = Heard(2, &now);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kMinute));
    silence = Heard(3, &now);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kMinute)) << "two beats after the first word";
    silence = Heard(4, &now);
    // The samples say that the gap is a little less than a second.
    EXPECT_EQ(kMinute - (kSecond - kSlack / 2), silence.LagUs(kBounds, now + kMinute));
}

TEST(SenderSilence, ThatEndsWithoutNewsIsOfASenderWithoutBeats)
{
    int64_t now;
    SenderSilence silence = Heard(10, &now); // it was busy
    now += 30 * kSecond;
    EXPECT_GT(silence.LagUs(kBounds, now), 0);
    silence.Note(7, silence.end_lsn, now - 1, now, kBound, now);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kMinute));
    for (int i = 0; i < 10; i++, now += kSecond) // busy again
        silence.Note(7, silence.end_lsn + 40, now - 1, now, kBound, now);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kMinute)) << "it is remembered on this connection";
    for (int i = 0; i < 10; i++, now += kSecond)
        silence.Note(8, silence.end_lsn + 40, now - 1, now, kBound, now);
    EXPECT_GT(silence.LagUs(kBounds, now + kMinute), 0) << "not on the next";
}

TEST(SenderSilence, AfterACutItMustBeHeardToBeatAgain)
{
    int64_t now;
    SenderSilence silence = Heard(10, &now);
    now += 30 * kSecond;
    silence.Note(7, silence.end_lsn + 40, now - 1, now, kBound, now);
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kMinute)) << "it may have had nothing to say until then";
    for (int i = 0; i < 3; i++) {
        now += kSecond;
        silence.Note(7, silence.end_lsn + 40, now - 1, now, kBound, now);
    }
    EXPECT_GT(silence.LagUs(kBounds, now + kMinute), kMinute - kBound);
}

TEST(SenderSilence, WithoutAConnectionIsLagAtOnce)
{
    int64_t now;
    SenderSilence silence = Heard(10, &now);
    silence.Note(0, 0, 0, 0, kBound, now + 100 * kMs);
    EXPECT_EQ(100 * kMs, silence.LagUs(kBounds, now + 100 * kMs));
    EXPECT_TRUE(silence.IsDeaf(kBound, now + 100 * kMs));
    // Connected again, nothing said yet: the walreceiver has put its own time into both.
    now += 10 * kSecond;
    silence.Note(9, 0, now, now, kBound, now);
    EXPECT_EQ(11 * kSecond, silence.LagUs(kBounds, now + kSecond));
    EXPECT_EQ(0, silence.LagUs(kBounds, now + kBound + 1)) << "it has nothing to say";
    EXPECT_FALSE(silence.IsDeaf(kBound, now + kBound + 1));
}

TEST(SenderSilence, NothingEverHeardIsNoSilence)
{
    SenderSilence silence = {};
    silence.Note(0, 0, 0, 0, kBound, kStart);
    EXPECT_EQ(0, silence.LagUs(kBounds, kStart + kMinute));
    EXPECT_TRUE(silence.IsDeaf(kBound, kStart + kMinute));
}

// ---- names

ReplicaRow Named(const char *name)
{
    ReplicaRow row = {};
    snprintf(row.application_name, sizeof(row.application_name), "%s", name);
    SplitName(row.application_name, row.region, row.node);
    return row;
}

TEST(ReplicaName, RegionAndNode)
{
    EXPECT_STREQ("eu", Named("eu/db1").region);
    EXPECT_STREQ("db1", Named("eu/db1").node);
    EXPECT_STREQ("", Named("db1").region);
    EXPECT_STREQ("db1", Named("db1").node);
    EXPECT_STREQ("", Named("/db1").region);
    EXPECT_STREQ("a", Named("a/b/c").region);
    EXPECT_STREQ("b/c", Named("a/b/c").node);
    EXPECT_STREQ("", Named("eu/").node);
    EXPECT_STREQ("", Named("").node);
    const std::string longest(kReplicaNameSize - 1, '/');
    EXPECT_EQ(longest.size() - 1, strlen(Named(longest.c_str()).node));
}

TEST(ReplicaName, Patterns)
{
    EXPECT_TRUE(NameIsListed("*", ""));
    EXPECT_TRUE(NameIsListed("*", "anything"));
    EXPECT_FALSE(NameIsListed("", "a"));
    EXPECT_FALSE(NameIsListed(" , ,", "a"));
    EXPECT_TRUE(NameIsListed("us/x , eu/* ", "eu/1"));
    EXPECT_TRUE(NameIsListed("us/x,eu/*", "us/x"));
    EXPECT_FALSE(NameIsListed("us/x,eu/*", "us/xx"));
    EXPECT_TRUE(NameIsListed("a?", "ab"));
    const std::string many = std::string(1000, 'x') + ",b";
    EXPECT_TRUE(NameIsListed(many.c_str(), "b"));
    EXPECT_FALSE(PatternsAreShort(many.c_str()));
    EXPECT_TRUE(PatternsAreShort((std::string(kMaxPatternSize - 1, 'x') + ",b").c_str()));
    EXPECT_TRUE(PatternsAreShort(""));
    EXPECT_FALSE(PatternsAreShort(std::string(kMaxPatternSize, 'x').c_str()));
    EXPECT_FALSE(NameIsListed(std::string(kMaxPatternSize, '*').c_str(), "a"));
    EXPECT_TRUE(NameIsListed(std::string(kMaxPatternSize - 1, '*').c_str(), "a"));
}

// ---- rows

struct Rows : testing::Test {
    std::unique_ptr<ReplicasShared> replicas = std::make_unique<ReplicasShared>();
    Address here = {AddressFamily::kV4, {10, 0, 0, 1}};
    Address there = {AddressFamily::kV4, {10, 0, 0, 2}};

    ReplicaRow *Connect(const char *name, const Address &address, int32_t pid, int64_t at)
    {
        ReplicaRow *row = RowFor(replicas.get(), name, address);
        if (row == nullptr)
            return nullptr;
        row->pid = pid;
        row->connected_us = row->heard_us = at;
        return row;
    }
    void Leave(ReplicaRow *row, int64_t at)
    {
        row->pid = 0;
        row->connected_us = at;
    }
};

TEST_F(Rows, AStandbyComesBackToItsRow)
{
    ReplicaRow *a = Connect("a", here, 1, 1);
    ReplicaRow *b = Connect("a", there, 2, 2);
    ASSERT_NE(a, b) << "another address is another standby";
    EXPECT_NE(a->serial, b->serial);
    const uint32_t serial = a->serial;
    Leave(a, 3);
    EXPECT_EQ(a, Connect("a", here, 3, 4));
    EXPECT_EQ(serial, a->serial);
    EXPECT_NE(a, Connect("a", here, 4, 5)) << "one that is connected keeps its row";
}

TEST_F(Rows, AFreeRowIsTakenBeforeOneThatIsRemembered)
{
    ReplicaRow *a = Connect("a", here, 1, 10);
    Leave(a, -5);
    EXPECT_NE(a, Connect("b", here, 2, 20));
    EXPECT_STREQ("a", a->application_name);
}

TEST_F(Rows, WhoIsLongestGoneMakesRoom)
{
    std::vector<ReplicaRow *> rows;
    for (uint32_t i = 0; i < kMaxReplicas; i++)
        rows.push_back(Connect(std::to_string(i).c_str(), here, 100 + static_cast<int32_t>(i), 1));
    EXPECT_EQ(nullptr, Connect("new", here, 1, 2)) << "all are connected";
    Leave(rows[7], 20);
    Leave(rows[9], 10);
    replicas->memory.rows[9].windows.Note(kSecond, kStart);
    const uint32_t serial = rows[9]->serial;
    ReplicaRow *row = Connect("new", here, 1, 30);
    EXPECT_EQ(rows[9], row);
    EXPECT_NE(serial, row->serial);
    LagSummary to[kLagWindows];
    replicas->memory.rows[9].windows.Summarize(kStart, to);
    EXPECT_EQ(0u, to[0].samples) << "what was remembered is not of this one";
}

TEST_F(Rows, AnOldConnectionOfOneThatIsBackLeavesNoRow)
{
    ReplicaRow *cut = Connect("a", here, 1, 10);
    ReplicaRow *back = Connect("a", here, 2, 50); // its walsender has not noticed yet
    ASSERT_NE(cut, back);
    Leave(cut, 70);
    EXPECT_TRUE(IsReplaced(*replicas, *cut));
    // Two that were there together are two.
    ReplicaRow *c = Connect("c", here, 3, 10);
    ReplicaRow *d = Connect("c", here, 4, 20);
    c->heard_us = 60;
    Leave(c, 70);
    EXPECT_FALSE(IsReplaced(*replicas, *c));
    EXPECT_FALSE(IsReplaced(*replicas, *d));
}

TEST(SampleRing, KeepsTheLast)
{
    auto ring = std::make_unique<SampleRing>();
    EXPECT_EQ(0u, ring->Count());
    for (int64_t i = 0; i < kLagSamples + 10; i++)
        ring->Push({i, 0, 0, 0, 0, 0});
    EXPECT_EQ(kLagSamples, ring->Count());
    EXPECT_EQ(10, ring->At(0).at_us);
    EXPECT_EQ(kLagSamples + 9, ring->At(kLagSamples - 1).at_us);
}

TEST(ReplicasShared, OldNumbersAreNotFresh)
{
    auto replicas = std::make_unique<ReplicasShared>();
    EXPECT_FALSE(IsFresh(*replicas, kStart)) << "nobody has looked";
    replicas->sampled_us.store(kStart);
    replicas->fresh_us.store(kMinute + kLateUs);
    EXPECT_TRUE(IsFresh(*replicas, kStart + kMinute + kLateUs));
    EXPECT_FALSE(IsFresh(*replicas, kStart + kMinute + kLateUs + 1));
}

} // namespace
} // namespace weir
