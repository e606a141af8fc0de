#include "stats/top_counts.hpp"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace weir
{
namespace
{

class TopCountsTest : public testing::Test
{
  protected:
    void Add(const std::string &name, uint32_t times = 1)
    {
        for (uint32_t i = 0; i < times; i++)
            counts_->Add(name.c_str());
        total_ += times;
    }

    const TopCount *Find(const std::string &name) const
    {
        for (const TopCount &entry : counts_->entries)
            if (entry.count > 0 && name == entry.name)
                return &entry;
        return nullptr;
    }

    std::vector<std::string> Top(uint32_t n) const
    {
        uint32_t indexes[kTopCounts + 1];
        for (uint32_t &index : indexes)
            index = 999;
        const uint32_t count = counts_->Top(n, indexes);
        EXPECT_LE(count, n);
        EXPECT_EQ(indexes[count], 999u) << "writes past what it returns";
        std::vector<std::string> names;
        for (uint32_t i = 0; i < count; i++)
            names.emplace_back(counts_->entries[indexes[i]].name);
        return names;
    }

    using Names = std::vector<std::string>;

    std::unique_ptr<TopCounts> counts_ = std::make_unique<TopCounts>();
    uint64_t total_ = 0;
};

TEST_F(TopCountsTest, ZeroesAreAnEmptyOne)
{
    EXPECT_EQ(Top(3), Names{});
    EXPECT_EQ(Find(""), nullptr);
}

TEST_F(TopCountsTest, FewDifferentStringsAreCountedExactly)
{
    for (uint32_t i = 0; i < kTopCounts; i++)
        Add("role " + std::to_string(i), i + 1);
    for (uint32_t i = 0; i < kTopCounts; i++) {
        const TopCount *entry = Find("role " + std::to_string(i));
        ASSERT_NE(entry, nullptr) << i;
        EXPECT_EQ(entry->count, i + 1);
        EXPECT_EQ(entry->error, 0u);
    }
    EXPECT_EQ(Top(3), (Names{"role 15", "role 14", "role 13"}));
    EXPECT_EQ(Top(kTopCounts).back(), "role 0");
}

TEST_F(TopCountsTest, TopGivesWhatThereIsAndNoMoreThanAskedFor)
{
    Add("a");
    Add("b", 3);
    Add("c", 2);
    EXPECT_EQ(Top(0), Names{});
    EXPECT_EQ(Top(1), Names{"b"});
    EXPECT_EQ(Top(2), (Names{"b", "c"}));
    EXPECT_EQ(Top(kTopCounts), (Names{"b", "c", "a"}));
}

TEST_F(TopCountsTest, EqualOnesStayInTheirOrder)
{
    for (const char *name : {"a", "b", "c", "d"})
        Add(name, 2);
    EXPECT_EQ(Top(3), (Names{"a", "b", "c"}));
}

TEST_F(TopCountsTest, EmptyAndNullAreOneName)
{
    Add("", 2);
    counts_->Add(nullptr);
    Add("a");
    ASSERT_NE(Find(""), nullptr);
    EXPECT_EQ(Find("")->count, 3u);
    EXPECT_EQ(Top(3), (Names{"", "a"}));
}

TEST_F(TopCountsTest, OneNameInAnotherIsAnother)
{
    Add("abc");
    Add("ab");
    Add("abcd");
    EXPECT_EQ(Top(9).size(), 3u);
}

// The newcomer takes the smallest entry over, and says by how much it may be wrong.
TEST_F(TopCountsTest, AFullTableTradesTheSmallest)
{
    for (uint32_t i = 0; i < kTopCounts; i++)
        Add("role " + std::to_string(i), 10 + i);
    Add("new");
    EXPECT_EQ(Find("role 0"), nullptr);
    ASSERT_NE(Find("new"), nullptr);
    EXPECT_EQ(Find("new")->count, 11u);
    EXPECT_EQ(Find("new")->error, 10u);
    EXPECT_EQ(Find("new")->AtLeast(), 1u);
    EXPECT_EQ(Top(kTopCounts).back(), "new") << "what is certain comes first";
}

// A longer name is gone with its entry: nothing of it is left behind a shorter one.
TEST_F(TopCountsTest, AnEntryTakenOverKeepsNothingOfTheOldName)
{
    for (uint32_t i = 0; i < kTopCounts; i++)
        Add("a rather long name " + std::to_string(i));
    Add("x");
    Add("x");
    ASSERT_NE(Find("x"), nullptr);
    EXPECT_EQ(Find("x")->AtLeast(), 2u);
    const char zeroes[kTopNameSize] = {};
    EXPECT_EQ(memcmp(Find("x")->name + 1, zeroes, kTopNameSize - 1), 0);
}

TEST_F(TopCountsTest, ClearEmpties)
{
    Add("a", 5);
    counts_->Clear();
    EXPECT_EQ(Top(3), Names{});
    Add("b");
    EXPECT_EQ(Top(3), Names{"b"});
    EXPECT_EQ(Find("b")->error, 0u);
}

// What the paper promises, against exact counts.
TEST_F(TopCountsTest, TheBoundsHoldInAnyStream)
{
    std::mt19937 random(7);
    for (int round = 0; round < 50; round++) {
        counts_->Clear();
        total_ = 0;
        std::map<std::string, uint64_t> exact;
        std::geometric_distribution<uint32_t> skewed(0.02 + 0.01 * round);
        std::uniform_int_distribution<uint32_t> uniform(0, 200);
        for (int i = 0; i < 3000; i++) {
            const std::string name = std::to_string(i % 3 == 0 ? 1000 + uniform(random) : skewed(random));
            Add(name);
            exact[name]++;
        }
        uint64_t sum = 0;
        for (const TopCount &entry : counts_->entries) {
            sum += entry.count;
            EXPECT_LE(entry.AtLeast(), exact[entry.name]);
            EXPECT_GE(entry.count, exact[entry.name]);
            EXPECT_LE(entry.error, total_ / kTopCounts);
        }
        EXPECT_EQ(sum, total_);
        for (const auto &[name, count] : exact) {
            if (count > total_ / kTopCounts) {
                EXPECT_NE(Find(name), nullptr) << name << " came " << count << " times";
            }
        }
    }
}

// Without anybody who stands out, nobody is said to: by `count` each would have come 625 times.
TEST_F(TopCountsTest, AStreamOfDifferentNamesBoastsOfNone)
{
    for (int i = 0; i < 10000; i++)
        Add("address " + std::to_string(i));
    for (const std::string &name : Top(3))
        EXPECT_EQ(Find(name)->AtLeast(), 1u);
    EXPECT_EQ(Find("address 9999")->count, 625u);
}

TEST_F(TopCountsTest, TheLongestNameThatFitsIsKeptWhole)
{
    const std::string name(kTopNameSize - 1, 'n');
    Add(name);
    EXPECT_EQ(Top(1), Names{name});
}

TEST_F(TopCountsTest, LongNamesAreCutAndCountedTogether)
{
    const std::string kept(kTopNameSize - 1, 'n');
    Add(kept + "a");
    Add(kept + "b, and so on");
    Add(kept);
    Add(kept + std::string(100000, 'z'));
    EXPECT_EQ(Top(9), Names{kept});
    EXPECT_EQ(Find(kept)->count, 4u);
}

TEST_F(TopCountsTest, NoCharacterIsCutInTwo)
{
    for (const char *character : {"\xc3\xa4", "\xe2\x82\xac", "\xf0\x9f\x90\x98"}) {
        const size_t size = strlen(character);
        // Its first byte at 63 - size: it ends at the border, and fits.
        const std::string fits = std::string(kTopNameSize - 1 - size, 'n') + character;
        counts_->Clear();
        Add(fits + "x");
        EXPECT_EQ(Top(9), Names{fits});
        for (size_t missing = 1; missing <= size; missing++) {
            const std::string before(kTopNameSize - 1 - size + missing, 'n');
            counts_->Clear();
            Add(before + character + "x");
            EXPECT_EQ(Top(9), Names{before}) << size << " bytes, " << missing << " too many";
        }
    }
}

// Not UTF-8: it must be cut somewhere.
TEST_F(TopCountsTest, BytesWithoutCharactersAreCutAtTheEnd)
{
    Add(std::string(200, '\x80'));
    EXPECT_EQ(Top(9), Names{std::string(kTopNameSize - 1, '\x80')});
    counts_->Clear();
    Add("n" + std::string(200, '\x80'));
    EXPECT_EQ(Top(9), Names{"n" + std::string(kTopNameSize - 2, '\x80')});
}

} // namespace
} // namespace weir
