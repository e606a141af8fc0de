#pragma once

// A copy of what the sampler knows, for backends: 60 kB, a few microseconds under replica_lock.

#include "pg/prelude.hpp"
#include "replicas/replica_state.hpp"

namespace weir
{

// Palloc'd, because rows are formed where errors are possible and the sampler must not wait for that. Ask
// IsFresh() before a decision rests on it.
ReplicaReport *CopyReplicaReport();

} // namespace weir
