#include "coalesce/company.hpp"

#include "pure_only.hpp"

namespace weir
{

uint32_t Company::Join() noexcept
{
    constexpr uint32_t kFade = 32;
    const uint32_t now = present.fetch_add(1, std::memory_order_relaxed) + 1;
    const uint32_t before = peak.load(std::memory_order_relaxed);
    uint32_t most = before;
    if (arrivals.fetch_add(1, std::memory_order_relaxed) % kFade == 0)
        most -= most > 3 ? most / 4 : most > 0;
    most = most > now ? most : now;
    if (most != before)
        peak.store(most, std::memory_order_relaxed);
    return most;
}

} // namespace weir
