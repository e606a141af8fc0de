#pragma once

// The clock that nobody sets.

#include "pg/prelude.hpp"

extern "C" {
#include "portability/instr_time.h"
}

namespace weir
{

// Microseconds, of the same clock in all processes of the machine, from one start of it to the next. By this
// is measured how long a wait lasts and what is not to be done before: an administrator who sets the
// machine's clock back must not lengthen either. GetCurrentTimestamp() is for points in time that users see.
inline int64_t MonotonicUs()
{
    instr_time now;
    INSTR_TIME_SET_CURRENT(now);
    return static_cast<int64_t>(INSTR_TIME_GET_MICROSEC(now));
}

} // namespace weir
