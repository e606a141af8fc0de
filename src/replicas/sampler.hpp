#pragma once

// The background worker that samples replication, "pg_weir sampler": each weir.lag_sample_interval it looks
// at the walsenders and at the walreceiver in shared memory, and writes rows (replica_state.hpp). On a
// primary that has standbys it writes the heartbeat. It runs no SQL, and goes on through promotion: it asks
// at every tick which role the server has.

#include "pg/prelude.hpp"

namespace weir
{

void RegisterSampler();

} // namespace weir

_Pragma("GCC visibility push(default)") extern "C" void weir_sampler_main(Datum argument);
_Pragma("GCC visibility pop")
