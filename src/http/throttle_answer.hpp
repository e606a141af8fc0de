#pragma once

// What a job is told at /throttle/check?app=NAME: go on at 200 alone. The statuses are those of freno, so
// that gh-ost and others who know it understand them:
//
//   200  allowed, or exempt by a rule
//   417  denied by a rule
//   429  a standby lags
//   404  nothing is known: just started, just promoted, or a standby
//   500  nobody has measured lately
//
// Pure: no PostgreSQL header, no clock, no system call.

#include "replicas/throttle_rules.hpp"
#include "stats/text_writer.hpp"

namespace weir
{

// Returns the HTTP status, and writes the body.
int AnswerThrottle(const char *app, const ThrottleAnswer &answer, TextWriter *body) noexcept;

} // namespace weir
