// Flow control of writers, against a simulated standby: where the lag settles, what that costs, and who does
// not count.

#include <gtest/gtest.h>

#include <thread>

#include "flow_simulator.hpp"

namespace weir
{
namespace
{

using flow_simulator::World;

constexpr int64_t kSecond = 1000000;

// Writers idle, then at ten times what the standby replays, for long enough to settle.
void Overload(World *world, double seconds = 40)
{
    world->client_rate = 1e4;
    world->For(3);
    world->client_rate = 10 * world->standbys[0].capacity / static_cast<double>(world->clients.size());
    world->For(seconds);
}

TEST(FlowControl, LagSettlesBelowTheTargetAndTheStandbyIsNeverIdle)
{
    for (const double target_s : {0.2, 0.5, 2.0, 10.0}) {
        for (const double report_s : {0.01, 0.1, 1.0}) {
            SCOPED_TRACE(testing::Message()
                         << "target " << target_s << " s, messages each " << report_s << " s");
            if (report_s > target_s / 4)
                continue; // nothing can be kept that is not seen
            World world;
            world.targets.lag_us = static_cast<int64_t>(target_s * 1e6);
            world.standbys[0].report_s = report_s;
            Overload(&world, 30 + 6 * target_s);
            const World::Result result = world.For(20);
            const double slack_s = 0.15 + report_s;
            EXPECT_LT(result.lag_max, kAim * target_s * 1.1 + slack_s);
            // With a message a second the rate seems to vary: the aim is somewhat lower.
            EXPECT_GT(result.lag_min, kAim * target_s * (report_s < 1 ? 0.9 : 0.85) - slack_s);
            EXPECT_GT(result.rate, 0.95 * world.standbys[0].capacity);
            EXPECT_LE(result.engagements, 1U);
        }
    }
}

TEST(FlowControl, ItDoesNotSwing)
{
    World world;
    Overload(&world);
    const World::Result result = world.For(30);
    EXPECT_LT(result.lag_max - result.lag_min, 0.1);
    EXPECT_EQ(result.engagements, 0U);
}

TEST(FlowControl, TheFirstOvershootIsWorkedOffOnce)
{
    World world;
    world.client_rate = 1e4;
    world.For(3);
    world.client_rate = 1e6;
    // Half a second at ten times the rate is written before anybody can know; it takes five to replay.
    const World::Result first = world.For(12);
    EXPECT_LT(first.lag_max, 6.5);
    EXPECT_GT(first.rate, 0.9 * world.standbys[0].capacity);
    EXPECT_LT(world.For(10).lag_max, 2.2);
}

TEST(FlowControl, AStandbyThatHiccupsKeepsItsThroughput)
{
    World world;
    world.noise = 0.3; // a stall of 0.3 s about once a second
    Overload(&world);
    const double before = world.standbys[0].replayed;
    const World::Result result = world.For(60);
    const double replayed = (world.standbys[0].replayed - before) / 60;
    EXPECT_GT(result.rate, 0.95 * replayed);
    EXPECT_NEAR(result.lag_mean, 2 * kAim, 0.5);
    EXPECT_LT(result.lag_max, 3);
}

TEST(FlowControl, ABoundInBytes)
{
    World world;
    world.targets = {0, 16 << 20, 10 * kSecond, 64 * 1024};
    Overload(&world);
    EXPECT_NEAR(world.wal - world.standbys[0].replayed, kAim * (16 << 20), 2 << 20);
    EXPECT_GT(world.For(10).rate, 0.95 * world.standbys[0].capacity);
}

TEST(FlowControl, TheTighterOfTwoBoundsHolds)
{
    World world;
    world.targets.lag_bytes = 5 << 20; // half a second
    Overload(&world);
    EXPECT_NEAR(world.For(10).lag_mean, 0.05 + kAim * 0.5, 0.15);
}

TEST(FlowControl, WhatOthersWriteComesOutOfTheSameRate)
{
    World world;
    world.others = 6e6;
    Overload(&world, 60);
    const World::Result result = world.For(20);
    EXPECT_LT(result.lag_max, 2.3);
    EXPECT_NEAR(result.rate, 4e6, 0.4e6);
}

// Each minute autovacuum writes a small record for each new page, in a burst. Bytes of WAL do not tell how
// long these take to replay, and when that is seen they are behind two seconds of backlog: the standby is
// later by what they take, but by no more; and it is not given up.
TEST(FlowControl, WalThatTakesLongToReplayForItsSize)
{
    World world;
    Overload(&world);
    const double quiet = world.For(10).lag_max;
    world.dense_cost = 35;
    world.dense = 4e6; // 1.2 MB, as long to replay as 42
    world.For(0.3);
    world.dense = 0;
    const World::Result after = world.For(15);
    EXPECT_GT(after.lag_max, quiet + 3);
    EXPECT_LT(after.lag_max, quiet + 4.5);
    EXPECT_EQ(world.states[0].standing, Standing::kCounts);
    const World::Result settled = world.For(10);
    EXPECT_LT(settled.lag_max, 2.4);
    EXPECT_GT(settled.rate, 0.95 * world.standbys[0].capacity);
}

// Spread over more time (autovacuum_vacuum_cost_limit) it is followed.
TEST(FlowControl, TheSameSpreadOverTimeIsFollowed)
{
    World world;
    Overload(&world);
    world.dense_cost = 35;
    world.dense = 0.06e6; // the same within 20 s
    const World::Result during = world.For(20);
    EXPECT_LT(during.lag_max, 3);
    world.dense = 0;
    EXPECT_LT(world.For(10).lag_max, 3);
    EXPECT_GT(world.For(10).rate, 0.95 * world.standbys[0].capacity);
}

TEST(FlowControl, BelowTheStandbysRateNobodyIsHeld)
{
    World world;
    world.client_rate = 6e4; // 0.6 of the capacity, and the standby stands still for a seventh of the time
    world.noise = 0.15;
    const World::Result result = world.For(60);
    EXPECT_EQ(result.engagements, 0U);
    EXPECT_NEAR(result.rate, 6e6, 0.1e6);
}

TEST(FlowControl, ItLetsGoWhenTheLoadIsGoneAndComesBackWithIt)
{
    World world;
    Overload(&world);
    world.client_rate = 5e4;
    world.For(8);
    EXPECT_FALSE(world.controller.lanes[1].engaged);
    EXPECT_FALSE(world.buckets[1].Limits());
    world.client_rate = 1e6;
    world.For(20);
    EXPECT_TRUE(world.controller.lanes[1].engaged);
    EXPECT_NEAR(world.For(5).lag_mean, 2 * kAim, 0.2);
}

TEST(FlowControl, ASlowerAndAFasterStandbyAreFollowed)
{
    World world;
    Overload(&world);
    world.standbys[0].capacity = 2e6;
    world.For(30);
    World::Result result = world.For(10);
    EXPECT_NEAR(result.lag_mean, 2 * kAim, 0.3);
    EXPECT_GT(result.rate, 1.9e6);
    world.standbys[0].capacity = 10e6;
    world.For(30);
    result = world.For(10);
    EXPECT_NEAR(result.lag_mean, 2 * kLeastAim, 0.2); // it may become slower again
    EXPECT_GT(result.rate, 9.5e6);
    world.For(90);
    EXPECT_NEAR(world.For(10).lag_mean, 2 * kAim, 0.2);
}

// What is written when it slows down takes as much longer, whatever the writers do.
TEST(FlowControl, WhereReplayHalvesNowAndThenThereIsRoomForIt)
{
    World world;
    Overload(&world);
    const auto cycle = [&world] {
        world.standbys[0].capacity = 10e6;
        const World::Result fast = world.For(20);
        world.standbys[0].capacity = 5e6;
        const World::Result slow = world.For(8);
        EXPECT_GT(fast.rate, 0.95 * 10e6);
        EXPECT_GT(slow.rate, 0.75 * 5e6); // what is too much for it is worked off
        EXPECT_GT(std::min(fast.lag_min, slow.lag_min), 0.3);
        return slow.lag_max;
    };
    cycle();
    for (int i = 0; i < 4; i++)
        EXPECT_LT(cycle(), 3);
}

TEST(FlowControl, WhatItOnceCaughtUpAtIsNotWhatItCanDoNow)
{
    World world;
    world.standbys[0].capacity = 120e6;
    world.targets.lag_us = 0; // it falls behind and catches up, unthrottled
    world.client_rate = 5e5;
    world.standbys[0].paused = true;
    world.For(15);
    world.standbys[0].paused = false;
    world.For(20);
    world.targets.lag_us = 2 * kSecond;
    world.standbys[0].capacity = 4e6;
    world.For(35); // two seconds of what was let through before take twenty to replay
    const World::Result result = world.For(20);
    EXPECT_LT(result.lag_max, 3);
    EXPECT_GT(result.rate, 0.95 * 4e6);
}

TEST(FlowControl, BatchClassesAreSlowedDownFirst)
{
    World world;
    for (size_t i = 0; i < world.clients.size(); i += 2)
        world.clients[i].batch = true;
    Overload(&world);
    const World::Result result = world.For(20);
    EXPECT_LT(result.lane_rate[0], 0.2 * world.standbys[0].capacity);
    EXPECT_GT(result.lane_rate[0], 0.02 * world.standbys[0].capacity); // slow, not stopped
    EXPECT_GT(result.lane_rate[1], 0.75 * world.standbys[0].capacity);
    EXPECT_NEAR(result.lag_mean, 2 * kAim, 0.2);
}

TEST(FlowControl, BatchClassesAloneLoseNothingAndHoldNobody)
{
    World world;
    for (flow_simulator::Client &client : world.clients)
        client.batch = true;
    Overload(&world);
    const World::Result result = world.For(20);
    EXPECT_GT(result.rate, 0.95 * world.standbys[0].capacity);
    EXPECT_NEAR(result.lag_mean, 0.5 * kAim, 0.15);
    EXPECT_FALSE(world.controller.lanes[1].engaged);
}

TEST(FlowControl, WritersAreNeverStopped)
{
    World world;
    world.targets.grace_us = 3600 * kSecond;
    Overload(&world);
    world.standbys[0].paused = true;
    world.For(20);
    EXPECT_GT(world.For(10).rate, 0.9 * 64 * 1024);
    world.standbys[0].paused = false;
    world.For(120);
    EXPECT_NEAR(world.For(10).lag_mean, 2 * kAim, 0.2);
}

// ---- who counts -------------------------------------------------------------------------------------

TEST(FlowStandbys, APausedOneIsGivenUpAfterTheGracePeriodAndComesBack)
{
    World world;
    Overload(&world);
    world.standbys[0].paused = true;
    world.For(9);
    EXPECT_EQ(world.states[0].standing, Standing::kCounts);
    EXPECT_TRUE(world.controller.lanes[1].engaged);
    world.client_rate = 1e4; // or it would never catch up
    world.For(2);
    EXPECT_EQ(world.states[0].standing, Standing::kStuck);
    EXPECT_FALSE(world.controller.lanes[1].engaged);
    world.standbys[0].paused = false;
    world.For(1);
    EXPECT_EQ(world.states[0].standing, Standing::kReturning);
    world.For(40);
    EXPECT_EQ(world.states[0].standing, Standing::kCounts);
}

TEST(FlowStandbys, OneThatIsLostCountsForTheGracePeriod)
{
    World world;
    Overload(&world);
    const double rate = world.controller.lanes[1].rate;
    world.standbys[0].connected = false;
    world.For(9);
    EXPECT_NEAR(world.controller.lanes[1].rate, rate, 0.1 * rate); // as it was, not worse and worse
    world.For(2);
    EXPECT_EQ(world.states[0].standing, Standing::kDisconnected);
    EXPECT_EQ(world.controller.counting, 0U);
    EXPECT_FALSE(world.controller.lanes[1].engaged);
}

TEST(FlowStandbys, OneThatReturnsMayCatchUpWithoutHoldingAnybody)
{
    World world;
    world.client_rate = 5e4;
    world.For(10);
    world.standbys[0].connected = false;
    world.For(30);
    world.standbys[0].connected = true;
    const World::Result result = world.For(60);
    EXPECT_EQ(world.states[0].standing, Standing::kCounts);
    EXPECT_NEAR(result.rate, 5e6, 0.1e6);
}

TEST(FlowStandbys, OneThatDoesNotCatchUpByItselfCountsAgain)
{
    World world;
    world.client_rate = 5e4;
    world.For(10);
    world.standbys[0].connected = false;
    world.For(15);
    world.standbys[0].connected = true;
    world.client_rate = 1.5e5; // more than it replays
    world.For(60);
    EXPECT_EQ(world.states[0].standing, Standing::kCounts);
    EXPECT_NEAR(world.For(10).lag_mean, 2 * kAim, 0.3);
}

TEST(FlowStandbys, OneThatReplaysLateOnPurposeIsFoundOut)
{
    for (const double delay_s : {2.3, 5.0, 20.0}) {
        SCOPED_TRACE(delay_s);
        World world(20);
        world.client_rate = 25e4;
        world.For(5);
        world.standbys[0].apply_delay_s = delay_s;
        world.For(2 * delay_s + 40);
        EXPECT_EQ(world.states[0].standing, Standing::kNotHelped);
        EXPECT_NEAR(world.For(60).rate, 5e6, 0.1e6); // nobody is held for it
        world.standbys[0].connected = false;
        world.For(12);
        world.standbys[0].connected = true;
        EXPECT_NEAR(world.For(30).rate, 5e6, 0.1e6);
        EXPECT_EQ(world.states[0].standing, Standing::kNotHelped);
        EXPECT_NEAR(world.For(20).rate, 5e6, 0.1e6);
    }
}

TEST(FlowStandbys, WritersAreNotHeldForWhatOthersWrite)
{
    World world;
    world.others = 15e6; // more than it replays
    world.client_rate = 1e4;
    world.For(60);
    EXPECT_NE(world.states[0].standing, Standing::kCounts);
    EXPECT_NEAR(world.For(10).rate, 1e6, 0.1e6);
}

TEST(FlowStandbys, TheHopelessAreGivenUp)
{
    FlowTargets targets = {2 * kSecond, 0, 10 * kSecond, 64 * 1024};
    FlowStandby standby = {};
    int64_t now = kSecond;
    standby.Sample({true, 1000, 0, 0}, targets, now);
    EXPECT_EQ(standby.standing, Standing::kCounts);
    int64_t changed = 0;
    for (int i = 0; i < 200; i++) { // it replays 1 MB/s and is 200 s behind
        now += kSecond / 10;
        if (standby.Sample({true, 1000 + 100000U * static_cast<uint64_t>(i), 90 * kSecond, 200000000},
                           targets, now))
            changed = i;
    }
    EXPECT_EQ(standby.standing, Standing::kHopeless);
    EXPECT_NEAR(static_cast<double>(changed), 100, 2);
    for (int i = 0; i < 300; i++) { // 14 s
        now += kSecond / 10;
        standby.Sample({true, 30000000 + 100000U * static_cast<uint64_t>(i), 14 * kSecond, 14000000}, targets,
                       now);
    }
    EXPECT_EQ(standby.standing, Standing::kCounts);
}

TEST(FlowStandbys, TheQuorumIsTakenNotTheSlowest)
{
    World world;
    world.standbys.resize(3);
    world.standbys[0].capacity = 1e6;
    world.standbys[1].capacity = 4e6;
    world.quorum = 2;
    world.client_rate = 1e4;
    world.For(3);
    world.client_rate = 1e6;
    world.For(60);
    EXPECT_NEAR(world.For(10).rate, 4e6, 0.4e6);
    EXPECT_NEAR(world.TrueLagS(1), 2 * kAim, 0.3);
    world.quorum = 4; // there are no four
    world.For(5);
    EXPECT_FALSE(world.controller.lanes[1].engaged);
}

TEST(FlowStandbys, WhoIsNotListedDoesNotCount)
{
    World world;
    world.standbys.resize(2);
    world.standbys[0].capacity = 1e6;
    world.standbys[0].listed = false;
    world.client_rate = 5e4;
    const World::Result result = world.For(30);
    EXPECT_EQ(world.controller.counting, 1U);
    EXPECT_NEAR(result.rate, 5e6, 0.1e6);
}

TEST(FlowControl, WithoutTargetsItIsOff)
{
    World world;
    Overload(&world);
    EXPECT_TRUE(world.buckets[1].Limits());
    world.targets = {};
    world.For(0.2);
    EXPECT_FALSE(world.buckets[1].Limits());
}

TEST(FlowControl, WhenTheClockIsSetBackWhoIsGoneIsGivenUpAsSoon)
{
    constexpr int64_t kHour = 3600 * kSecond;
    const FlowTargets targets = {2 * kSecond, 0, 10 * kSecond, 64 * 1024};
    FlowStandby standby = {};
    int64_t now = 2 * kHour;
    standby.Sample({true, 1000, 0, 0}, targets, now);
    EXPECT_TRUE(standby.Counts());
    standby.Sample({false, 1000, kSecond, 1000}, targets, now += kSecond);
    standby.Shift(-kHour);
    now -= kHour;
    standby.Sample({false, 1000, kSecond, 1000}, targets, now += 9 * kSecond);
    EXPECT_TRUE(standby.Counts());
    standby.Sample({false, 1000, kSecond, 1000}, targets, now += kSecond);
    EXPECT_EQ(standby.standing, Standing::kDisconnected);
}

// ---- the bucket -------------------------------------------------------------------------------------

TEST(FlowBucket, EverybodyInTurnAtTheRate)
{
    FlowBucket bucket = {};
    EXPECT_EQ(bucket.LeftUs(bucket.Reserve(1000000), 0), 0); // no limit
    bucket.SetRate(1000, kSecond);
    const int64_t first = bucket.Reserve(500);
    const int64_t second = bucket.Reserve(500);
    bucket.waiting_bytes += 1000;
    EXPECT_EQ(bucket.LeftUs(first, kSecond), 0);
    EXPECT_NEAR(static_cast<double>(bucket.LeftUs(second, kSecond)), 500000, 2);
    EXPECT_EQ(bucket.LeftUs(second, kSecond + 500000), 0);
    bucket.SetRate(100, kSecond); // ten times slower: so does who waits already
    EXPECT_NEAR(static_cast<double>(bucket.LeftUs(second, kSecond)), 5000000, 2);
    bucket.SetRate(0, kSecond);
    EXPECT_EQ(bucket.LeftUs(second, kSecond), 0);
}

TEST(FlowBucket, WhatWasNotWrittenIsGivenToThoseWhoWait)
{
    FlowBucket bucket = {};
    bucket.SetRate(1000, kSecond);
    bucket.Reserve(1000);
    const int64_t mine = bucket.Reserve(1000);
    bucket.Return(1000);
    EXPECT_EQ(bucket.LeftUs(mine, kSecond), 0);
    bucket.Charge(1500, 1000);
    const int64_t next = bucket.Reserve(1000);
    EXPECT_NEAR(static_cast<double>(bucket.LeftUs(next, kSecond)), 1500000, 2);
}

TEST(FlowBucket, DebtAndCreditAreBounded)
{
    FlowBucket bucket = {};
    bucket.SetRate(1000, kSecond);
    bucket.Charge(1000000000, 0);
    bucket.SetRate(1000, kSecond);
    EXPECT_NEAR(static_cast<double>(bucket.LeftUs(bucket.Reserve(0), kSecond)), 1e6, 2);
    bucket.SetRate(1000, 3600 * kSecond);
    const int64_t burst = bucket.Reserve(100);
    EXPECT_EQ(bucket.LeftUs(burst, 3600 * kSecond), 0);
    bucket.Reserve(1);
    EXPECT_GT(bucket.LeftUs(bucket.Reserve(100), 3600 * kSecond), 0);
    // Who waits in turn is not forgiven: that is no debt.
    bucket.waiting_bytes += 10000;
    bucket.Reserve(10000);
    bucket.SetRate(1000, 3600 * kSecond);
    EXPECT_GT(bucket.LeftUs(bucket.Reserve(0), 3600 * kSecond), 9 * kSecond);
}

TEST(FlowBucketThreads, ManyDrawAndNothingIsLost)
{
    static FlowBucket bucket = {};
    bucket.SetRate(1e12, kSecond);
    std::vector<std::thread> threads;
    constexpr int kThreads = 4, kRounds = 20000;
    for (int t = 0; t < kThreads; t++)
        threads.emplace_back([] {
            for (int i = 0; i < kRounds; i++) {
                const int64_t position = bucket.Reserve(100);
                bucket.waiting_bytes += 100;
                (void)bucket.LeftUs(position, kSecond + i);
                bucket.waiting_bytes -= 100;
                bucket.Charge(70, 100);
            }
        });
    for (int i = 0; i < 1000; i++)
        bucket.SetRate(1e12, kSecond + i);
    for (std::thread &thread : threads)
        thread.join();
    EXPECT_EQ(bucket.waiting_bytes.load(), 0);
    EXPECT_EQ(bucket.charged.load(), 70U * kThreads * kRounds);
    EXPECT_EQ(bucket.reserved.load(), 100 * kThreads * kRounds);
}

} // namespace
} // namespace weir
