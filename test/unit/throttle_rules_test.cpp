// What weir.check_throttle() answers, and the rules for some applications.

#include "replicas/throttle_rules.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
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

ThrottleRuleSpec Rule(const char *pattern, double ratio, bool exempt, int64_t expires_us)
{
    ThrottleRuleSpec spec = {};
    strncpy(spec.pattern, pattern, kThrottleAppSize - 1);
    spec.ratio = ratio;
    spec.expires_us = expires_us;
    spec.exempt = exempt;
    return spec;
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
    ASSERT_TRUE(rules.Set(Rule("job*", 0.3, false, 100 * kSecond), 0));
    ThrottleRule *rule = rules.Find("job1", 0);
    ASSERT_NE(rule, nullptr);
    int denied = 0;
    for (int i = 0; i < 1000; i++)
        denied += JudgeCheck(Quiet(), rule).code == ThrottleCode::kDenied ? 1 : 0;
    EXPECT_NEAR(denied, 300, 1);
    EXPECT_EQ(rule->checks.load(), 1000U);
    EXPECT_EQ(rule->denied.load(), static_cast<uint64_t>(denied));
    rules.Set(Rule("job*", 1, false, 100 * kSecond), 0);
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(JudgeCheck(Quiet(), rule).code, ThrottleCode::kDenied);
    rules.Set(Rule("job*", 0, false, 100 * kSecond), 0);
    EXPECT_EQ(JudgeCheck(Quiet(), rule).code, ThrottleCode::kOk);
    EXPECT_EQ(rules.count.load(), 1U);
}

TEST(ThrottleRules, AnExemptionWinsOverEverything)
{
    static ThrottleRules rules = {};
    rules.Set(Rule("*", 1, false, 100 * kSecond), 0);
    rules.Set(Rule("urgent", 0, true, 100 * kSecond), 0);
    ThrottleFacts facts = Quiet();
    facts.fresh = false;
    facts.lag_us = 100 * kSecond;
    EXPECT_EQ(JudgeCheck(facts, rules.Find("urgent", 0)).code, ThrottleCode::kExempt);
    EXPECT_EQ(JudgeCheck(Quiet(), rules.Find("other", 0)).code, ThrottleCode::kDenied);
}

TEST(ThrottleRules, TheHighestShareOfThoseThatMatch)
{
    static ThrottleRules rules = {};
    rules.Set(Rule("*", 0.2, false, 100 * kSecond), 0);
    rules.Set(Rule("back*", 0.7, false, 100 * kSecond), 0);
    EXPECT_EQ(rules.Find("backfill", 0)->ratio, 0.7);
    EXPECT_EQ(rules.Find("migrate", 0)->ratio, 0.2);
}

TEST(ThrottleRules, TheyEnd)
{
    static ThrottleRules rules = {};
    rules.Set(Rule("a", 1, false, 10 * kSecond), 0);
    EXPECT_NE(rules.Find("a", 10 * kSecond - 1), nullptr);
    EXPECT_EQ(rules.Find("a", 10 * kSecond), nullptr);
    rules.Set(Rule("b", 1, false, 20 * kSecond), 11 * kSecond); // takes its place
    EXPECT_EQ(rules.count.load(), 1U);
    EXPECT_FALSE(rules.Drop("a"));
    EXPECT_TRUE(rules.Drop("b"));
    EXPECT_EQ(rules.count.load(), 0U);
}

TEST(ThrottleRules, NoMoreThanThereIsRoomFor)
{
    static ThrottleRules rules = {};
    for (uint32_t i = 0; i < kMaxThrottleRules; i++)
        ASSERT_TRUE(rules.Set(Rule(std::to_string(i).c_str(), 1, false, 10 * kSecond), 0));
    EXPECT_FALSE(rules.Set(Rule("one more", 1, false, 10 * kSecond), 0));
    EXPECT_TRUE(rules.Set(Rule("7", 0.5, false, 10 * kSecond), 0));                 // is there already
    EXPECT_TRUE(rules.Set(Rule("one more", 1, false, 30 * kSecond), 20 * kSecond)); // all others have ended
    EXPECT_EQ(rules.count.load(), 1U);
}

// ---- the file

struct RuleFile {
    char bytes[kThrottleFileMaxSize];
    size_t size;
    ThrottleRuleSpec specs[kMaxThrottleRules];
    uint32_t count = 77;

    const char *Read() { return ReadThrottleFile(bytes, size, specs, &count); }
};

TEST(ThrottleFile, WhatIsInForceComesBack)
{
    static ThrottleRules rules = {};
    rules.Set(Rule("job*", 0.3, false, 100 * kSecond), 0);
    rules.Set(Rule(std::string(kThrottleAppSize - 1, 'x').c_str(), 0, true, 50 * kSecond), 0);
    rules.Set(Rule("over", 1, false, 5 * kSecond), 0);
    RuleFile file;
    const uint32_t count = rules.Copy(file.specs, 10 * kSecond);
    ASSERT_EQ(count, 2U);
    file.size = WriteThrottleFile(file.specs, count, file.bytes);
    memset(static_cast<void *>(file.specs), 1, sizeof(file.specs));
    ASSERT_EQ(file.Read(), nullptr);
    ASSERT_EQ(file.count, 2U);
    EXPECT_STREQ(file.specs[0].pattern, "job*");
    EXPECT_EQ(file.specs[0].ratio, 0.3);
    EXPECT_EQ(file.specs[0].expires_us, 100 * kSecond);
    EXPECT_EQ(file.specs[1].exempt, 1U);
    file.size = WriteThrottleFile(nullptr, 0, file.bytes);
    EXPECT_EQ(file.Read(), nullptr);
    EXPECT_EQ(file.count, 0U);
}

TEST(ThrottleFile, OneThatIsDamagedIsRefused)
{
    RuleFile good;
    good.specs[0] = Rule("a", 0.5, false, kSecond);
    good.specs[1] = Rule("b", 0, true, kSecond);
    good.size = WriteThrottleFile(good.specs, 2, good.bytes);
    for (size_t i = 0; i < good.size; i++) {
        RuleFile file = good;
        file.bytes[i] ^= 4;
        EXPECT_NE(file.Read(), nullptr) << "byte " << i;
        EXPECT_EQ(file.count, 0U);
        file = good;
        file.size = i;
        EXPECT_NE(file.Read(), nullptr) << "the first " << i << " bytes";
    }
    const auto refused = [&](const ThrottleRuleSpec &spec) {
        RuleFile file;
        file.size = WriteThrottleFile(&spec, 1, file.bytes);
        return file.Read() != nullptr;
    };
    EXPECT_FALSE(refused(Rule("a", 1, false, kSecond)));
    EXPECT_TRUE(refused(Rule("", 1, false, kSecond)));
    EXPECT_TRUE(refused(Rule("a", 1.1, false, kSecond)));
    EXPECT_TRUE(refused(Rule("a", -0.1, false, kSecond)));
    EXPECT_TRUE(refused(Rule("a", std::nan(""), false, kSecond)));
    ThrottleRuleSpec spec = Rule("a", 1, false, kSecond);
    spec.exempt = 2;
    EXPECT_TRUE(refused(spec));
    spec = Rule("a", 1, false, kSecond);
    spec.pattern[5] = 'x';
    EXPECT_TRUE(refused(spec));
    memset(spec.pattern, 'x', sizeof(spec.pattern));
    EXPECT_TRUE(refused(spec)) << "its pattern has no end";
}

} // namespace
} // namespace weir
