#include "replicas/lag_clock.hpp"

#include <cmath>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr int64_t kExactUs = 10 * 1000000; // younger entries are not thinned, unless there are too many
constexpr int64_t kLeastExactUs = 100000;
constexpr int64_t kThinned = 20;          // a gap may be a 20th of its age
constexpr int64_t kClockStepUs = 1000000; // backwards: less is jitter of an estimate
constexpr int64_t kSkewWindowUs = 300 * INT64_C(1000000);

} // namespace

void LagClock::Note(uint64_t lsn, int64_t now_us) noexcept
{
    if (count_ > 0 && lsn < entries_[count_ - 1].lsn)
        GoBackTo(lsn);
    if (count_ > 0 && lsn == entries_[count_ - 1].lsn)
        return;
    // The clock went back: what was remembered is of another time.
    if (count_ > 0 && now_us < entries_[count_ - 1].at_us - kClockStepUs)
        count_ = 0;
    if (count_ > 0 && now_us < entries_[count_ - 1].at_us)
        now_us = entries_[count_ - 1].at_us;
    if (count_ == kClockEntries)
        MakeRoom(now_us);
    entries_[count_++] = {lsn, now_us};
}

// The end is at `lsn` again, since it first went past it.
void LagClock::GoBackTo(uint64_t lsn) noexcept
{
    while (count_ > 1 && entries_[count_ - 2].lsn >= lsn)
        count_--;
    entries_[count_ - 1].lsn = lsn;
}

// At least one entry goes: the oldest only if all others are needed.
void LagClock::MakeRoom(int64_t now_us) noexcept
{
    for (int64_t exact_us = kExactUs; exact_us >= kLeastExactUs; exact_us /= 2)
        if (Thin(exact_us, now_us))
            return;
    for (uint32_t i = 1; i < count_; i++)
        entries_[i - 1] = entries_[i];
    count_--;
}

// Drops entries older than `exact_us` whose neighbours are close against their age. False: there are none.
bool LagClock::Thin(int64_t exact_us, int64_t now_us) noexcept
{
    uint32_t kept = 1;
    for (uint32_t i = 1; i + 1 < count_; i++) {
        const int64_t age = now_us - entries_[i].at_us;
        const int64_t gap = entries_[i + 1].at_us - entries_[kept - 1].at_us;
        if (age < exact_us || gap > age / kThinned)
            entries_[kept++] = entries_[i];
    }
    entries_[kept++] = entries_[count_ - 1];
    const bool dropped = kept < count_;
    count_ = kept;
    return dropped;
}

int64_t LagClock::LagUs(uint64_t lsn, int64_t now_us, bool *known) const noexcept
{
    if (known != nullptr)
        *known = true;
    if (count_ == 0 || lsn >= entries_[count_ - 1].lsn)
        return 0;
    uint32_t low = 0; // first entry past lsn
    uint32_t high = count_ - 1;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (entries_[middle].lsn > lsn)
            high = middle;
        else
            low = middle + 1;
    }
    if (low == 0 && known != nullptr)
        *known = false;
    const int64_t lag = now_us - entries_[low].at_us;
    return lag > 0 ? lag : 0;
}

void LagClock::Shift(int64_t step_us) noexcept
{
    for (uint32_t i = 0; i < count_; i++)
        entries_[i].at_us += step_us;
}

void RateMeter::Shift(int64_t step_us) noexcept
{
    if (last_us != 0)
        last_us += step_us;
}

void RateMeter::Note(uint64_t lsn, int64_t now_us) noexcept
{
    const double seconds = static_cast<double>(now_us - last_us) / 1e6;
    if (last_us != 0 && lsn >= last_lsn && seconds > 0) {
        const double now_rate = static_cast<double>(lsn - last_lsn) / seconds;
        rate += (now_rate - rate) * (1 - std::exp(-seconds / kRateSeconds));
    } else if (last_us != 0 && seconds <= 0)
        return;
    last_lsn = lsn;
    last_us = now_us;
}

void SkewEstimate::Note(int64_t difference_us, int64_t now_us) noexcept
{
    if (began_us == 0 || now_us < began_us) {
        *this = {0, difference_us, now_us, false};
        return;
    }
    if (now_us - began_us > kSkewWindowUs) {
        previous = current;
        has_previous = true;
        current = difference_us;
        began_us = now_us;
    } else if (difference_us < current)
        current = difference_us;
}

void SkewEstimate::Shift(int64_t step_us) noexcept
{
    if (!Known())
        return;
    previous += step_us;
    current += step_us;
    began_us += step_us;
}

int64_t CatchUpUs(int64_t behind, double replay_rate, double wal_rate) noexcept
{
    constexpr double kLongestS = 365.0 * 86400;
    if (behind <= 0)
        return 0;
    const double gain = replay_rate - wal_rate;
    if (gain <= 0)
        return -1;
    const double seconds = static_cast<double>(behind) / gain;
    return seconds < kLongestS ? static_cast<int64_t>(seconds * 1e6) : -1;
}

} // namespace weir
