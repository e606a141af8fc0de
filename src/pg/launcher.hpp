#pragma once

// The background worker that minds the gate: it copies changed settings into shared memory, and runs the
// supervisor. It comes back a second after it died, finds its state in shared memory, and the limits were in
// force all the time. It runs in recovery too, and goes on through promotion.

#include "pg/prelude.hpp"

namespace weir
{

void RegisterLauncher();

} // namespace weir

_Pragma("GCC visibility push(default)") extern "C" void weir_launcher_main(Datum argument);
_Pragma("GCC visibility pop")
