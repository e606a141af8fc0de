#include "coalesce/lazy_queue.hpp"

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <vector>

namespace weir
{
namespace
{

class LazyQueueTest : public testing::Test
{
  protected:
    static constexpr uint32_t kCount = 8;
    LazyQueueTest() { queue_.Attach(&pool_, links_, kCount); }

    std::vector<uint32_t> In(const LazyList &list)
    {
        std::vector<uint32_t> found;
        for (uint32_t i = LazyQueue::First(list); i != kNoLazy; i = queue_.Next(i))
            found.push_back(i);
        return found;
    }

    LazyPool pool_ = {};
    LazyLink links_[kCount] = {};
    LazyQueue queue_;
};

TEST_F(LazyQueueTest, KeepsTheOrderAndIsBounded)
{
    LazyList list = {};
    EXPECT_TRUE(queue_.IsPast(list, 0));
    for (uint32_t i = 0; i < kCount; i++)
        EXPECT_EQ(i, queue_.Push(&list, i, 10));
    EXPECT_EQ(kNoLazy, queue_.Push(&list, 9, 10)) << "full";
    EXPECT_EQ(kCount, list.count);
    EXPECT_EQ((std::vector<uint32_t>{0, 1, 2, 3, 4, 5, 6, 7}), In(list));
    queue_.Remove(&list, 3);
    queue_.Remove(&list, 0);
    queue_.Remove(&list, 7);
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 4, 5, 6}), In(list));
    EXPECT_EQ(7u, queue_.Push(&list, 1, 10)) << "the last one that became free";
    EXPECT_EQ((std::vector<uint32_t>{1, 2, 4, 5, 6, 7}), In(list));
}

TEST_F(LazyQueueTest, KnowsWhenAllUpToANumberAreGone)
{
    LazyList list = {};
    LazyList other = {};
    const uint32_t a = queue_.Push(&list, 0, 10);
    const uint32_t b = queue_.Push(&list, 0, 10);
    const uint64_t then = queue_.LastNumber();
    const uint32_t c = queue_.Push(&list, 0, 10);
    queue_.Push(&other, 0, 10);
    EXPECT_FALSE(queue_.IsPast(list, then));
    queue_.Remove(&list, b);
    EXPECT_FALSE(queue_.IsPast(list, then));
    queue_.Remove(&list, a);
    EXPECT_TRUE(queue_.IsPast(list, then)) << "those that came later do not count";
    EXPECT_FALSE(queue_.IsPast(list, queue_.LastNumber()));
    queue_.Remove(&list, c);
    EXPECT_TRUE(queue_.IsPast(list, queue_.LastNumber()));
    EXPECT_EQ(1u, other.count);
}

TEST_F(LazyQueueTest, IsRightWhateverComes)
{
    std::mt19937 random(1);
    LazyList lists[2] = {};
    std::list<uint32_t> expected[2];
    for (int step = 0; step < 20000; step++) {
        const size_t which = random() % 2;
        std::list<uint32_t> &of = expected[which];
        if (random() % 2 == 0) {
            const uint32_t index = queue_.Push(&lists[which], 0, 0);
            const bool full = expected[0].size() + expected[1].size() == kCount;
            ASSERT_EQ(full, index == kNoLazy);
            if (!full)
                of.push_back(index);
        } else if (!of.empty()) {
            auto at = of.begin();
            std::advance(at, random() % of.size());
            queue_.Remove(&lists[which], *at);
            of.erase(at);
        }
        ASSERT_EQ(std::vector<uint32_t>(of.begin(), of.end()), In(lists[which]));
        ASSERT_EQ(of.size(), lists[which].count);
    }
}

TEST(LazySession, MayGoOnWithOneTableOnly)
{
    LazySession session = {};
    EXPECT_TRUE(session.Admits(1, 100));
    EXPECT_TRUE(session.Admits(1, 100));
    EXPECT_FALSE(session.Admits(1, 200));
    EXPECT_FALSE(session.Admits(1, 100)) << "it comes after the one that waits";
    EXPECT_TRUE(session.Admits(2, 200));
}

} // namespace
} // namespace weir
