// How many clients do something at once.

#include "coalesce/company.hpp"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace
{

using namespace weir;

TEST(Company, OneAloneIsOne)
{
    Company company = {};
    for (int i = 0; i < 100; i++) {
        EXPECT_EQ(company.Join(), 1u);
        company.Leave();
    }
}

TEST(Company, ThePeakLastsAndFades)
{
    Company company = {};
    for (uint32_t i = 1; i <= 40; i++)
        EXPECT_EQ(company.Join(), i);
    for (int i = 0; i < 40; i++)
        company.Leave();
    // The next round still sees it...
    uint32_t peak = company.Join();
    EXPECT_GE(peak, 30u);
    company.Leave();
    // ... and one who stays alone is alone after a while.
    int arrivals = 0;
    for (; peak > 1; arrivals++) {
        peak = company.Join();
        company.Leave();
        ASSERT_LT(arrivals, 1000);
    }
    EXPECT_GT(arrivals, 100);
}

TEST(Company, ThreadsAreCounted)
{
    Company company = {};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++)
        threads.emplace_back([&company] {
            for (int j = 0; j < 10000; j++) {
                EXPECT_LE(company.Join(), 4u);
                company.Leave();
            }
        });
    for (std::thread &thread : threads)
        thread.join();
    EXPECT_EQ(company.present.load(), 0u);
}

} // namespace
