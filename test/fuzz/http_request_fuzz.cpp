// Request targets of the HTTP endpoint, random ones: parameters are understood or refused with a text,
// numbers stay in their range, and an answer always fits its buffer and is whole.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "http/health.hpp"

using namespace weir;

namespace
{

void Require(bool condition)
{
    if (!condition)
        abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    // A copy of the exact size: the sanitizer sees who reads past it.
    const std::string text(reinterpret_cast<const char *>(data), size);
    HttpRequest request;
    const char *error = ParseHttpTarget(text.data(), text.size(), &request);
    if (error != nullptr) {
        Require(error[0] != '\0');
        return 0;
    }
    Require(request.max_lag_bytes >= 0 && request.max_lag_us >= 0);
    Require(request.endpoint == Endpoint::kReplica ||
            !(request.has_max_lag_bytes || request.has_max_lag_us || request.has_min_lsn));

    ServerStatus server = {};
    server.state = "streaming";
    server.mode = "enforce";
    server.in_recovery = size % 2 == 0;
    server.lsn = size << 32 | size;
    char body[2048];
    TextWriter writer(body, sizeof(body));
    const int status = AnswerHealth(request, server, &writer);
    Require(status == kHttpOk || status == kHttpUnavailable);
    Require(!writer.Full() && writer.Length() > 2 && body[0] == '{' && body[writer.Length() - 2] == '}');
    return 0;
}
