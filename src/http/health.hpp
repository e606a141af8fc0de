#pragma once

// What a health check is told of this server: a status that a load balancer acts on, and a JSON body that
// says why.
//
//   /primary   200 on a primary, 503 on a standby
//   /replica   200 on a standby that is as fresh as the request asks, else 503
//   /health    200: the server is up, whatever its role
//
// What is not known is not fresh: without a sampler, or before it has looked, a request with a bound of lag
// gets 503; one with a bound in bytes also from a standby that does not hear its sender.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include "http/http_request.hpp"
#include "stats/text_writer.hpp"

namespace weir
{

struct ServerStatus {
    bool in_recovery;
    bool lag_known;    // of a standby: the sampler looked lately
    bool bytes_known;  // and the standby hears how far its sender is
    bool refuses;      // in quarantine: new sessions are refused
    const char *state; // of a standby: streaming, catchup, archive, paused, disconnected, unknown
    uint32_t timeline;
    uint64_t lsn; // the end of WAL, or on a standby of what is replayed
    int64_t lag_bytes;
    int64_t lag_us;
    bool minded;      // the launcher runs
    const char *mode; // weir.mode
};

constexpr int kHttpOk = 200;
constexpr int kHttpUnavailable = 503;

// Returns the HTTP status, and writes the body.
int AnswerHealth(const HttpRequest &request, const ServerStatus &server, TextWriter *body) noexcept;

} // namespace weir
