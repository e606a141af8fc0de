// What weir.check_throttle() answers, and the rules for some applications.

#include "replicas/throttle_rules.hpp"

#include <gtest/gtest.h>

#include <string>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;

ThrottleFacts Quiet()
{
    return {true, false, true, 0, 5 * kSecond, 0, 0, 1000000};
}

TEST(ThrottleCheck, YesBelowTheThresholdNoFromIt)
{
    ThrottleFacts facts = Quiet();
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kOk);
    EXPECT_EQ(JudgeCheck(facts, nullptr).retry_after_us, 0);
    facts.lag_us = 5 * kSecond - 1;
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kOk);
    facts.lag_us = 7 * kSecond;
    const ThrottleAnswer answer = JudgeCheck(facts, nullptr);
    EXPECT_EQ(answer.code, ThrottleCode::kLagging);
    EXPECT_EQ(answer.value, 7 * kSecond);
    EXPECT_EQ(answer.threshold, 5 * kSecond);
    EXPECT_EQ(answer.retry_after_us, 2 * kSecond);
    facts.lag_us = 86400 * kSecond;
    EXPECT_EQ(JudgeCheck(facts, nullptr).retry_after_us, 30 * kSecond);
    facts.lag_us = 5 * kSecond;
    EXPECT_GT(JudgeCheck(facts, nullptr).retry_after_us, 0);
}

TEST(ThrottleCheck, BytesCountToo)
{
    ThrottleFacts facts = Quiet();
    facts.threshold_bytes = 10000000;
    facts.lag_bytes = 13000000;
    ThrottleAnswer answer = JudgeCheck(facts, nullptr);
    EXPECT_EQ(answer.code, ThrottleCode::kLagging);
    EXPECT_TRUE(answer.in_bytes);
    EXPECT_EQ(answer.value, 13000000);
    EXPECT_EQ(answer.retry_after_us, 3 * kSecond);
    facts.lag_us = 6 * kSecond;
    EXPECT_FALSE(JudgeCheck(facts, nullptr).in_bytes);
    facts.threshold_us = 0; // time does not matter
    EXPECT_TRUE(JudgeCheck(facts, nullptr).in_bytes);
    facts.lag_bytes = 0;
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kOk);
}

TEST(ThrottleCheck, NeverYesFromWhatIsNotKnown)
{
    ThrottleFacts facts = Quiet();
    facts.fresh = false;
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kStale);
    facts = Quiet();
    facts.known = false;
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kUnknown);
    facts = Quiet();
    facts.in_recovery = true;
    EXPECT_EQ(JudgeCheck(facts, nullptr).code, ThrottleCode::kStandby);
    for (const ThrottleCode code : {ThrottleCode::kStale, ThrottleCode::kUnknown, ThrottleCode::kStandby,
                                    ThrottleCode::kLagging, ThrottleCode::kDenied})
        EXPECT_FALSE(IsAllowed(code)) << ThrottleCodeName(code);
}

TEST(ThrottleRules, AShareIsDeniedEvenly)
{
    static ThrottleRules rules = {};
    ASSERT_TRUE(rules.Set("job*", 0.3, false, 100 * kSecond, 0));
    ThrottleRule *rule = rules.Find("job1", 0);
    ASSERT_NE(rule, nullptr);
    int denied = 0;
    for (int i = 0; i < 1000; i++)
        denied += JudgeCheck(Quiet(), rule).code == ThrottleCode::kDenied ? 1 : 0;
    EXPECT_NEAR(denied, 300, 1);
    EXPECT_EQ(rule->checks.load(), 1000U);
    EXPECT_EQ(rule->denied.load(), static_cast<uint64_t>(denied));
    rules.Set("job*", 1, false, 100 * kSecond, 0);
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(JudgeCheck(Quiet(), rule).code, ThrottleCode::kDenied);
    rules.Set("job*", 0, false, 100 * kSecond, 0);
    EXPECT_EQ(JudgeCheck(Quiet(), rule).code, ThrottleCode::kOk);
    EXPECT_EQ(rules.count.load(), 1U);
}

TEST(ThrottleRules, AnExemptionWinsOverEverything)
{
    static ThrottleRules rules = {};
    rules.Set("*", 1, false, 100 * kSecond, 0);
    rules.Set("urgent", 0, true, 100 * kSecond, 0);
    ThrottleFacts facts = Quiet();
    facts.fresh = false;
    facts.lag_us = 100 * kSecond;
    EXPECT_EQ(JudgeCheck(facts, rules.Find("urgent", 0)).code, ThrottleCode::kExempt);
    EXPECT_EQ(JudgeCheck(Quiet(), rules.Find("other", 0)).code, ThrottleCode::kDenied);
}

TEST(ThrottleRules, TheHighestShareOfThoseThatMatch)
{
    static ThrottleRules rules = {};
    rules.Set("*", 0.2, false, 100 * kSecond, 0);
    rules.Set("back*", 0.7, false, 100 * kSecond, 0);
    EXPECT_EQ(rules.Find("backfill", 0)->ratio, 0.7);
    EXPECT_EQ(rules.Find("migrate", 0)->ratio, 0.2);
}

TEST(ThrottleRules, TheyEnd)
{
    static ThrottleRules rules = {};
    rules.Set("a", 1, false, 10 * kSecond, 0);
    EXPECT_NE(rules.Find("a", 10 * kSecond - 1), nullptr);
    EXPECT_EQ(rules.Find("a", 10 * kSecond), nullptr);
    rules.Set("b", 1, false, 20 * kSecond, 11 * kSecond); // takes its place
    EXPECT_EQ(rules.count.load(), 1U);
    EXPECT_FALSE(rules.Drop("a"));
    EXPECT_TRUE(rules.Drop("b"));
    EXPECT_EQ(rules.count.load(), 0U);
}

TEST(ThrottleRules, NoMoreThanThereIsRoomFor)
{
    static ThrottleRules rules = {};
    for (uint32_t i = 0; i < kMaxThrottleRules; i++)
        ASSERT_TRUE(rules.Set(std::to_string(i).c_str(), 1, false, 10 * kSecond, 0));
    EXPECT_FALSE(rules.Set("one more", 1, false, 10 * kSecond, 0));
    EXPECT_TRUE(rules.Set("7", 0.5, false, 10 * kSecond, 0));                 // is there already
    EXPECT_TRUE(rules.Set("one more", 1, false, 30 * kSecond, 20 * kSecond)); // all others have ended
    EXPECT_EQ(rules.count.load(), 1U);
}

} // namespace
} // namespace weir
