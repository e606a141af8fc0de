// Rates: the cell rate algorithm itself, and a gate that has some.

#include "admission/gate.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;
constexpr int64_t kStart = 800000000 * kSecond;

// How many come through in that time, if one asks every `step_us`.
int Through(Pace *pace, int64_t from_us, int64_t for_us, int64_t step_us)
{
    int count = 0;
    for (int64_t at = from_us; at < from_us + for_us; at += step_us) {
        while (pace->IsDue(at)) {
            pace->Charge(at);
            count++;
            if (!pace->Limits())
                return -1;
        }
    }
    return count;
}

TEST(Pace, WithoutARateEverybodyIsDue)
{
    Pace pace = {};
    EXPECT_FALSE(pace.Limits());
    EXPECT_TRUE(pace.IsDue(kStart));
    pace.Charge(kStart);
    EXPECT_TRUE(pace.IsDue(kStart));
}

TEST(Pace, LetsThroughTheRateHoweverRarelyOneAsks)
{
    for (const int64_t step_us : {1000, 5000, 50000}) {
        for (const double rate : {0.5, 3.0, 25.0, 400.0, 20000.0}) {
            for (const double slack : {0.05, 0.1, 0.2}) {
                Pace pace = {};
                pace.Set(rate, 1 + static_cast<uint32_t>(rate * slack));
                const int first = Through(&pace, kStart, kSecond, step_us);
                EXPECT_LE(first, rate * (1 + slack) + 1.5) << rate << " asked every " << step_us;
                const int count = Through(&pace, kStart + kSecond, 20 * kSecond, step_us);
                EXPECT_NEAR(count, rate * 20, rate * 20 * 0.01 + 1) << rate << " asked every " << step_us;
            }
        }
    }
}

TEST(Pace, TheBurstComesAtOnceAndIsSavedUpOnce)
{
    Pace pace = {};
    pace.Set(10, 30);
    EXPECT_EQ(Through(&pace, kStart, 1, 1), 30);
    EXPECT_NEAR(Through(&pace, kStart + 1, 10 * kSecond, 1000), 99, 1); // a bunch is about to come
    EXPECT_EQ(Through(&pace, kStart + 3600 * kSecond, 1, 1), 30);
}

TEST(Pace, WithoutABurstATenthOfASecondsWorthComesAtOnce)
{
    Pace pace = {};
    pace.Set(1000, 0);
    EXPECT_NEAR(Through(&pace, kStart, 1, 1), 100, 1);
}

TEST(Pace, WhoWaitsComesInBunches)
{
    Pace pace = {};
    pace.Set(40, 9); // 200 ms of slack, of which 50 are for a late launcher
    Through(&pace, kStart, kSecond, 1000);
    int bunches = 0;
    int largest = 0;
    for (int64_t at = kStart + kSecond; at < kStart + 21 * kSecond; at += 5000) {
        const int count = Through(&pace, at, 1, 1);
        bunches += count > 0;
        largest = count > largest ? count : largest;
    }
    EXPECT_NEAR(bunches, 20 / 0.15, 20);
    EXPECT_NEAR(largest, 6, 1);
}

TEST(Pace, AClockSetBackDoesNotLockTheDoor)
{
    Pace pace = {};
    pace.Set(10, 1);
    Through(&pace, kStart, kSecond, 1000);
    const int64_t yesterday = kStart - 86400 * kSecond;
    EXPECT_TRUE(pace.IsDue(yesterday));
    EXPECT_NEAR(Through(&pace, yesterday, 10 * kSecond, 1000), 100, 2);
}

TEST(Pace, AFasterRateNeedNotWaitForTheSlowOnesTurn)
{
    Pace pace = {};
    pace.Set(0.01, 1); // one in 100 s
    Through(&pace, kStart, 1, 1);
    EXPECT_FALSE(pace.IsDue(kStart + kSecond));
    pace.Set(100, 1);
    EXPECT_TRUE(pace.IsDue(kStart + kSecond));
}

class PacedGateTest : public ::testing::Test
{
  protected:
    static constexpr uint32_t kTickets = 64;

