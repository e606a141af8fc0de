#include "replicas/read_targets.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;
constexpr ReadWish kAny = {-1, nullptr};

struct Fleet {
    ReplicaRow rows[kMaxReplicas] = {};
    Quarantine quarantined[kMaxReplicas] = {};
    ReadTarget found[kMaxReplicas] = {};
    uint32_t count = 0;

    ReplicaRow &Add(const char *name, int64_t lag_us)
    {
        ReplicaRow &row = rows[count++];
        row.in_use = true;
        row.counts = true;
        row.pid = 100 + static_cast<int32_t>(count);
        row.replay_lsn = 1000;
        row.state = ReplicaState::kStreaming;
        row.replay_lag_us = lag_us;
        row.lag_known = true;
        snprintf(row.application_name, sizeof(row.application_name), "%s", name);
        SplitName(row.application_name, row.region, row.node);
        return row;
    }

    // "name=weight ..."
    std::string Find(const ReadWish &wish)
    {
        std::string text;
        const uint32_t n = FindReadTargets(rows, quarantined, wish, found);
        for (uint32_t i = 0; i < n; i++)
            text += (text.empty() ? "" : " ") + std::string(rows[found[i].row].application_name) + "=" +
                    std::to_string(found[i].weight);
        return text;
    }
};

TEST(ReadTargets, None)
{
    EXPECT_EQ(std::make_unique<Fleet>()->Find(kAny), "");
}

TEST(ReadTargets, BestFirst)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("slow", 3 * kSecond);
    fleet->Add("b", 0);
    fleet->Add("late", 10 * kSecond);
    fleet->Add("a", 0);
    fleet->Add("bytes", 0).replay_lag_bytes = 5;
    EXPECT_EQ(fleet->Find(kAny), "a=100 b=100 bytes=100 slow=25 late=9");
    EXPECT_EQ(fleet->Find({10 * kSecond, nullptr}), "a=100 b=100 bytes=100 slow=70 late=1");
    EXPECT_EQ(fleet->Find({10 * kSecond - 1, nullptr}), "a=100 b=100 bytes=100 slow=70");
    EXPECT_EQ(fleet->Find({0, nullptr}), "a=100 b=100 bytes=100");
}

TEST(ReadTargets, WeightsHaveBounds)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("forever", INT64_MAX);
    fleet->Add("day", 86400 * kSecond);
    EXPECT_EQ(fleet->Find(kAny), "day=1 forever=1");
    EXPECT_EQ(fleet->Find({INT64_MAX, nullptr}), "day=100 forever=1");
}

TEST(ReadTargets, HealthyOnly)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("good", 0);
    fleet->Add("gone", 0).pid = 0;
    fleet->Add("not listed", 0).counts = false;
    fleet->Add("pg_receivewal", 0).replay_lsn = 0;
    fleet->Add("new", 0).state = ReplicaState::kUnknown;
    fleet->Add("lost", 0).state = ReplicaState::kDisconnected;
    fleet->Add("forgotten", 0).in_use = false;
    fleet->quarantined[fleet->count].on = 1;
    fleet->Add("quarantined", 0);
    EXPECT_EQ(fleet->Find(kAny), "good=100");
    EXPECT_EQ(fleet->Find({kSecond, nullptr}), "good=100");
}

TEST(ReadTargets, CatchingUp)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("back", kSecond / 2).state = ReplicaState::kCatchup;
    EXPECT_EQ(fleet->Find(kAny), "") << "without a bound";
    EXPECT_EQ(fleet->Find({kSecond, nullptr}), "back=50") << "within it";
    EXPECT_EQ(fleet->Find({kSecond / 4, nullptr}), "");
}

TEST(ReadTargets, LongerBehindThanTheServerIsUpIsWithinNoBound)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("paused", kSecond).lag_known = false;
    EXPECT_EQ(fleet->Find({10 * kSecond, nullptr}), "");
    EXPECT_EQ(fleet->Find(kAny), "paused=50");
}

TEST(ReadTargets, Region)
{
    auto fleet = std::make_unique<Fleet>();
    fleet->Add("eu/1", 0);
    fleet->Add("eu/2", 0);
    fleet->Add("us/1", 0);
    fleet->Add("alone", 0);
    EXPECT_EQ(fleet->Find({-1, "eu"}), "eu/1=100 eu/2=100");
    EXPECT_EQ(fleet->Find({-1, "us"}), "us/1=100");
    EXPECT_EQ(fleet->Find({-1, "e"}), "");
    EXPECT_EQ(fleet->Find({-1, ""}), "alone=100");
}

TEST(ReadTargets, AllRows)
{
    auto fleet = std::make_unique<Fleet>();
    for (uint32_t i = 0; i < kMaxReplicas; i++)
        fleet->Add(("n" + std::to_string(i)).c_str(), static_cast<int64_t>(kMaxReplicas - i));
    EXPECT_EQ(FindReadTargets(fleet->rows, fleet->quarantined, kAny, fleet->found), kMaxReplicas);
    EXPECT_EQ(fleet->found[0].row, kMaxReplicas - 1);
}

} // namespace
} // namespace weir
