#include "admission/storm_log.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;
constexpr int64_t kTick = 5000; // the launcher's

class StormLogTest : public testing::Test
{
  protected:
    static Address V4(uint8_t last) { return {AddressFamily::kV4, {10, 0, 0, last}}; }

    void Arrive(uint32_t count, const char *role = "web", uint8_t address = 1,
                const char *application = "app")
    {
        for (uint32_t i = 0; i < count; i++)
            log_->Arrive(role, V4(address), application);
        waiting_ += count;
    }
    void Admit(uint32_t count)
    {
        waiting_ -= count;
        admitted_ += count;
    }
    void Leave(uint32_t count)
    {
        waiting_ -= count;
        left_ += count;
    }

    StormEvent Update(int64_t oldest_wait_us = 0)
    {
        return log_->Update(now_, waiting_, oldest_wait_us, admitted_, left_);
    }
    StormEvent Tick(int64_t oldest_wait_us = 0)
    {
        now_ += kTick;
        return Update(oldest_wait_us);
    }
    // Returns the last event that there was.
    StormEvent For(int64_t us)
    {
        StormEvent event = StormEvent::kNone;
        for (const int64_t until = now_ + us; now_ < until;) {
            const StormEvent one = Tick();
            if (one != StormEvent::kNone)
                event = one;
        }
        return event;
    }
    // From beginning to end: `count` come at once, and are served at the next tick.
    void Storm(uint32_t count, const char *role = "web")
    {
        Arrive(count, role);
        ASSERT_EQ(Tick(), StormEvent::kBegan);
        Admit(count);
        ASSERT_EQ(For(kStormQuietUs + 2 * kTick), StormEvent::kEnded);
    }

    std::vector<StormRecord> Copy(uint32_t capacity = kMostStorms + 1) const
    {
        std::vector<StormRecord> records(capacity + 1);
        memset(static_cast<void *>(records.data()), 0x55, records.size() * sizeof(StormRecord));
        const uint32_t count = log_->Copy(records.data(), capacity);
        EXPECT_LE(count, capacity);
        EXPECT_EQ(records[count].peak_waiting, 0x55555555u) << "writes past what it returns";
        records.resize(count);
        return records;
    }
    StormRecord Newest() const
    {
        const std::vector<StormRecord> records = Copy();
        EXPECT_FALSE(records.empty());
        return records.empty() ? StormRecord{} : records[0];
    }

    std::unique_ptr<StormLog> log_ = std::make_unique<StormLog>();
    int64_t now_ = 800'000'000 * kSecond; // a TimestampTz of 2025
    uint32_t waiting_ = 0;
    uint64_t admitted_ = 0;
    uint64_t left_ = 0;
};

TEST_F(StormLogTest, ZeroesAreAnEmptyLog)
{
    EXPECT_TRUE(Copy().empty());
    EXPECT_EQ(For(20 * kSecond), StormEvent::kNone);
    EXPECT_TRUE(Copy().empty());
}

TEST_F(StormLogTest, AFewWhoWaitAreNoStorm)
{
    for (int i = 0; i < 100; i++) {
        Arrive(kStormWaiters - 1);
        EXPECT_EQ(For(kSecond), StormEvent::kNone);
        Admit(kStormWaiters - 1);
        EXPECT_EQ(For(kSecond), StormEvent::kNone);
    }
    EXPECT_TRUE(Copy().empty());
}

