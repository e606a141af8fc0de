#pragma once

// Connections at the gate: the hook runs when a client has been authenticated, and before the server loads
// the catalogs of its database.
//
// Who is judged: ordinary logins, once; a login that failed, in the class failed_login, before the client
// hears of its failure. Who is not: superusers (weir.superuser_bypass), walsenders, and from 16 on members of
// pg_use_reserved_connections.
//
// The slot is given back when InitPostgres commits its transaction (the session is ready for its first
// query), or when the process exits. While a connection waits it holds a PGPROC and a process, and no
// snapshot, no relation lock, no catalogs of a database. It is not in pg_stat_activity yet (before 18) and
// has no cancel key; pg_terminate_backend works.
//
// The last free places of max_connections are never taken by waiters: those that are reserved, and
// SparePlaces() more, through which newcomers can be judged.
//
// Its settings come from shared memory alone: a process in authentication does not process SIGHUP.

#include "admission/class_map.hpp"
#include "pg/prelude.hpp"

namespace weir
{

// What weir.activity shows of a connection that starts. One per ticket of the startup gate. Written by the
// owner before its ticket leaves kFree; read by anybody, who must look at the ticket's state. ASCII: the
// bytes a client sends have no encoding yet.
struct StartupInfo {
    static constexpr size_t kNameSize = 64;
    char role[kNameSize];
    char database[kNameSize];
    char application_name[kNameSize];
    Address address;
    std::atomic<int64_t> held_since_us; // a failed login, held for weir.failed_login_rate; 0: not
};

void InstallStartupGate();

// The wait event of a connection that queues: WeirConnectionQueue, in 15 and 16 plain Extension.
uint32 StartupQueueWaitEvent();

} // namespace weir
