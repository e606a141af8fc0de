#include "admission/storm_log.hpp"

#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

// `to` is all zeroes.
void CopyTop(const TopCounts &from, StormTop (&to)[kStormTop]) noexcept
{
    uint32_t indexes[kStormTop];
    const uint32_t count = from.Top(kStormTop, indexes);

    for (uint32_t i = 0; i < count; i++) {
        const TopCount &entry = from.entries[indexes[i]];
        memcpy(to[i].name, entry.name, sizeof(entry.name));
        to[i].count = entry.AtLeast();
    }
}

// A counter that fell was reset, or something was taken out of what it sums up: how much it grew is not
// known.
uint64_t Growth(uint64_t seen, uint64_t now) noexcept
{
    return now > seen ? now - seen : 0;
}

} // namespace

void StormLog::Arrive(const char *role, const Address &address, const char *application) noexcept
{
    char text[kAddressTextSize];

    arrivals_++;
    roles_.Add(role);
    addresses_.Add(AddressText(address, text));
    applications_.Add(application);
}

void StormLog::FollowClock(int64_t now_us) noexcept
{
    const int64_t back_us = updated_us_ - now_us;

    if (back_us > 0) {
        began_us_ -= back_us;
        waited_us_ -= back_us;
    }
    updated_us_ = now_us;
}

// Who is let in while nobody waits did not have to wait, and is not the storm's. Who left had to; some are
// counted a moment after they ceased to wait.
void StormLog::CountTotals(bool busy, uint64_t admitted_total, uint64_t left_total) noexcept
{
    if (busy)
        admitted_ += Growth(seen_admitted_total_, admitted_total);
    if (arrivals_ > 0)
        left_ += Growth(seen_left_total_, left_total);
    seen_admitted_total_ = admitted_total;
    seen_left_total_ = left_total;
}

// Those who wait now arrived, whoever they are.
void StormLog::BeginRunUp(int64_t now_us, uint32_t waiting) noexcept
{
    began_us_ = now_us;
    arrivals_ = seen_arrivals_ = waiting;
    admitted_ = 0;
    left_ = 0;
    roles_.Clear();
    addresses_.Clear();
    applications_.Clear();
}

void StormLog::End() noexcept
{
    Describe(&records_[ended_ % kMostStorms]);
    records_[ended_ % kMostStorms].ended_us = waited_us_;
    ended_++;
    storming_ = false;
}

StormEvent StormLog::Update(int64_t now_us, uint32_t waiting, int64_t oldest_wait_us, uint64_t admitted_total,
                            uint64_t left_total) noexcept
{
    // Somebody waited between the last time and now.
    const bool busy = waiting > 0 || seen_waiting_ > 0 || arrivals_ != seen_arrivals_;
    StormEvent event = StormEvent::kNone;

    FollowClock(now_us);
    CountTotals(busy, admitted_total, left_total);
    if (busy)
        waited_us_ = now_us;
    if (!storming_ && seen_arrivals_ == 0)
        began_us_ = now_us; // of the run-up, if this is one
    seen_arrivals_ = arrivals_;
    seen_waiting_ = waiting;

    if (!storming_ && waiting + left_ >= kStormWaiters) {
        storming_ = true;
        began_us_ = now_us;
        peak_waiting_ = 0;
        longest_wait_us_ = 0;
        event = StormEvent::kBegan;
    }
    if (storming_) {
        peak_waiting_ = waiting > peak_waiting_ ? waiting : peak_waiting_;
        longest_wait_us_ = oldest_wait_us > longest_wait_us_ ? oldest_wait_us : longest_wait_us_;
    }

    const bool quiet = now_us - waited_us_ >= kStormQuietUs;
    if (storming_ && quiet) {
        End();
        BeginRunUp(now_us, 0);
        event = StormEvent::kEnded;
    } else if (!storming_ && arrivals_ > 0 && (quiet || now_us - began_us_ >= kStormRunUpUs)) {
        BeginRunUp(now_us, waiting);
    }
    return event;
}

void StormLog::Describe(StormRecord *out) const noexcept
{
    *out = {};
    out->began_us = began_us_;
    out->peak_waiting = peak_waiting_;
    out->longest_wait_us = longest_wait_us_;
    out->arrivals = arrivals_;
    out->admitted = admitted_;
    out->left = left_;
    CopyTop(roles_, out->roles);
    CopyTop(addresses_, out->addresses);
    CopyTop(applications_, out->applications);
}

uint32_t StormLog::Copy(StormRecord *out, uint32_t capacity) const noexcept
{
    uint32_t count = 0;

    if (storming_ && capacity > 0)
        Describe(&out[count++]);
    for (uint64_t back = 1; back <= ended_ && back <= kMostStorms && count < capacity; back++)
        out[count++] = records_[(ended_ - back) % kMostStorms];
    return count;
}

} // namespace weir
