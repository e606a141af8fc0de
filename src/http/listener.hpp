#pragma once

// An HTTP server in one thread, for few and short answers, on Boost.Beast: the one part of pg_weir that is
// built with exceptions, which end in listener.cpp. It knows nothing of PostgreSQL.
//
// Everything has a bound: connections, the size of a request's header, the time for a request to arrive and
// for its answer to leave. Requests have no body. Who connects when all connections are taken has the place
// of the one whose request is longest on its way: a health check gets through a crowd of slow clients.
//
// A process has at most one listener.

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace weir
{

struct HttpLimits {
    uint32_t connections = 64;
    uint32_t header_bytes = 4096;
    int deadline_ms = 5000; // for a request, also for the next one on the same connection; and for an answer
};

// Counted by the listener, read by anybody.
struct HttpCounters {
    std::atomic<uint64_t> answers[6]; // by the first digit of the status
    std::atomic<uint64_t> connections;
    std::atomic<uint64_t> evicted; // gave their place to a newer connection
    std::atomic<uint64_t> late;    // not done in time
    std::atomic<uint32_t> open;
};

struct HttpAnswer {
    int status;
    const char *content_type;
    const char *body; // copied before the next question is asked
    size_t length;
};

// Answers GET (HEAD and OPTIONS are answered alike, HEAD without the body). Must not raise anything.
using HttpResponder = void (*)(const char *target, size_t length, HttpAnswer *answer);

constexpr size_t kHttpErrorSize = 256;

// Opens the listener. False: `error` says why not.
bool HttpListen(const char *address, uint16_t port, const HttpLimits &limits, HttpResponder responder,
                HttpCounters *counters, char (&error)[kHttpErrorSize]) noexcept;

// Serves until HttpWake(), or for so long. False: something was thrown, `error` has its text; go on, or
// close.
bool HttpServe(int timeout_ms, char (&error)[kHttpErrorSize]) noexcept;

// Ends HttpServe(), also the next one. May be called by a signal handler.
void HttpWake() noexcept;

// HttpServe() also ends when this descriptor, which stays the caller's, becomes readable.
bool HttpWakeOn(int descriptor, char (&error)[kHttpErrorSize]) noexcept;

void HttpClose() noexcept;

uint16_t HttpPort() noexcept; // that it listens on; 0: none

// A numeric address, of version 4 or 6.
bool IsHttpAddress(const char *address) noexcept;

} // namespace weir
