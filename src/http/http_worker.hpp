#pragma once

// The background worker "pg_weir http" behind weir.http_port: health checks and metrics over HTTP, answered
// from shared memory, without SQL. Off by default.
//
// The launcher starts it while weir.http_port is set, and again when it died: it is never restarted by the
// postmaster, so that there is never a second one. It ends by itself when the port is taken out of the
// settings. A port that is taken by somebody else is reported once, and tried again every kListenRetryMs;
// nothing else depends on it.

#include "http/listener.hpp"
#include "pg/prelude.hpp"

namespace weir
{

enum class HttpWorkerState : uint32_t { kAbsent, kStarting, kRunning };

// In shared memory.
struct HttpShared {
    std::atomic<uint32_t> state;        // kStarting by the launcher, the rest by the worker
    std::atomic<int64_t> since;         // TimestampTz: when it entered this state
    std::atomic<uint32_t> start_failed; // logged; cleared by the next success
    std::atomic<uint32_t> port;         // that it listens on; 0: none
    HttpCounters counters;              // the worker's
};

// Called by the launcher, at least every second.
void StartHttpWorkerIfWanted(int64_t now);

} // namespace weir

_Pragma("GCC visibility push(default)") extern "C" void weir_http_main(Datum argument);
_Pragma("GCC visibility pop")
