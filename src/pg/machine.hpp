#pragma once

// What the machine says of itself: cores, and how idle they are. Linux; elsewhere the answers are "not
// known".

#include <cstdint>

namespace weir
{

// Cores this process may run on (its affinity mask, which containers set); at least 1.
uint32_t UsableCores();

// Idle share of all cores since the last call, 0..1; negative if not known. For one process: it keeps the
// last reading.
double CpuIdleShare();

} // namespace weir
