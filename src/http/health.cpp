#include "http/health.hpp"

#include <initializer_list>

#include "pure_only.hpp"

namespace weir
{

namespace
{

// Why it is not a replica to read from; null: it is.
const char *WhyNotReplica(const HttpRequest &request, const ServerStatus &server) noexcept
{
    if (!server.in_recovery)
        return "this is a primary";
    if (server.refuses)
        return "in quarantine: weir.quarantine_lag";
    if (request.has_min_lsn && server.lsn < request.min_lsn.lsn)
        return "min_lsn is not replayed yet";
    // Whether an older timeline's write is in this one's history is a question to files.
    if (request.has_min_lsn && request.min_lsn.timeline != 0 && request.min_lsn.timeline != server.timeline)
        return "min_lsn is of another timeline";
    if (!request.has_max_lag_bytes && !request.has_max_lag_us)
        return nullptr;
    if (!server.lag_known)
        return "lag is not known";
    if (request.has_max_lag_bytes && !server.bytes_known)
        return "lag in bytes is not known: no sender is heard";
    if (request.has_max_lag_bytes && server.lag_bytes > request.max_lag_bytes)
        return "lag in bytes is beyond the bound";
    if (request.has_max_lag_us && server.lag_us > request.max_lag_us)
        return "lag in time is beyond the bound";
    return nullptr;
}

const char *WhyNot(const HttpRequest &request, const ServerStatus &server) noexcept
{
    switch (request.endpoint) {
    case Endpoint::kPrimary:
        return server.in_recovery ? "this is a standby" : nullptr;
    case Endpoint::kReplica:
        return WhyNotReplica(request, server);
    default:
        return nullptr;
    }
}

void PutMember(TextWriter *body, const char *name, const char *text) noexcept
{
    for (const char *piece : {", \"", name, "\": \""})
        body->Put(piece);
    body->PutJson(text);
    body->PutChar('"');
}

} // namespace

int AnswerHealth(const HttpRequest &request, const ServerStatus &server, TextWriter *body) noexcept
{
    const char *why_not = WhyNot(request, server);
    body->Put("{\"role\": \"");
    body->Put(server.in_recovery ? "standby" : "primary");
    body->Put("\", \"timeline\": ");
    body->PutCount(server.timeline);
    body->Put(server.in_recovery ? ", \"replayed\": \"" : ", \"lsn\": \"");
    body->PutLsn(server.lsn);
    body->PutChar('"');
    if (server.in_recovery) {
        PutMember(body, "state", server.state);
        body->Put(", \"lag_bytes\": ");
        if (server.lag_known && server.bytes_known)
            body->PutInt(server.lag_bytes);
        else
            body->Put("null");
        body->Put(", \"lag_seconds\": ");
        if (server.lag_known)
            body->PutReal(static_cast<double>(server.lag_us) / 1e6);
        else
            body->Put("null");
    }
    PutMember(body, "mode", server.mode);
    body->Put(server.minded ? ", \"launcher\": true" : ", \"launcher\": false");
    if (why_not != nullptr)
        PutMember(body, "reason", why_not);
    body->Put("}\n");
    return why_not == nullptr ? kHttpOk : kHttpUnavailable;
}

} // namespace weir
