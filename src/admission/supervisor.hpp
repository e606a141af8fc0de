#pragma once

// What the launcher does for the gate, a few hundred times a second while anybody waits, about once while
// nobody does:
//
//   lend        slots of transactions whose client is silent, or that wait for a synchronous standby
//   rescue      waiters that somebody waits for: the hidden deadlock that the deadlock detector cannot see
//   suspend     the limit, when every slot has been held by stalled transactions for weir.stall_timeout: they
//   lend
//               their slots, until half of them are gone
//   adapt       the limit, from samples of what slot holders wait for
//   record      the history that weir.admission_history shows
//
// Only the launcher runs this; it takes the gate's lock to hand out slots, and the lock manager's partition
// locks, shared, to find out who blocks whom. Its own memory is private: when it dies its successor starts to
// observe anew.

#include "pg/prelude.hpp"

namespace weir
{

struct Supervisor;

constexpr long kShortNapMs = 50;

Supervisor *StartSupervisor();

// One round; returns how long to sleep, in ms.
long Supervise(Supervisor *s, int64_t now);

} // namespace weir