TEST_F(StormLogTest, OneStormFromBeginningToEnd)
{
    For(kSecond);
    Arrive(300, "web", 1, "rails");
    EXPECT_EQ(Tick(kTick), StormEvent::kBegan);
    const int64_t began = now_;
    EXPECT_EQ(Newest().began_us, began);
    EXPECT_EQ(Newest().ended_us, 0);
    EXPECT_EQ(Newest().peak_waiting, 300u);

    Arrive(50, "batch", 2, "");
    EXPECT_EQ(Tick(), StormEvent::kNone);
    Admit(200);
    EXPECT_EQ(Tick(2 * kSecond), StormEvent::kNone);
    Leave(50);
    EXPECT_EQ(Tick(kSecond), StormEvent::kNone);
    Admit(100);
    EXPECT_EQ(Tick(), StormEvent::kNone);
    const int64_t ended = now_;
    EXPECT_EQ(Newest().ended_us, 0) << "somebody may yet come";
    EXPECT_EQ(For(kStormQuietUs - kTick), StormEvent::kNone);
    EXPECT_EQ(Tick(), StormEvent::kEnded);
    EXPECT_EQ(For(60 * kSecond), StormEvent::kNone);

    ASSERT_EQ(Copy().size(), 1u);
    const StormRecord storm = Newest();
    EXPECT_EQ(storm.began_us, began);
    EXPECT_EQ(storm.ended_us, ended) << "not five seconds later";
    EXPECT_EQ(storm.peak_waiting, 350u);
    EXPECT_EQ(storm.longest_wait_us, 2 * kSecond);
    EXPECT_EQ(storm.arrivals, 350u);
    EXPECT_EQ(storm.admitted, 300u);
    EXPECT_EQ(storm.left, 50u);
    EXPECT_STREQ(storm.roles[0].name, "web");
    EXPECT_EQ(storm.roles[0].count, 300u);
    EXPECT_STREQ(storm.roles[1].name, "batch");
    EXPECT_EQ(storm.roles[1].count, 50u);
    EXPECT_EQ(storm.roles[2].count, 0u);
    EXPECT_STREQ(storm.roles[2].name, "");
    EXPECT_STREQ(storm.addresses[0].name, "10.0.0.1");
    EXPECT_STREQ(storm.addresses[1].name, "10.0.0.2");
    EXPECT_STREQ(storm.applications[0].name, "rails");
    EXPECT_STREQ(storm.applications[1].name, "");
    EXPECT_EQ(storm.applications[1].count, 50u);
}

TEST_F(StormLogTest, ItBeginsWithTheTenthWhoWaits)
{
    Arrive(kStormWaiters - 1);
    EXPECT_EQ(Tick(), StormEvent::kNone);
    Arrive(1);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(Tick(), StormEvent::kNone) << "once";
}

// Where few may wait the others are refused, and it is a storm all the same.
TEST_F(StormLogTest, ItBeginsWithTheTenthWhoWaitsOrIsRefused)
{
    Arrive(3);
    for (int i = 0; i < 6; i++) {
        Arrive(1, "refused");
        Leave(1);
        EXPECT_EQ(Tick(), StormEvent::kNone);
    }
    Arrive(1, "refused");
    Leave(1);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    const StormRecord storm = Newest();
    EXPECT_EQ(storm.peak_waiting, 3u);
    EXPECT_EQ(storm.arrivals, 10u);
    EXPECT_EQ(storm.left, 7u);
    EXPECT_STREQ(storm.roles[0].name, "refused");
    EXPECT_EQ(For(kSecond), StormEvent::kNone) << "once";
    Admit(3);
    EXPECT_EQ(For(kStormQuietUs + 2 * kTick), StormEvent::kEnded);
}

TEST_F(StormLogTest, ItBeginsAlsoWhereNobodyMayWait)
{
    for (int i = 0; i < 10; i++) {
        Arrive(1);
        Leave(1);
    }
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(Newest().peak_waiting, 0u);
    EXPECT_EQ(For(kStormQuietUs + 2 * kTick), StormEvent::kEnded);
}

TEST_F(StormLogTest, OneRefusedNowAndThenIsNoStorm)
{
    for (int i = 0; i < 1800; i++) {
        Arrive(1);
        Leave(1);
        ASSERT_EQ(For(2 * kSecond), StormEvent::kNone);
    }
}

// They built the queue, also those who are through by now.
TEST_F(StormLogTest, WhoCameBeforeItWasRecognisedIsCounted)
{
    Arrive(9, "early");
    Tick();
    Admit(9);
    For(kSecond);
    Arrive(9, "early");
    Tick();
    Arrive(8);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    const StormRecord storm = Newest();
    EXPECT_EQ(storm.began_us, now_) << "a few who wait are no storm";
    EXPECT_EQ(storm.arrivals, 26u);
    EXPECT_EQ(storm.admitted, 9u);
    EXPECT_STREQ(storm.roles[0].name, "early");
    EXPECT_EQ(storm.roles[0].count, 18u);
}

TEST_F(StormLogTest, WhoCameLongBeforeIsForgotten)
{
    Arrive(9, "early");
    Tick();
    Admit(9);
    EXPECT_EQ(For(kStormQuietUs + 2 * kTick), StormEvent::kNone);
    Arrive(12);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(Newest().arrivals, 12u);
    EXPECT_EQ(Newest().admitted, 0u);
    EXPECT_STREQ(Newest().roles[0].name, "web");
    EXPECT_EQ(Newest().roles[1].count, 0u);
}

