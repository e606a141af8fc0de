#include "replicas/quarantine.hpp"

#include "pure_only.hpp"

namespace weir
{

bool Quarantine::Note(int64_t lag_us, int64_t now_us, const QuarantineRule &rule) noexcept
{
    if (rule.limit_us <= 0)
        return End();
    const bool over = lag_us > rule.limit_us;
    const bool votes = on != 0 ? lag_us < rule.limit_us / 2 : over;
    run = votes ? run + 1 : 0;
    if (over || last_over_us > now_us) // a clock that was set back must not hold it for longer
        last_over_us = now_us;
    const bool enough =
        on != 0 ? run >= kSamplesToLeave && now_us - last_over_us >= rule.hold_us : run >= kSamplesToEnter;
    if (!enough)
        return false;
    on = on != 0 ? 0 : 1;
    run = 0;
    return true;
}

bool Quarantine::End() noexcept
{
    const bool was_on = on != 0;
    *this = {};
    return was_on;
}

} // namespace weir
