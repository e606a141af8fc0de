#pragma once

// When a refused client should come back: by then those who wait now have been served at the present pace.
// With a jitter of a half either way, or all who are refused together come back together.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdint>

namespace weir
{

constexpr double kShortestRetryS = 0.1;
constexpr double kUnknownRetryS = 1; // where no pace is known

// Seconds. `ahead` wait now and `rate` are served a second (0: not known); `lot` is drawn from [0, 1). By
// `longest_s` whoever waits now has been served, or has given up.
inline double RetryDelay(uint32_t ahead, double rate, double longest_s, double lot) noexcept
{
    const double expected = rate > 0 ? (ahead + 1.0) / rate : kUnknownRetryS;
    const double jittered = expected * (0.5 + lot);
    if (jittered < longest_s)
        return jittered > kShortestRetryS ? jittered : kShortestRetryS;
    return longest_s > kShortestRetryS ? longest_s : kShortestRetryS;
}

} // namespace weir