TEST_F(StormLogTest, WhoWaitsWithoutHavingArrivedIsAStormAllTheSame)
{
    waiting_ = 20;
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(For(20 * kSecond), StormEvent::kNone);
    EXPECT_EQ(Newest().peak_waiting, 20u);
    EXPECT_EQ(Newest().arrivals, 0u);
}

// The launcher may have slept, or been away: what came meanwhile is the run-up of what it finds.
TEST_F(StormLogTest, TheFirstUpdateFindsAStorm)
{
    Arrive(40);
    Admit(5);
    EXPECT_EQ(Update(3 * kSecond), StormEvent::kBegan);
    EXPECT_EQ(Newest().arrivals, 40u);
    EXPECT_EQ(Newest().peak_waiting, 35u);
    EXPECT_EQ(Newest().longest_wait_us, 3 * kSecond);
    EXPECT_STREQ(Newest().roles[0].name, "web");
}

TEST_F(StormLogTest, WhatCameWhileTheLauncherSleptIsARunUp)
{
    For(kSecond);
    Arrive(5);
    now_ += 3600 * kSecond;
    EXPECT_EQ(Update(), StormEvent::kNone);
    Arrive(5);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(Newest().roles[0].count, 10u);
}

// Somebody always waits, for an hour; then comes the storm, and it is not an hour's.
TEST_F(StormLogTest, ATrickleIsNoRunUp)
{
    Arrive(2, "trickle");
    for (int i = 0; i < 3600; i++) {
        Arrive(1, "trickle");
        Admit(1);
        ASSERT_EQ(For(kSecond), StormEvent::kNone);
    }
    Arrive(100);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    const StormRecord storm = Newest();
    EXPECT_STREQ(storm.roles[0].name, "web");
    EXPECT_LE(storm.arrivals, 100u + 2 + 11);
    EXPECT_LE(storm.admitted, 11u);
    EXPECT_STREQ(storm.roles[1].name, "trickle");
    EXPECT_GE(storm.roles[1].count, 5u) << "the last seconds";
    EXPECT_GE(storm.arrivals, storm.admitted + storm.left + waiting_) << "nobody is served who did not come";
}

// In the five seconds before the end is known, others log in without a wait.
TEST_F(StormLogTest, WhoDidNotWaitIsNotTheStorms)
{
    Arrive(20);
    Tick();
    Admit(20);
    Tick();
    for (int i = 0; i < 1000; i++) {
        admitted_ += 7;
        Tick();
    }
    EXPECT_EQ(Copy().size(), 1u);
    EXPECT_NE(Newest().ended_us, 0);
    EXPECT_EQ(Newest().admitted, 20u);
}

TEST_F(StormLogTest, WhoDidNotWaitBetweenTwoStormsIsNoStorms)
{
    Arrive(20);
    Tick();
    Admit(20);
    while (Tick() != StormEvent::kEnded) {
    }
    admitted_ += 7;
    left_ += 3;
    Tick();
    Arrive(12);
    EXPECT_EQ(Tick(), StormEvent::kBegan);
    EXPECT_EQ(Newest().admitted, 0u);
    EXPECT_EQ(Newest().left, 0u);
    EXPECT_EQ(Newest().arrivals, 12u);
}

// One whose departure is counted a moment after it has left the queue.
TEST_F(StormLogTest, WhoIsCountedLateIsStillTheStorms)
{
    Arrive(20);
    Tick();
    waiting_ = 0;
    Tick();
    Tick();
    left_ += 20;
    For(kStormQuietUs);
    EXPECT_NE(Newest().ended_us, 0);
    EXPECT_EQ(Newest().left, 20u);
}

TEST_F(StormLogTest, AWaitBetweenTwoUpdatesKeepsItGoing)
{
    Arrive(20);
    Tick();
    Admit(20);
    for (int i = 0; i < 4; i++) {
        EXPECT_EQ(For(4 * kSecond), StormEvent::kNone);
        Arrive(1);
        Admit(1); // nobody saw it wait
    }
    Tick();
    const int64_t last = now_;
    EXPECT_EQ(Newest().ended_us, 0);
    EXPECT_EQ(For(kStormQuietUs), StormEvent::kEnded);
    EXPECT_EQ(Newest().ended_us, last);
    EXPECT_EQ(Newest().arrivals, 24u);
    EXPECT_EQ(Newest().admitted, 24u);
}

