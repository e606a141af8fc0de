#pragma once

// What a refused client is told: SQLSTATE 53300 (too_many_connections: drivers and pools keep the connection
// on class 53, and drop it on 08 and 57P01 to 57P03), which limit of which class in DETAIL, when to come back
// in HINT. ERROR, or FATAL with weir.reject_as = fatal. Nothing here returns.

#include "pg/prelude.hpp"

namespace weir
{

[[noreturn]] void RefuseTimedOut(uint32_t class_id, int64_t waited_us);
[[noreturn]] void RefuseQueueFull(uint32_t class_id);

// A connection: always FATAL, with weir.startup_sqlstate. `places`: false if it is max_connections that would
// not hold another waiter.
[[noreturn]] void RefuseStartupTimedOut(uint32_t class_id, int64_t waited_us);
[[noreturn]] void RefuseStartupQueueFull(uint32_t class_id, bool places);

// A connection to a standby in quarantine: FATAL, 57P03. There is nothing to wait for here, and other servers
// are not behind.
[[noreturn]] void RefuseQuarantined();

// Seconds until about `ahead` transactions will have been served at the present rate, with jitter of a half
// either way, so that those who are refused together do not return together. At least 0.1, at most 60.
double RetryDelaySeconds(uint32_t ahead);

} // namespace weir
