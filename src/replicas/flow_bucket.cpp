#include "replicas/flow_bucket.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

int64_t Bytes(double rate, int64_t us) noexcept
{
    constexpr double kMost = 4e18;
    const double bytes = rate * static_cast<double>(us) / 1e6;
    return bytes < kMost ? static_cast<int64_t>(bytes) : static_cast<int64_t>(kMost);
}

} // namespace

// A writer that is stopped in between leaves the sequence odd for long: then what is there is taken. It is at
// most a sample old, or the half of a change.
int64_t FlowBucket::Released(int64_t now_us) const noexcept
{
    constexpr int kTries = 100;
    int64_t released = 0;
    for (int i = 0; i < kTries; i++) {
        const uint32_t before = sequence.load(std::memory_order_acquire);
        const int64_t since = base_us.load(std::memory_order_relaxed);
        released = base.load(std::memory_order_relaxed) + corrections.load(std::memory_order_relaxed) +
                   Bytes(rate.load(std::memory_order_relaxed), now_us > since ? now_us - since : 0);
        std::atomic_thread_fence(std::memory_order_acquire);
        if ((before & 1) == 0 && sequence.load(std::memory_order_relaxed) == before)
            break;
    }
    return released;
}

int64_t FlowBucket::LeftUs(int64_t position, int64_t now_us) const noexcept
{
    constexpr double kLongestUs = 3600e6;
    const double per_second = rate.load(std::memory_order_relaxed);
    if (per_second <= 0)
        return 0;
    const int64_t ahead = position - Released(now_us);
    if (ahead <= 0)
        return 0;
    const double left = static_cast<double>(ahead) / per_second * 1e6;
    return left < kLongestUs ? static_cast<int64_t>(left) + 1 : static_cast<int64_t>(kLongestUs);
}

void FlowBucket::SetRate(double new_rate, int64_t now_us) noexcept
{
    const double old_rate = rate.load(std::memory_order_relaxed);
    if (old_rate <= 0 && new_rate <= 0)
        return;
    const int64_t correction = corrections.load(std::memory_order_relaxed);
    const int64_t end = reserved.load(std::memory_order_relaxed);
    const int64_t queue = waiting_bytes.load(std::memory_order_relaxed);
    int64_t released = old_rate > 0 ? Released(now_us) : end;
    const int64_t most = end + Bytes(new_rate, static_cast<int64_t>(kMostCreditS * 1e6));
    const int64_t least = end - queue - Bytes(new_rate, static_cast<int64_t>(kMostDebtS * 1e6));
    if (released > most)
        released = most;
    if (released < least)
        released = least;
    sequence.fetch_add(1, std::memory_order_acq_rel);
    rate.store(new_rate, std::memory_order_relaxed);
    base.store(released - correction, std::memory_order_relaxed);
    base_us.store(now_us, std::memory_order_relaxed);
    sequence.fetch_add(1, std::memory_order_release);
}

} // namespace weir