TEST_F(StormLogTest, APauseShorterThanQuietIsTheSameStorm)
{
    Arrive(20);
    Tick();
    Admit(20);
    EXPECT_EQ(For(kStormQuietUs - kTick), StormEvent::kNone);
    Arrive(200);
    EXPECT_EQ(Tick(), StormEvent::kNone);
    EXPECT_EQ(Newest().peak_waiting, 200u);
    EXPECT_EQ(Copy().size(), 1u);
}

TEST_F(StormLogTest, TheNextStormBeginsAtNothing)
{
    Arrive(500, "first", 77, "first");
    Tick(9 * kSecond);
    Leave(500);
    For(kStormQuietUs + kTick);
    Storm(10, "second");
    const StormRecord storm = Newest();
    EXPECT_EQ(storm.peak_waiting, 10u);
    EXPECT_EQ(storm.longest_wait_us, 0);
    EXPECT_EQ(storm.arrivals, 10u);
    EXPECT_EQ(storm.admitted, 10u);
    EXPECT_EQ(storm.left, 0u);
    EXPECT_STREQ(storm.roles[0].name, "second");
    EXPECT_STREQ(storm.addresses[0].name, "10.0.0.1");
    EXPECT_STREQ(storm.applications[0].name, "app");
    EXPECT_EQ(storm.roles[1].count + storm.addresses[1].count + storm.applications[1].count, 0u);
    ASSERT_EQ(Copy().size(), 2u);
    EXPECT_STREQ(Copy()[1].roles[0].name, "first");
}

// Served while a thousand refused ones are told to come back: they had to wait, too.
TEST_F(StormLogTest, RefusedOnesArriveAndLeave)
{
    Arrive(50);
    Tick();
    for (int i = 0; i < 1000; i++) {
        Arrive(1, "refused");
        Leave(1);
        Tick();
    }
    EXPECT_EQ(Newest().arrivals, 1050u);
    EXPECT_EQ(Newest().left, 1000u);
    EXPECT_EQ(Newest().peak_waiting, 50u);
}

TEST_F(StormLogTest, TheTopThreeOfMany)
{
    for (uint8_t i = 0; i < 200; i++) {
        Arrive(1, ("role" + std::to_string(i)).c_str(), i, nullptr);
        Arrive(2, "often", 250, nullptr);
    }
    Tick();
    const StormRecord storm = Newest();
    EXPECT_STREQ(storm.roles[0].name, "often");
    EXPECT_EQ(storm.roles[0].count, 400u);
    EXPECT_EQ(storm.roles[1].count, 1u) << "what is certain";
    EXPECT_STREQ(storm.addresses[0].name, "10.0.0.250");
    EXPECT_STREQ(storm.applications[0].name, "");
    EXPECT_EQ(storm.applications[0].count, 600u);
}

TEST_F(StormLogTest, AddressesOfEveryKind)
{
    Address v6 = {AddressFamily::kV6, {0x20, 0x01, 0x0d, 0xb8}};
    v6.bytes[15] = 1;
    for (int i = 0; i < 3; i++)
        log_->Arrive("r", v6, "a");
    for (int i = 0; i < 2; i++)
        log_->Arrive("r", {AddressFamily::kLocal, {}}, "a");
    log_->Arrive(nullptr, {}, nullptr);
    waiting_ = 12;
    Tick();
    EXPECT_STREQ(Newest().addresses[0].name, "2001:db8::1");
    EXPECT_STREQ(Newest().addresses[1].name, "local");
    EXPECT_STREQ(Newest().addresses[2].name, "unknown");
}

// ---- The ring ----

TEST_F(StormLogTest, NewestFirstAndNoMoreThanAHundred)
{
    for (uint32_t i = 0; i < kMostStorms + 30; i++)
        Storm(kStormWaiters + i);
    EXPECT_EQ(Copy().size(), kMostStorms);
    Arrive(7777);
    Tick();
    const std::vector<StormRecord> storms = Copy();
    ASSERT_EQ(storms.size(), kMostStorms + 1);
    EXPECT_EQ(storms[0].ended_us, 0);
    EXPECT_EQ(storms[0].peak_waiting, 7777u);
    for (uint32_t i = 1; i <= kMostStorms; i++) {
        EXPECT_EQ(storms[i].peak_waiting, kStormWaiters + kMostStorms + 30 - i);
        EXPECT_GT(storms[i].ended_us, storms[i].began_us);
        EXPECT_LT(storms[i].began_us, storms[i - 1].began_us);
    }
}

