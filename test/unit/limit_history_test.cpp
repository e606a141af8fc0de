#include "admission/limit_history.hpp"

#include <gtest/gtest.h>

#include <memory>

namespace weir
{
namespace
{

class LimitHistoryTest : public ::testing::Test
{
  protected:
    // Row n, told by every one of its fields.
    static LimitSample Row(uint64_t n)
    {
        LimitSample sample = {};
        sample.at_us = static_cast<int64_t>(n);
        sample.limit = static_cast<uint32_t>(n);
        sample.oldest_wait_ms = static_cast<float>(n);
        return sample;
    }

    void Push(uint64_t count)
    {
        for (uint64_t i = 0; i < count; i++)
            history_->Push(Row(next_++));
    }

    // The copy is the `count` newest rows, oldest first.
    void ExpectNewest(uint32_t count)
    {
        ASSERT_EQ(history_->Copy(copy_), count);
        for (uint32_t i = 0; i < count; i++) {
            const uint64_t n = next_ - count + i;
            EXPECT_EQ(copy_[i].at_us, static_cast<int64_t>(n));
            EXPECT_EQ(copy_[i].limit, n);
            EXPECT_EQ(copy_[i].oldest_wait_ms, static_cast<float>(n));
        }
    }

    std::unique_ptr<LimitHistory> history_ = std::make_unique<LimitHistory>();
    LimitSample copy_[kHistorySamples];
    uint64_t next_ = 0;
};

TEST_F(LimitHistoryTest, ANewOneIsEmpty)
{
    ExpectNewest(0);
}

TEST_F(LimitHistoryTest, RowsComeOldestFirst)
{
    Push(1);
    ExpectNewest(1);
    Push(9);
    ExpectNewest(10);
}

// The writer may be at the oldest row while it is read, so the ring shows one less than it holds.
TEST_F(LimitHistoryTest, AFullRingShowsAllButTheOldest)
{
    Push(kHistorySamples - 1);
    ExpectNewest(kHistorySamples - 1);
    Push(1);
    ExpectNewest(kHistorySamples - 1);
    Push(1);
    ExpectNewest(kHistorySamples - 1);
    Push(5 * kHistorySamples + 17);
    ExpectNewest(kHistorySamples - 1);
}

TEST_F(LimitHistoryTest, AWriterThatDiedInsideARowLeavesItUncounted)
{
    Push(2 * kHistorySamples + 5);
    history_->samples[next_ % kHistorySamples] = Row(999999);
    ExpectNewest(kHistorySamples - 1);
    Push(1);
    ExpectNewest(kHistorySamples - 1);
}

} // namespace
} // namespace weir
