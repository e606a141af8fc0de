#pragma once

// What the launcher does for connections that start, beside what supervisor.hpp does for transactions:
//
//   dispatch    waiters whose time has come, where there is a rate
//   lend        slots of logins that have not come on for weir.stall_timeout (a lock on a catalog, a slow
//   disk) pace        logins, so that established sessions keep the processors: see startup_pace.hpp log
//   storms: one line when one begins and one when it ends, and weir.storms
//
// Only the launcher runs this, under startup_lock where shared.hpp says so. Its own memory is private.

#include "pg/prelude.hpp"

namespace weir
{

struct StartupSupervisor;

StartupSupervisor *StartStartupSupervisor(int64_t now);

// One round.
void SuperviseStartups(StartupSupervisor *s, int64_t now);

// The clock was set back.
void FollowClockBack(StartupSupervisor *s, int64_t now);

// Once per control interval. `established`: sessions that are not new, and had a transaction in it.
void AdaptStartups(StartupSupervisor *s, double established, double cpu_idle, int64_t now);

} // namespace weir
