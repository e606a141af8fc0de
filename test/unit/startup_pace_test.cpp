// The pace of logins, against a machine in a nutshell: processors, established sessions that want a share of
// them, and clients that log in as fast as they are let.

#include "admission/startup_pace.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>

namespace weir
{
namespace
{

constexpr double kIntervalS = 0.1;

struct Machine {
    double cores = 2;
    double wanted = 0;        // processors that established sessions would use alone
    double cost_s = 4e-3;     // of a whole login
    double seen_share = 0.28; // of that, what the login's process sees before it is ready
    double demand = 1e9;      // logins per second that clients would make
    double waiting = 64;
    bool idle_known = true;
    double noise = 0.2;

    StartupPace pace = {};
    StartupBounds bounds = {2, 0.02, 30};
    std::mt19937 random{7};
    double served = 0;  // logins per second in the last interval
    double victims = 0; // processors that the established sessions got
    double idle = 1;

    double Noise() { return std::uniform_real_distribution<>(1 - noise, 1 + noise)(random); }

    // As a fair scheduler would: logins get what they want up to half of the processors, or more if it is
    // left.
    void Interval()
    {
        const double login_wanted =
            std::min({pace.rate > 0 ? pace.rate * cost_s : 1e9, demand * cost_s, 4.0 * cores});
        const double login_got = std::min(login_wanted, std::max(cores - wanted, cores / 2));
        const double all = wanted + login_wanted;
        victims = std::min(wanted, cores - login_got);
        served = login_got / cost_s;
        idle = std::max(0.0, 1 - all / cores);
        StartupSample sample = {};
        sample.interval_s = kIntervalS;
        sample.established = wanted * Noise(); // in a transaction, also while they wait for a processor
        sample.cpu_idle = idle_known ? std::min(1.0, std::max(0.0, idle + 0.05 * (Noise() - 1))) : -1;
        sample.waiting = served < demand ? waiting : 0;
        sample.admitted = static_cast<uint64_t>(std::lround(served * kIntervalS * Noise()));
        sample.finished = sample.admitted;
        sample.cpu_s = static_cast<double>(sample.finished) * cost_s * seen_share * Noise();
        StartupPaceUpdate(&pace, bounds, sample);
    }

