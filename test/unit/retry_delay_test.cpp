#include "admission/retry_delay.hpp"

#include <gtest/gtest.h>

namespace weir
{
namespace
{

TEST(RetryDelay, GrowsWithTheQueueAndFallsWithThePace)
{
    EXPECT_DOUBLE_EQ(RetryDelay(9, 10, 60, 0.5), 1);
    EXPECT_DOUBLE_EQ(RetryDelay(99, 10, 60, 0.5), 10);
    EXPECT_DOUBLE_EQ(RetryDelay(99, 100, 60, 0.5), 1);
    for (uint32_t ahead = 1; ahead < 500; ahead++)
        EXPECT_GT(RetryDelay(ahead, 10, 60, 0.5), RetryDelay(ahead - 1, 10, 60, 0.5)) << ahead;
}

TEST(RetryDelay, IsSpreadByAHalfEitherWay)
{
    EXPECT_DOUBLE_EQ(RetryDelay(99, 10, 60, 0), 5);
    EXPECT_DOUBLE_EQ(RetryDelay(99, 10, 60, 0.999), 14.99);
    EXPECT_DOUBLE_EQ(RetryDelay(99, 0, 60, 0), 0.5);
    EXPECT_DOUBLE_EQ(RetryDelay(0, 0, 60, 0.5), 1);
}

TEST(RetryDelay, IsNeitherZeroNorLongerThanTheTimeout)
{
    EXPECT_DOUBLE_EQ(RetryDelay(0, 1e9, 60, 0.5), kShortestRetryS);
    EXPECT_DOUBLE_EQ(RetryDelay(UINT32_MAX, 10, 60, 0.5), 60);
    EXPECT_DOUBLE_EQ(RetryDelay(100, 1e-300, 30, 0.5), 30);
    EXPECT_DOUBLE_EQ(RetryDelay(100, 1, 0.001, 0.5), kShortestRetryS);
}

} // namespace
} // namespace weir
