#include "admission/failed_logins.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr int64_t kSecondUs = 1000000;

int64_t Min(int64_t a, int64_t b) noexcept
{
    return a < b ? a : b;
}

int64_t Max(int64_t a, int64_t b) noexcept
{
    return a > b ? a : b;
}

// An entry for this address with nothing due.
FailedLoginEntry KeyOf(const Address &address) noexcept
{
    const Address unmapped = UnmapV4(address);
    FailedLoginEntry entry = {0, unmapped.family, 0};

    if (unmapped.family == AddressFamily::kV4)
        memcpy(&entry.network, unmapped.bytes, 4);
    else if (unmapped.family == AddressFamily::kV6)
        memcpy(&entry.network, unmapped.bytes, 8);
    return entry;
}

bool SameKey(const FailedLoginEntry &a, const FailedLoginEntry &b) noexcept
{
    return a.network == b.network && a.family == b.family;
}

// The finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): neighbours in a network part.
uint64_t Mix(uint64_t x) noexcept
{
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
}

uint32_t SetOf(const FailedLoginEntry &key) noexcept
{
    return static_cast<uint32_t>(Mix(key.network + static_cast<uint64_t>(key.family))) &
           (kFailedLoginSets - 1);
}

} // namespace

uint32_t FailedLoginSet(const Address &address) noexcept
{
    return SetOf(KeyOf(address));
}

void FailedLogins::FollowClock(int64_t now_us) noexcept
{
    const int64_t back_us = latest_us_ - now_us;

    if (back_us > kFailedLoginClockSlackUs) {
        // What has passed is left alone: moved back time and again, it would not stay in range.
        for (auto &set : sets_)
            for (FailedLoginEntry &entry : set)
                entry.due_us = entry.due_us > latest_us_ ? entry.due_us - back_us : Min(entry.due_us, now_us);
        latest_us_ = now_us;
    }
    latest_us_ = Max(latest_us_, now_us);
}

// The address's entry, a new one if need be.
FailedLoginEntry *FailedLogins::Find(const Address &address, int64_t now_us) noexcept
{
    const FailedLoginEntry key = KeyOf(address);
    FailedLoginEntry *first_due = nullptr;

    for (FailedLoginEntry &entry : sets_[SetOf(key)]) {
        if (SameKey(entry, key))
            return &entry;
        if (first_due == nullptr || entry.due_us < first_due->due_us)
            first_due = &entry;
    }
    *first_due = key;
    first_due->due_us = now_us;
    return first_due;
}

int64_t FailedLogins::Judge(const Address &address, uint32_t rate, int64_t now_us,
                            int64_t longest_us) noexcept
{
    const int64_t per_second = Max(1, Min(rate, kMaxFailedLoginRate));
    const int64_t interval_us = (kSecondUs + per_second - 1) / per_second;
    const int64_t slack_us = interval_us * (per_second - 1);
    const int64_t longest = Max(0, Min(longest_us, kLongestHoldUs));

    FollowClock(now_us);
    FailedLoginEntry *entry = Find(address, now_us);
    const int64_t due_us = Max(entry->due_us, now_us);
    // Not lowered to this call's `longest`: a client that dawdles until it may only be held briefly would
    // buy off its backlog.
    entry->due_us = Max(due_us, Min(due_us + interval_us, now_us + slack_us + longest));
    return Min(Max(due_us - slack_us - now_us, 0), longest);
}

} // namespace weir