TEST_F(StormLogTest, CopyFillsWhatItIsGiven)
{
    for (uint32_t i = 0; i < 5; i++)
        Storm(kStormWaiters + i);
    EXPECT_EQ(Copy(0).size(), 0u);
    EXPECT_EQ(Copy(1).size(), 1u);
    EXPECT_EQ(Copy(3).back().peak_waiting, kStormWaiters + 2);
    Arrive(99);
    Tick();
    EXPECT_EQ(Copy(0).size(), 0u);
    EXPECT_EQ(Copy(1)[0].peak_waiting, 99u);
    EXPECT_EQ(Copy(2)[1].peak_waiting, kStormWaiters + 4);
}

// ---- Counters that are reset, and the clock ----

TEST_F(StormLogTest, CountersThatAreResetDuringAStorm)
{
    admitted_ = 1000000;
    left_ = 5000;
    For(kSecond);
    Arrive(100);
    Tick();
    Admit(30);
    Leave(10);
    Tick();
    admitted_ = 0;
    left_ = 0;
    Tick();
    Admit(20);
    Leave(5);
    Tick();
    EXPECT_EQ(Newest().admitted, 50u);
    EXPECT_EQ(Newest().left, 15u);
}

// A class is dropped, and what it counted with it: the rest must not count a second time.
TEST_F(StormLogTest, ACounterThatFallsALittleAddsNothing)
{
    admitted_ = 1000000;
    For(kSecond);
    Arrive(100);
    Tick();
    admitted_ -= 500;
    Tick();
    EXPECT_EQ(Newest().admitted, 0u);
}

TEST_F(StormLogTest, AStormKeepsItsLengthWhenTheClockIsSetBack)
{
    Arrive(100);
    Tick();
    For(10 * kSecond);
    now_ -= 3600 * kSecond;
    For(10 * kSecond);
    Admit(100);
    Tick();
    const int64_t ended = now_;
    EXPECT_EQ(For(kStormQuietUs), StormEvent::kEnded) << "five seconds, not an hour";
    EXPECT_EQ(Newest().ended_us, ended);
    EXPECT_NEAR(static_cast<double>(Newest().ended_us - Newest().began_us), 20e6, 2 * kTick);
}

TEST_F(StormLogTest, AQuietTimeEndsWhenTheClockIsSetBack)
{
    Arrive(100);
    Tick();
    Admit(100);
    Tick();
    now_ -= 3600 * kSecond;
    EXPECT_EQ(For(kStormQuietUs + kTick), StormEvent::kEnded);
    EXPECT_GT(Newest().ended_us, Newest().began_us);
}

TEST_F(StormLogTest, ATrickleIsForgottenAlsoWhenTheClockIsSetBack)
{
    Arrive(2, "trickle");
    Tick();
    now_ -= 3600 * kSecond;
    For(kStormRunUpUs + 2 * kTick);
    Arrive(20);
    Tick();
    EXPECT_EQ(Newest().arrivals, 22u);
    EXPECT_EQ(Newest().roles[1].count, 0u);
}

TEST_F(StormLogTest, AClockSetForwardDoesNotEndAStormThatGoesOn)
{
    Arrive(100);
    Tick();
    now_ += 3600 * kSecond;
    EXPECT_EQ(Tick(), StormEvent::kNone);
    EXPECT_EQ(Copy().size(), 1u);
    EXPECT_EQ(Newest().ended_us, 0);
}

// A machine without a battery for its clock begins in 1970, which is negative here.
TEST_F(StormLogTest, TimesBefore2000AreTimes)
{
    now_ = -30 * 365 * 86400 * kSecond;
    Storm(20);
    EXPECT_LT(Newest().began_us, Newest().ended_us);
    EXPECT_LT(Newest().ended_us, now_);
}

TEST_F(StormLogTest, ANegativeWaitIsNone)
{
    Arrive(20);
    Tick(-kSecond);
    EXPECT_EQ(Newest().longest_wait_us, 0);
}

} // namespace
} // namespace weir
