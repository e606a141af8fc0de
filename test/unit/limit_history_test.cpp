#include "admission/limit_history.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>

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
        sample.reason = static_cast<AdaptiveReason>(n % 3);
        sample.active = sample.running = sample.lock_waiting = sample.lock_queues = static_cast<float>(n);
        sample.waiting = sample.admitted_per_second = sample.oldest_wait_ms = static_cast<float>(n);
        return sample;
    }

    static bool IsRow(const LimitSample &sample, uint64_t n)
    {
        const LimitSample row = Row(n);
        return sample.at_us == row.at_us && sample.limit == row.limit && sample.reason == row.reason &&
               sample.active == row.active && sample.running == row.running &&
               sample.lock_waiting == row.lock_waiting && sample.lock_queues == row.lock_queues &&
               sample.waiting == row.waiting && sample.admitted_per_second == row.admitted_per_second &&
               sample.oldest_wait_ms == row.oldest_wait_ms;
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
            EXPECT_TRUE(IsRow(copy_[i], n)) << n;
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

// One writes without a pause, which the launcher does not: the reader meets it everywhere.
TEST_F(LimitHistoryTest, AReaderGetsWholeRowsInOrderWhileOneWrites)
{
    std::atomic<bool> stop{false};
    std::thread writer([&] {
        while (!stop.load())
            Push(1);
    });
    while (history_->written.load() == 0)
        std::this_thread::yield();
    uint32_t copies = 0; // with rows
    uint32_t torn = 0;
    for (int i = 0; i < 1000000 && copies < 1000; i++) {
        const uint32_t count = history_->Copy(copy_);
        for (uint32_t k = 0; k < count; k++)
            torn += !IsRow(copy_[k], static_cast<uint64_t>(copy_[0].at_us) + k);
        copies += count > 0;
    }
    stop.store(true);
    writer.join();
    EXPECT_EQ(torn, 0u);
    EXPECT_GT(copies, 0u);
    ExpectNewest(static_cast<uint32_t>(next_ < kHistorySamples ? next_ : kHistorySamples - 1));
}

} // namespace
} // namespace weir
