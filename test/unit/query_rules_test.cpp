#include "admission/query_rules.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace weir
{
namespace
{

constexpr int64_t kNow = 1'000'000;

QueryRuleSpec MakeSpec(uint64_t query_id, uint32_t max_active, int64_t expires_at = kNeverExpires,
                       const std::string &reason = "")
{
    QueryRuleSpec spec = {};
    spec.query_id = query_id;
    spec.created_at = kNow;
    spec.expires_at = expires_at;
    spec.max_active = max_active;
    spec.reason_length = static_cast<uint32_t>(reason.size());
    memcpy(spec.reason, reason.data(), reason.size());
    return spec;
}

class QueryRules : public testing::Test
{
  protected:
    RuleJudgement Judge(uint64_t query_id, int64_t now = kNow, bool take_place = true)
    {
        RuleJudgement judgement = {};
        JudgeQuery(rules_.get(), query_id, now, take_place, &judgement);
        return judgement;
    }
    RuleVerdict Verdict(uint64_t query_id, int64_t now = kNow) { return Judge(query_id, now).verdict; }
    bool Set(const QueryRuleSpec &spec) { return SetRule(rules_.get(), spec); }

    QueryRuleStatus Status(uint64_t query_id)
    {
        QueryRuleStatus status;
        for (uint32_t i = 0; i < kMaxQueryRules; i++)
            if (RuleStatus(*rules_, i, kNow, &status) && status.spec.query_id == query_id)
                return status;
        ADD_FAILURE() << "no rule for " << query_id;
        return {};
    }

    std::unique_ptr<QueryRulesShared> rules_ = std::make_unique<QueryRulesShared>();
};

TEST_F(QueryRules, ZeroesAreAnEmptyTable)
{
    EXPECT_EQ(rules_->count, 0u);
    EXPECT_FALSE(MayHaveRule(*rules_, 7));
    EXPECT_EQ(Verdict(7), RuleVerdict::kNone);
    EXPECT_FALSE(DropRule(rules_.get(), 7));
}

TEST_F(QueryRules, LimitLetsThatManyRunAtOnce)
{
    Set(MakeSpec(7, 2));
    EXPECT_TRUE(MayHaveRule(*rules_, 7));
    EXPECT_EQ(Verdict(8), RuleVerdict::kNone);

    const RuleJudgement first = Judge(7);
    EXPECT_EQ(first.verdict, RuleVerdict::kRun);
    EXPECT_EQ(Verdict(7), RuleVerdict::kRun);
    EXPECT_EQ(Verdict(7, kNow + 5), RuleVerdict::kRefuse);
    LeavePlace(rules_.get(), first.place);
    EXPECT_EQ(Status(7).active, 1u);
    EXPECT_EQ(Verdict(7), RuleVerdict::kRun);

    const QueryRuleStatus status = Status(7);
    EXPECT_EQ(status.active, 2u);
    EXPECT_EQ(status.hits, 4u);
    EXPECT_EQ(status.refused, 1u);
    EXPECT_EQ(status.last_refused_at, kNow + 5);
}

TEST_F(QueryRules, BlockedRunsNotOnceAndTellsWhy)
{
    Set(MakeSpec(7, kBlocked, kNeverExpires, "takes an hour"));
    const RuleJudgement judgement = Judge(7);
    EXPECT_EQ(judgement.verdict, RuleVerdict::kRefuse);
    EXPECT_EQ(judgement.spec.max_active, kBlocked);
    EXPECT_EQ(std::string(judgement.spec.reason, judgement.spec.reason_length), "takes an hour");
    EXPECT_EQ(Status(7).active, 0u);
}

TEST_F(QueryRules, WithoutAPlaceTheLimitIsStillAsked)
{
    Set(MakeSpec(7, 1));
    EXPECT_EQ(Judge(7, kNow, false).verdict, RuleVerdict::kRun);
    EXPECT_EQ(Status(7).active, 0u);
    Judge(7);
    EXPECT_EQ(Judge(7, kNow, false).verdict, RuleVerdict::kRefuse);
}

TEST_F(QueryRules, ReplacingKeepsCountersAndPlaces)
{
    Set(MakeSpec(7, 1));
    const RuleJudgement judgement = Judge(7);
    Judge(7);
    Set(MakeSpec(7, 3, kNeverExpires, "new"));
    EXPECT_EQ(rules_->count, 1u);
    const QueryRuleStatus status = Status(7);
    EXPECT_EQ(status.spec.max_active, 3u);
    EXPECT_EQ(status.active, 1u);
    EXPECT_EQ(status.hits, 2u);
    EXPECT_EQ(status.refused, 1u);
    LeavePlace(rules_.get(), judgement.place);
    EXPECT_EQ(Status(7).active, 0u);
}

// The entry is reused at once, by another query and by the same.
TEST_F(QueryRules, APlaceUnderADroppedRuleIsNobodyElses)
{
    for (const uint64_t next : {UINT64_C(8), UINT64_C(7)}) {
        Set(MakeSpec(7, 5));
        const RulePlace old = Judge(7).place;
        ASSERT_TRUE(DropRule(rules_.get(), 7));
        Set(MakeSpec(next, 5));
        const RulePlace place = Judge(next).place;
        ASSERT_EQ(place.rule, old.rule);
        LeavePlace(rules_.get(), old);
        const QueryRuleStatus status = Status(next);
        EXPECT_EQ(status.active, 1u);
        EXPECT_EQ(status.hits, 1u);
        EXPECT_EQ(status.refused, 0u);
        DropRule(rules_.get(), next);
    }
}

TEST_F(QueryRules, LeavingTwiceDoesNotUnderflow)
{
    Set(MakeSpec(7, 1));
    const RulePlace place = Judge(7).place;
    LeavePlace(rules_.get(), place);
    LeavePlace(rules_.get(), place);
    EXPECT_EQ(Status(7).active, 0u);
    EXPECT_EQ(Verdict(7), RuleVerdict::kRun);
}

TEST_F(QueryRules, ExpiredIsNotInForceFromThatMomentOn)
{
    Set(MakeSpec(7, kBlocked, kNow + 10));
    Set(MakeSpec(8, kBlocked));
    EXPECT_EQ(Verdict(7, kNow + 9), RuleVerdict::kRefuse);
    EXPECT_EQ(Verdict(7, kNow + 10), RuleVerdict::kExpired);

    QueryRuleSpec copy[kMaxQueryRules];
    EXPECT_EQ(CopyRules(*rules_, kNow + 9, copy), 2u);
    ASSERT_EQ(CopyRules(*rules_, kNow + 10, copy), 1u);
    EXPECT_EQ(copy[0].query_id, 8u);

    EXPECT_EQ(SweepRules(rules_.get(), kNow + 9), 0u);
    EXPECT_EQ(SweepRules(rules_.get(), kNow + 10), 1u);
    EXPECT_EQ(rules_->count, 1u);
    EXPECT_EQ(Verdict(7, kNow + 10), RuleVerdict::kNone);
    EXPECT_EQ(Verdict(8, kNow + 10), RuleVerdict::kRefuse);
}

TEST_F(QueryRules, FullTableTakesNoMoreButReplaces)
{
    for (uint64_t id = 1; id <= kMaxQueryRules; id++)
        ASSERT_TRUE(Set(MakeSpec(id, 1)));
    EXPECT_FALSE(Set(MakeSpec(kMaxQueryRules + 1, 1)));
    EXPECT_TRUE(Set(MakeSpec(kMaxQueryRules, kBlocked)));
    EXPECT_EQ(rules_->count, kMaxQueryRules);
    DropRule(rules_.get(), 3);
    EXPECT_TRUE(Set(MakeSpec(kMaxQueryRules + 1, 1)));
}

// Of these every second wants the same place of the index: the multiplier's inverse undoes the hash.
uint64_t HalfColliding(uint64_t n)
{
    uint64_t inverse = 1;
    for (int i = 0; i < 6; i++)
        inverse *= 2 - UINT64_C(0x9E3779B97F4A7C15) * inverse;
    return n % 2 == 0 ? inverse * n : n;
}

// Whatever the order of making and dropping, exactly the rules that are there are found.
TEST_F(QueryRules, IndexFindsWhatIsThere)
{
    constexpr uint64_t kIds = 300;
    bool there[kIds + 1] = {};
    uint32_t seed = 1;
    for (int i = 0; i < 5000; i++) {
        seed = seed * 1664525 + 1013904223;
        const uint64_t n = 1 + (seed >> 8) % kIds;
        const bool full = rules_->count == kMaxQueryRules;
        if (there[n])
            EXPECT_TRUE(DropRule(rules_.get(), HalfColliding(n)));
        else
            EXPECT_EQ(Set(MakeSpec(HalfColliding(n), 1)), !full);
        there[n] = !there[n] && !full;
        if (i % 100 != 0)
            continue;
        const auto unused = std::count(std::begin(rules_->index), std::end(rules_->index), 0);
        ASSERT_EQ(kRuleIndexSize - unused, rules_->count) << "probes would grow";
        for (uint64_t k = 1; k <= kIds; k++)
            ASSERT_EQ(MayHaveRule(*rules_, HalfColliding(k)), there[k]) << k;
    }
}

TEST_F(QueryRules, AWriterAtWorkIsBusyNotNone)
{
    Set(MakeSpec(7, 1));
    rules_->version.fetch_add(1);
    EXPECT_TRUE(MayHaveRule(*rules_, 8));
    EXPECT_EQ(Verdict(8), RuleVerdict::kBusy);
    EXPECT_EQ(Verdict(7), RuleVerdict::kBusy);
}

// Readers come and go while a writer drops, makes and replaces: the limit holds, a rule that stays is always
// seen, and nothing is left behind.
TEST_F(QueryRules, ReadersAgainstAWriter)
{
    constexpr uint32_t kLimit = 2;
    constexpr int kReaders = 4;
    std::atomic<bool> done{false};
    std::atomic<int> running{0}, most{0}, lost{0}, torn{0};
    Set(MakeSpec(1, kLimit));
    Set(MakeSpec(2, kBlocked, kNeverExpires, std::string(200, 'a')));

    std::vector<std::thread> readers;
    for (int i = 0; i < kReaders; i++)
        readers.emplace_back([&] {
            for (int n = 0; n < 5000; n++) {
                const RuleJudgement limited = Judge(1);
                if (limited.verdict == RuleVerdict::kRun) {
                    const int now = running.fetch_add(1) + 1;
                    int seen = most.load();
                    while (seen < now && !most.compare_exchange_weak(seen, now)) {
                    }
                    running.fetch_sub(1);
                    LeavePlace(rules_.get(), limited.place);
                } else if (limited.verdict == RuleVerdict::kNone) {
                    lost++;
                }
                const RuleJudgement blocked = Judge(2);
                if (blocked.verdict == RuleVerdict::kNone)
                    lost++;
                if (blocked.verdict == RuleVerdict::kRefuse) {
                    const std::string reason(blocked.spec.reason, blocked.spec.reason_length);
                    if (reason != std::string(200, 'a') && reason != std::string(200, 'b'))
                        torn++;
                }
                const RuleJudgement unsteady = Judge(3 + n % 5);
                if (unsteady.verdict == RuleVerdict::kRun)
                    LeavePlace(rules_.get(), unsteady.place);
            }
        });
    std::thread writer([&] {
        for (uint64_t n = 0; !done; n++) {
            const uint64_t id = 3 + n % 5;
            Set(MakeSpec(id, 1));
            Set(MakeSpec(2, kBlocked, kNeverExpires, std::string(200, n % 2 == 0 ? 'a' : 'b')));
            Set(MakeSpec(3 + (n + 2) % 5, 5, kNow));
            if (n % 3 == 0)
                SweepRules(rules_.get(), kNow);
            DropRule(rules_.get(), id);
        }
    });
    for (std::thread &reader : readers)
        reader.join();
    done = true;
    writer.join();

    EXPECT_EQ(lost, 0);
    EXPECT_EQ(torn, 0);
    EXPECT_LE(most, static_cast<int>(kLimit));
    for (uint32_t i = 0; i < kMaxQueryRules; i++)
        EXPECT_EQ(static_cast<uint32_t>(rules_->rules[i].word.load()), 0u) << i;
    EXPECT_EQ(Status(1).active, 0u);
}

// ---- the file

TEST(QueryRuleFile, ChecksumIsThatOfTheStandard)
{
    EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
    EXPECT_EQ(Crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu); // RFC 3720, B.4
    EXPECT_EQ(Crc32c("", 0), 0u);
}

std::string FileOf(const std::vector<QueryRuleSpec> &specs)
{
    static char bytes[kRuleFileMaxSize];
    const size_t size = WriteRuleFile(specs.data(), static_cast<uint32_t>(specs.size()), bytes);
    return std::string(bytes, size);
}

// What a file that holds these bytes, with a good checksum, is said to be.
std::string TroubleOf(std::string bytes, bool mend_sum = true)
{
    static QueryRuleSpec specs[kMaxQueryRules];
    uint32_t count = 99;
    if (mend_sum && bytes.size() >= sizeof(uint32_t)) {
        const uint32_t sum = Crc32c(bytes.data(), bytes.size() - sizeof(sum));
        memcpy(&bytes[bytes.size() - sizeof(sum)], &sum, sizeof(sum));
    }
    const char *trouble = ReadRuleFile(bytes.data(), bytes.size(), specs, &count);
    EXPECT_TRUE(trouble == nullptr || count == 0);
    return trouble != nullptr ? trouble : "";
}

std::string TroubleOfSpec(void (*spoil)(QueryRuleSpec *))
{
    QueryRuleSpec spec = MakeSpec(7, 1, kNow + 1, "why");
    spoil(&spec);
    return TroubleOf(FileOf({MakeSpec(8, 1), spec}));
}

TEST(QueryRuleFile, ReadsWhatItWrote)
{
    for (const uint32_t n : {0u, 1u, kMaxQueryRules}) {
        std::vector<QueryRuleSpec> specs;
        for (uint32_t i = 0; i < n; i++)
            specs.push_back(MakeSpec(UINT64_MAX - i, i % 3 == 0 ? kBlocked : kMaxRuleActive - i,
                                     i % 2 == 0 ? kNeverExpires : kNow + i, std::string(i % 201, 'r')));
        const std::string file = FileOf(specs);
        static QueryRuleSpec read[kMaxQueryRules];
        uint32_t count = 99;
        ASSERT_EQ(ReadRuleFile(file.data(), file.size(), read, &count), nullptr);
        ASSERT_EQ(count, n);
        if (n > 0) {
            EXPECT_EQ(memcmp(read, specs.data(), n * sizeof(QueryRuleSpec)), 0);
        }
    }
}

TEST(QueryRuleFile, DamageIsNamed)
{
    const std::string good = FileOf({MakeSpec(7, 1), MakeSpec(8, 2)});
    EXPECT_EQ(TroubleOf(good), "");
    EXPECT_EQ(TroubleOf(""), "it is too short");
    EXPECT_EQ(TroubleOf(good.substr(0, 19)), "it is too short");
    EXPECT_EQ(TroubleOf("p" + good.substr(1)), "it does not begin as a file of query rules");
    EXPECT_EQ(TroubleOf(good.substr(0, 8) + '\2' + good.substr(9)),
              "it is of a version that this pg_weir does not know");
    EXPECT_EQ(TroubleOf(good.substr(0, 13) + '\2' + good.substr(14)),
              "it claims more rules than there can be");
    EXPECT_EQ(TroubleOf(good.substr(0, 12) + '\1' + good.substr(13)),
              "its length does not fit its number of rules");
    EXPECT_EQ(TroubleOf(good + " "), "its length does not fit its number of rules");
    EXPECT_EQ(TroubleOf(FileOf({MakeSpec(7, 1), MakeSpec(7, 2)})), "it lists a query twice");
}

TEST(QueryRuleFile, EveryFlippedBitIsNoticed)
{
    const std::string good = FileOf({MakeSpec(7, 1, kNow + 1, "why")});
    for (size_t i = 0; i < good.size() * 8; i++) {
        std::string bad = good;
        bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << i % 8));
        EXPECT_NE(TroubleOf(bad, false), "") << i;
    }
}

TEST(QueryRuleFile, ImpossibleRulesAreRefused)
{
    const std::string impossible = "it has a rule that cannot be";
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *) {}), "");
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->query_id = 0; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->max_active = kMaxRuleActive + 1; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->reason_length = 201; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->reason_length = 2; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->reason_length = 4; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->reason[1] = '\0'; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->expires_at = s->created_at; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->expires_at = INT64_MAX - 1; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->created_at = INT64_MIN; }), impossible);
    EXPECT_EQ(TroubleOfSpec([](QueryRuleSpec *s) { s->created_at = INT64_MAX; }), impossible);
}

} // namespace
} // namespace weir