    void SetUp() override
    {
        gate_.Init(shared_.get(), tickets_.get(), kTickets);
        gate_.shared().enforcing.store(1);
    }

    Admission Enqueue(uint32_t id, uint32_t class_id, int64_t now)
    {
        WakeList wake;
        return gate_.Enqueue(id, class_id, now, &wake);
    }

    uint32_t Dispatch(int64_t now)
    {
        WakeList wake;
        gate_.Dispatch(now, &wake);
        return wake.count;
    }

    uint32_t Configure(uint32_t rate)
    {
        ClassSpecs specs = {};
        specs.count = 1;
        std::strcpy(specs.specs[0].name, "slow");
        specs.specs[0].weight = 1;
        specs.specs[0].startup_rate = rate;
        specs.specs[0].startup_burst = 1;
        gate_.Configure(specs);
        return gate_.FindClass("slow");
    }

    std::unique_ptr<GateShared> shared_ = std::make_unique<GateShared>();
    std::unique_ptr<Ticket[]> tickets_ = std::make_unique<Ticket[]>(kTickets);
    Gate gate_;
};

TEST_F(PacedGateTest, TheGatesRateHoldsForAllAndClosesTheFastPath)
{
    gate_.shared().pace.Set(2, 1);
    EXPECT_FALSE(gate_.TryAcquire(0, kDefaultClass, kStart));
    EXPECT_EQ(Enqueue(0, kDefaultClass, kStart), Admission::kGranted);
    EXPECT_EQ(Enqueue(1, kDefaultClass, kStart), Admission::kQueued);
    EXPECT_EQ(Enqueue(2, kDefaultClass, kStart), Admission::kQueued);
    EXPECT_EQ(Dispatch(kStart + kSecond / 4), 0u);
    EXPECT_EQ(Dispatch(kStart + kSecond / 2), 1u);
    EXPECT_EQ(Dispatch(kStart + kSecond / 2 + 1), 0u);
    EXPECT_EQ(Dispatch(kStart + kSecond), 1u);
}

TEST_F(PacedGateTest, AClassesRateHoldsBackThatClassAlone)
{
    const uint32_t slow = Configure(1);
    EXPECT_EQ(Enqueue(0, slow, kStart), Admission::kGranted);
    EXPECT_EQ(Enqueue(1, slow, kStart), Admission::kQueued);
    EXPECT_EQ(Enqueue(2, kDefaultClass, kStart), Admission::kGranted);
    EXPECT_EQ(Dispatch(kStart + kSecond / 2), 0u);
    EXPECT_EQ(Dispatch(kStart + kSecond), 1u);
    EXPECT_EQ(gate_.State(1), TicketState::kHeld);
}

TEST_F(PacedGateTest, ARateThatEndsLetsEverybodyIn)
{
    const uint32_t slow = Configure(1);
    Enqueue(0, slow, kStart);
    for (uint32_t id = 1; id < 10; id++)
        EXPECT_EQ(Enqueue(id, slow, kStart), Admission::kQueued);
    Configure(0);
    EXPECT_EQ(Dispatch(kStart), 9u);
}

TEST_F(PacedGateTest, NobodyIsHeldBackWhenNothingIsEnforced)
{
    gate_.shared().pace.Set(1, 1);
    Enqueue(0, kDefaultClass, kStart);
    EXPECT_EQ(Enqueue(1, kDefaultClass, kStart), Admission::kQueued);
    gate_.shared().enforcing.store(0);
    EXPECT_EQ(Dispatch(kStart), 1u);
}

TEST_F(PacedGateTest, ObservingSeesWhoWouldHaveWaited)
{
    const uint32_t slow = Configure(1);
    EXPECT_FALSE(gate_.IsTooSoon(slow, kStart));
    EXPECT_TRUE(gate_.IsTooSoon(slow, kStart));
    EXPECT_FALSE(gate_.IsTooSoon(kDefaultClass, kStart));
    EXPECT_FALSE(gate_.IsTooSoon(slow, kStart + kSecond));
}

} // namespace
} // namespace weir