    void For(double seconds)
    {
        for (int i = 0; i < seconds / kIntervalS; i++)
            Interval();
    }
};

TEST(StartupPace, NobodyToProtectNoPace)
{
    Machine machine;
    for (int i = 0; i < 100; i++) {
        machine.Interval();
        ASSERT_EQ(machine.pace.rate, 0);
    }
    EXPECT_EQ(machine.pace.reason, StartupReason::kFree);
    EXPECT_NEAR(machine.served, 500, 1);
}

TEST(StartupPace, BusySessionsKeepNearlyAllOfTheProcessors)
{
    for (const double cores : {1.0, 2.0, 16.0, 128.0}) {
        Machine machine;
        machine.cores = machine.bounds.cores = cores;
        machine.wanted = cores * 1.5;
        machine.For(3);
        for (int i = 0; i < 100; i++) {
            machine.Interval();
            ASSERT_GE(machine.victims, 0.9 * cores) << cores;
        }
        EXPECT_EQ(machine.pace.reason, StartupReason::kShare);
        EXPECT_GT(machine.served, 0.012 * cores / machine.cost_s) << "logins go on";
    }
}

TEST(StartupPace, LoginsTakeWhatIsIdle)
{
    Machine machine;
    machine.wanted = 0.6;
    machine.For(10);
    double served = 0;
    double victims = 0;
    for (int i = 0; i < 200; i++) {
        machine.Interval();
        served += machine.served / 200;
        victims += machine.victims / 200;
    }
    EXPECT_GT(served * machine.cost_s, 0.75 * (2 - 0.6)) << "processors";
    EXPECT_GT(victims, 0.97 * 0.6);
}

TEST(StartupPace, AFewLoginsOnABusyMachineAreNotSlowed)
{
    Machine machine;
    machine.wanted = 4;
    machine.demand = 8; // 1.6 % of two processors
    machine.waiting = 0;
    machine.For(5);
    machine.Interval();
    EXPECT_NEAR(machine.served, 8, 0.5);
}

TEST(StartupPace, WhoWaitsIsServedWithinTheTimeout)
{
    Machine machine;
    machine.wanted = 4;
    machine.waiting = 1000;
    machine.For(5);
    EXPECT_EQ(machine.pace.reason, StartupReason::kDrain);
    EXPECT_NEAR(machine.pace.rate, 1000 / (0.9 * 30), 0.1);
    machine.bounds.timeout_s = 0;
    machine.For(1);
    EXPECT_EQ(machine.pace.reason, StartupReason::kShare);
}

// What a refused client is told to wait for, is divided by this.
TEST(StartupPace, TheQueuesRateIsNotForgottenInQuietTimes)
{
    Machine machine;
    machine.Interval();
    EXPECT_GT(machine.pace.queue_rate, 100) << "before anybody came: what the processors could serve";
    machine.wanted = 4;
    machine.waiting = 270;
    machine.For(5);
    EXPECT_NEAR(machine.pace.queue_rate, 10, 3);
    machine.waiting = 0;
    machine.demand = 0;
    machine.For(60);
    EXPECT_NEAR(machine.pace.queue_rate, 10, 3);
    EXPECT_LT(machine.pace.served_rate, 0.1);
}

TEST(StartupPace, TheShareIsTheUsers)
{
    Machine machine;
    machine.wanted = 4;
    machine.bounds.share = 0.2;
    machine.For(5);
    EXPECT_NEAR(machine.served * machine.cost_s / 2, 0.2, 0.06);
}

TEST(StartupPace, ItIsFreeAgainWhenTheBusyOnesAreGone)
{
    Machine machine;
    machine.wanted = 4;
    machine.For(5);
    ASSERT_GT(machine.pace.rate, 0);
    machine.wanted = 0;
    machine.For(2);
    EXPECT_EQ(machine.pace.rate, 0);
}

// While nobody is in the gate the launcher looks once a second.
TEST(StartupPace, ALongIntervalCountsForAsManyAsItIs)
{
    Machine machine;
    machine.wanted = 4;
    machine.For(5);
    StartupSample sample = {};
    sample.interval_s = 1;
    sample.cpu_idle = 1;
    StartupPace pace = machine.pace;
    ASSERT_GT(pace.rate, 0);
    StartupPaceUpdate(&pace, machine.bounds, sample);
    EXPECT_EQ(pace.rate, 0) << "nobody has been at work for a second";

    pace = machine.pace;
    sample.established = 1; // a single session that asks now and then
    StartupPaceUpdate(&pace, machine.bounds, sample);
    EXPECT_GT(pace.rate, 3.5 * machine.pace.rate);
}

// An application of hundreds of connections that is started again: it finds nobody to be slowed for.
TEST(StartupPace, HundredsWhoLeftAreForgottenInASecond)
{
    Machine machine;
    machine.wanted = 512;
    machine.For(5);
    ASSERT_GT(machine.pace.rate, 0);
    StartupSample sample = {};
    sample.interval_s = 0.1;
    sample.cpu_idle = 1;
    for (int i = 0; i < 10; i++)
        StartupPaceUpdate(&machine.pace, machine.bounds, sample);
    EXPECT_EQ(machine.pace.rate, 0);
    EXPECT_EQ(machine.pace.reason, StartupReason::kFree);
}

TEST(StartupPace, WorksWithoutTheIdleShare)
{
    Machine machine;
    machine.idle_known = false;
    machine.wanted = 4;
    machine.For(5);
    EXPECT_GE(machine.victims, 0.9 * 2);
}

// What comes from shared memory or a clock that jumped must not end in a rate of nothing.
TEST(StartupPace, NonsenseIsSurvived)
{
    StartupPace pace = {};
    const StartupBounds bounds = {2, 0.02, 30};
    StartupSample sample = {};
    sample.established = 3;
    sample.interval_s = -1;
    sample.cpu_idle = 0;
    for (int i = 0; i < 100; i++)
        StartupPaceUpdate(&pace, bounds, sample);
    EXPECT_GE(pace.rate, 0.1);
    EXPECT_TRUE(std::isfinite(pace.rate));
}

TEST(StartupPace, EveryReasonHasAName)
{
    for (uint32_t i = 0; i <= static_cast<uint32_t>(StartupReason::kFixed); i++)
        EXPECT_STRNE(StartupReasonName(static_cast<StartupReason>(i)), "unknown");
}

} // namespace
} // namespace weir
