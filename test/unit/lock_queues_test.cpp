#include "admission/lock_queues.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace weir
{
namespace
{

uint32_t Queues(std::vector<LockWait> waits)
{
    return CountLockQueues(waits.data(), static_cast<uint32_t>(waits.size()));
}

TEST(LockQueues, NobodyWaits)
{
    EXPECT_EQ(Queues({}), 0U);
}

TEST(LockQueues, OneHotRow)
{
    // One waits for the owner's transaction, the others for the row that this one is about to have.
    EXPECT_EQ(Queues({{100, 101}, {0, 102}, {0, 103}}), 1U);
}

TEST(LockQueues, ManyWaitForOneTransaction)
{
    EXPECT_EQ(Queues({{100, 101}, {100, 102}, {100, 103}}), 1U);
}

TEST(LockQueues, SeveralRows)
{
    EXPECT_EQ(Queues({{100, 101}, {200, 201}, {300, 301}, {0, 302}, {200, 202}}), 3U);
}

TEST(LockQueues, WhoIsBlockedItselfIsNoEndOfAQueue)
{
    // 201 holds a row that 301 and 302 wait for, and waits for 100 like 101.
    EXPECT_EQ(Queues({{201, 301}, {100, 101}, {201, 302}, {100, 201}}), 1U);
}

TEST(LockQueues, WhoHasNoTransactionIsNotWaitedFor)
{
    EXPECT_EQ(Queues({{100, 0}, {200, 0}, {0, 0}}), 2U);
}

} // namespace
} // namespace weir
