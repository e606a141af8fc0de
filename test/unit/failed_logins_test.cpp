#include "admission/failed_logins.hpp"

#include <arpa/inet.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace weir
{
namespace
{

constexpr int64_t kSecond = 1000000;
constexpr int64_t kLongest = 30 * kSecond;

Address V4(uint32_t number)
{
    Address address = {AddressFamily::kV4, {}};
    for (int i = 0; i < 4; i++)
        address.bytes[i] = static_cast<uint8_t>(number >> (24 - 8 * i));
    return address;
}

Address V6(const char *text)
{
    Address address = {AddressFamily::kV6, {}};
    EXPECT_EQ(inet_pton(AF_INET6, text, address.bytes), 1) << text;
    return address;
}

class FailedLoginsTest : public testing::Test
{
  protected:
    int64_t Judge(const Address &address, uint32_t rate = 1, int64_t longest = kLongest)
    {
        return logins_->Judge(address, rate, now_, longest);
    }

    // Addresses in the set of 0.0.0.1, from number `first` on.
    static std::vector<Address> Colliding(uint32_t count, uint32_t first = 0)
    {
        std::vector<Address> addresses;
        const uint32_t set = FailedLoginSet(V4(1));
        for (uint32_t number = first; addresses.size() < count; number++)
            if (FailedLoginSet(V4(number)) == set)
                addresses.push_back(V4(number));
        return addresses;
    }

    const Address guesser_ = V4(0x0a000001);
    int64_t now_ = 800'000'000 * kSecond; // a TimestampTz of 2025
    std::unique_ptr<FailedLogins> logins_ = std::make_unique<FailedLogins>();
};

TEST_F(FailedLoginsTest, TheFirstIsAnsweredAtOnceTheNextWait)
{
    EXPECT_EQ(Judge(guesser_), 0);
    EXPECT_EQ(Judge(guesser_), kSecond);
    EXPECT_EQ(Judge(guesser_), 2 * kSecond);
    now_ += kSecond / 2;
    EXPECT_EQ(Judge(guesser_), 5 * kSecond / 2);
}

TEST_F(FailedLoginsTest, WhoSeldomFailsIsNeverHeld)
{
    for (int i = 0; i < 100; i++) {
        EXPECT_EQ(Judge(guesser_), 0);
        now_ += kSecond;
    }
}

TEST_F(FailedLoginsTest, ASecondsWorthMayComeAtOnce)
{
    for (int i = 0; i < 5; i++)
        EXPECT_EQ(Judge(guesser_, 5), 0) << i;
    EXPECT_EQ(Judge(guesser_, 5), kSecond / 5);
    EXPECT_EQ(Judge(guesser_, 5), 2 * kSecond / 5);
    now_ += 2 * kSecond; // that was served, and a second's worth is saved up: no more than that
    now_ += 3600 * kSecond;
    for (int i = 0; i < 5; i++)
        EXPECT_EQ(Judge(guesser_, 5), 0) << i;
    EXPECT_EQ(Judge(guesser_, 5), kSecond / 5);
}

// Whatever the order of arrivals: in no second are more answers heard than a burst and what the rate adds to
// it.
TEST_F(FailedLoginsTest, AnAddressHearsNoMoreThanTheRate)
{
    std::mt19937 random(7);
    for (const uint32_t rate : {1u, 3u, 10u, 7u}) {
        logins_ = std::make_unique<FailedLogins>();
        std::vector<int64_t> heard;
        for (int i = 0; i < 200; i++) {
            now_ += static_cast<int64_t>(random() % (kSecond / (2 * rate)));
            heard.push_back(now_ + Judge(guesser_, rate, 1000 * kSecond));
        }
        EXPECT_TRUE(std::is_sorted(heard.begin(), heard.end()));
        for (size_t i = 0; i + 2 * rate < heard.size(); i++)
            EXPECT_GT(heard[i + 2 * rate] - heard[i], kSecond) << rate;
        const double seconds = static_cast<double>(heard.back() - heard.front()) / kSecond;
        EXPECT_LE(199 / seconds, rate * 1.1 + rate / seconds);
    }
}

TEST_F(FailedLoginsTest, AddressesAreApart)
{
    for (int i = 0; i < 10; i++)
        Judge(guesser_);
    EXPECT_EQ(Judge(V4(0x0a000002)), 0);
}

TEST_F(FailedLoginsTest, WhatIsOneAddress)
{
    EXPECT_EQ(Judge(V6("2001:db8:1:2::1")), 0);
    EXPECT_EQ(Judge(V6("2001:db8:1:2:ffff:1:2:3")), kSecond) << "a /64 is one customer";
    EXPECT_EQ(Judge(V6("2001:db8:1:3::1")), 0);

    EXPECT_EQ(Judge(guesser_), 0);
    EXPECT_EQ(Judge(V6("::ffff:10.0.0.1")), kSecond);
    EXPECT_EQ(Judge(V6("::ffff:10.0.0.2")), 0);

    const Address local = {AddressFamily::kLocal, {}};
    const Address local_with_rest = {AddressFamily::kLocal, {1, 2, 3}};
    EXPECT_EQ(Judge(local), 0);
    EXPECT_EQ(Judge(local_with_rest), kSecond);
    EXPECT_EQ(Judge({}), 0) << "unknown is not local";
    EXPECT_EQ(Judge({}), kSecond);
}

// Also those whose bytes are the same, and whose set.
TEST_F(FailedLoginsTest, FamiliesAreApart)
{
    EXPECT_EQ(Judge(V4(0)), 0);
    EXPECT_EQ(Judge(V6("::1")), 0);
    EXPECT_EQ(Judge({AddressFamily::kLocal, {}}), 0);
    EXPECT_EQ(Judge({}), 0);

    Address v4 = V4(1);
    Address v6 = v4;
    do {
        v4.bytes[3]++;
        v6 = v4;
        v6.family = AddressFamily::kV6;
        ASSERT_NE(v4.bytes[3], 0);
    } while (FailedLoginSet(v4) != FailedLoginSet(v6));
    EXPECT_EQ(Judge(v4), 0);
    EXPECT_EQ(Judge(v6), 0);
    EXPECT_EQ(Judge(v4), kSecond);
    EXPECT_EQ(Judge(v6), kSecond);
}

TEST_F(FailedLoginsTest, NobodyIsHeldLongerThanTheCallerSays)
{
    for (int i = 0; i < 1000; i++)
        EXPECT_LE(Judge(guesser_, 1, 10 * kSecond), 10 * kSecond);
    EXPECT_EQ(Judge(guesser_, 1, 10 * kSecond), 10 * kSecond);
    EXPECT_EQ(Judge(guesser_, 1, 3 * kSecond), 3 * kSecond);
    EXPECT_EQ(Judge(guesser_, 1, 0), 0);
    EXPECT_EQ(Judge(guesser_, 1, -kSecond), 0);
    EXPECT_EQ(Judge(guesser_, 1, INT64_MIN), 0);
}

// Also where the burst alone is longer than the longest hold.
TEST_F(FailedLoginsTest, AShortLongestHoldStillHolds)
{
    for (int i = 0; i < 100; i++)
        Judge(guesser_, 10, kSecond / 2);
    EXPECT_EQ(Judge(guesser_, 10, kSecond / 2), kSecond / 2);
}

TEST_F(FailedLoginsTest, TheBacklogOfAFloodIsForgottenAfterTheLongestHold)
{
    for (int i = 0; i < 100000; i++)
        Judge(guesser_, 1, 10 * kSecond);
    now_ += 10 * kSecond;
    EXPECT_EQ(Judge(guesser_, 1, 10 * kSecond), 0);
}

// A client that lets authentication drag on until it may be held for a moment only.
TEST_F(FailedLoginsTest, WhoMayBeHeldBrieflyDoesNotShortenTheBacklog)
{
    for (int i = 0; i < 20; i++)
        Judge(guesser_);
    EXPECT_EQ(Judge(guesser_, 1, kSecond / 10), kSecond / 10);
    EXPECT_GE(Judge(guesser_), 20 * kSecond);
}

TEST_F(FailedLoginsTest, NoBoundIsNoOverflow)
{
    int64_t hold = 0;
    for (int i = 0; i < 10000; i++)
        hold = Judge(guesser_, 1, INT64_MAX);
    EXPECT_EQ(hold, kLongestHoldUs);
}

TEST_F(FailedLoginsTest, AbsurdRatesCountAsTheNearest)
{
    EXPECT_EQ(Judge(guesser_, 0), 0);
    EXPECT_EQ(Judge(guesser_, 0), kSecond);
    int64_t held = 0;
    for (uint32_t i = 0; i < kMaxFailedLoginRate; i++)
        held += Judge(V4(7), UINT32_MAX);
    EXPECT_EQ(held, 0);
    EXPECT_EQ(Judge(V4(7), UINT32_MAX), 1) << "a microsecond each";
}

// Rounded so that it is not exceeded.
TEST_F(FailedLoginsTest, ARateThatDoesNotDivideASecond)
{
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(Judge(guesser_, 3), 0);
    EXPECT_EQ(Judge(guesser_, 3), 333334);
}

TEST_F(FailedLoginsTest, TheRateMayChange)
{
    for (int i = 0; i < 10; i++)
        Judge(guesser_, 1);
    EXPECT_EQ(Judge(guesser_, 2), 10 * kSecond - kSecond / 2);
    EXPECT_EQ(Judge(guesser_, 1), 10 * kSecond + kSecond / 2);
}

// ---- A full table ----

TEST_F(FailedLoginsTest, CollisionsShareASetNotAnEntry)
{
    const std::vector<Address> addresses = Colliding(kFailedLoginWays);
    for (int64_t round = 0; round < 5; round++)
        for (const Address &address : addresses)
            EXPECT_EQ(Judge(address), round * kSecond);
}

TEST_F(FailedLoginsTest, AFullSetLosesTheOldest)
{
    const std::vector<Address> addresses = Colliding(kFailedLoginWays + 1);
    for (const Address &address : addresses) {
        EXPECT_EQ(Judge(address), 0);
        now_ += 1000;
    }
    for (uint32_t i = kFailedLoginWays; i >= 1; i--)
        EXPECT_GT(Judge(addresses[i]), 0) << i;
    EXPECT_EQ(Judge(addresses[0]), 0) << "forgotten";
}

TEST_F(FailedLoginsTest, AGuesserIsNotPushedOutByManyWhoTryOnce)
{
    const std::vector<Address> others = Colliding(2000, 1u << 24);
    const Address guesser = V4(1);
    ASSERT_EQ(FailedLoginSet(guesser), FailedLoginSet(others[0]));
    for (int i = 0; i < 10; i++)
        Judge(guesser);
    for (const Address &other : others)
        EXPECT_EQ(Judge(other), 0);
    EXPECT_EQ(Judge(guesser), 10 * kSecond);
}

TEST_F(FailedLoginsTest, MoreAddressesThanEntriesAreSurvived)
{
    for (uint32_t i = 0; i < 20 * kFailedLoginEntries; i++) {
        now_ += 10;
        EXPECT_EQ(Judge(V4(i)), 0);
    }
    // The newest have found room: all but those whose set had its fill since.
    uint32_t remembered = 0;
    for (uint32_t i = 0; i < kFailedLoginEntries / 2; i++)
        remembered += Judge(V4(20 * kFailedLoginEntries - 1 - i)) > 0;
    EXPECT_GT(remembered, kFailedLoginEntries / 2 * 9 / 10);
}

// Neighbours in a network, as an office or a data centre has them, in both families.
TEST_F(FailedLoginsTest, NeighboursSpreadOverTheSets)
{
    std::vector<uint32_t> v4(kFailedLoginSets);
    std::vector<uint32_t> v6(kFailedLoginSets);
    for (uint32_t i = 0; i < kFailedLoginEntries; i++) {
        v4[FailedLoginSet(V4(0xc0a80000 + i))]++;
        Address network = V6("2001:db8::");
        network.bytes[6] = static_cast<uint8_t>(i >> 8);
        network.bytes[7] = static_cast<uint8_t>(i);
        v6[FailedLoginSet(network)]++;
    }
    // 8 are expected; 24 would be more than five standard deviations.
    EXPECT_LT(*std::max_element(v4.begin(), v4.end()), 3 * kFailedLoginWays);
    EXPECT_LT(*std::max_element(v6.begin(), v6.end()), 3 * kFailedLoginWays);
}

// ---- The clock ----

TEST_F(FailedLoginsTest, AClockThatIsSetBackMovesWhatIsDue)
{
    const Address other = V4(2);
    for (int i = 0; i < 5; i++) {
        Judge(guesser_);
        Judge(other);
    }
    now_ -= 3600 * kSecond;
    EXPECT_EQ(Judge(guesser_), 5 * kSecond);
    EXPECT_EQ(Judge(other), 5 * kSecond);
    EXPECT_EQ(Judge(V4(3)), 0);
    now_ += 6 * kSecond;
    EXPECT_EQ(Judge(guesser_), 0);
}

// A machine without a battery for its clock begins in 1970, which is negative here.
TEST_F(FailedLoginsTest, TimesBefore2000AreTimes)
{
    now_ = -30 * 365 * 86400 * kSecond;
    EXPECT_EQ(Judge(guesser_), 0);
    EXPECT_EQ(Judge(guesser_), kSecond);
    EXPECT_EQ(Judge(V4(2)), 0);
    now_ += kSecond;
    for (uint32_t i = 0; i < 3 * kFailedLoginEntries; i++)
        EXPECT_EQ(Judge(V4(1000 + i)), 0);
}

// Who had nothing due has nothing due afterwards.
TEST_F(FailedLoginsTest, AClockThatIsSetBackPunishesNobody)
{
    Judge(guesser_);
    now_ += 100 * kSecond;
    Judge(V4(2));
    now_ -= 3600 * kSecond;
    EXPECT_EQ(Judge(guesser_), 0);
}

TEST_F(FailedLoginsTest, ASetOfStaleEntriesGivesRoomAfterTheClockWasSetBack)
{
    const std::vector<Address> addresses = Colliding(2 * kFailedLoginWays);
    for (uint32_t i = 0; i < kFailedLoginWays; i++)
        Judge(addresses[i]);
    now_ += 10 * kSecond;
    Judge(V4(5)); // the clock is seen
    now_ -= 3600 * kSecond;
    for (int64_t round = 0; round < 3; round++)
        for (uint32_t i = kFailedLoginWays; i < 2 * kFailedLoginWays; i++)
            EXPECT_EQ(Judge(addresses[i]), round * kSecond) << i;
}

TEST_F(FailedLoginsTest, TheClockMayGoBackAndForthForever)
{
    Judge(guesser_);
    for (int i = 0; i < 10000; i++) {
        now_ = (i % 2 == 0 ? 1 : 2) * (INT64_MAX / 4);
        const int64_t hold = Judge(V4(2));
        EXPECT_GE(hold, 0);
        EXPECT_LE(hold, kLongest);
    }
    EXPECT_EQ(Judge(guesser_), 0);
}

// Processes take the time, then wait for the lock: who comes late buys nothing by it.
TEST_F(FailedLoginsTest, TimesInTheWrongOrderGiveNoCredit)
{
    for (int i = 0; i < 10; i++) {
        now_ += i % 2 == 0 ? kSecond / 2 : -kSecond / 2;
        Judge(guesser_);
    }
    now_ += kSecond / 2;
    EXPECT_EQ(Judge(guesser_), 10 * kSecond);
}

} // namespace
} // namespace weir
