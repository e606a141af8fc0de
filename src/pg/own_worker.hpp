#pragma once

// What all of pg_weir's background workers have in common.

#include "pg/prelude.hpp"

extern "C" {
#include "postmaster/bgworker.h"
}

namespace weir
{

// To be registered; never restarted, unless the caller says otherwise. `name` is also its backend_type.
// A database connection, be it to none, makes a worker visible in pg_stat_activity and reachable for
// pg_terminate_backend.
BackgroundWorker OwnWorker(const char *name, const char *function, BgWorkerStartTime start);

} // namespace weir
