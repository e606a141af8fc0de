#pragma once

// What the HTTP endpoint is asked: the request target, "/replica?lag=2s&min_lsn=0/3000060", taken apart.
//
// A parameter that the path does not know is a mistake, and so is one given twice: a health check that
// silently ignores half of what it was told would send readers to a server that they did not mean.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>

#include "replicas/lsn_token.hpp"

namespace weir
{

enum class Endpoint { kNone, kPrimary, kReplica, kHealth, kThrottleCheck, kMetrics };

constexpr size_t kMaxTarget = 1024;
constexpr size_t kHttpAppSize = 64; // as weir.check_throttle() takes

struct HttpRequest {
    Endpoint endpoint;
    bool has_max_lag_bytes, has_max_lag_us, has_min_lsn;
    int64_t max_lag_bytes;
    int64_t max_lag_us;
    LsnToken min_lsn;
    char app[kHttpAppSize]; // of kThrottleCheck: never empty
};

// Null: understood; kNone: no such path. Else what is wrong with it, for the client to read.
const char *ParseHttpTarget(const char *text, size_t length, HttpRequest *request) noexcept;

// The value of a parameter, for tests: "16MB", "500 kB", "4096" are bytes, "2s", "500ms", "1min" times.
bool ParseLag(const char *text, HttpRequest *request) noexcept;

} // namespace weir
