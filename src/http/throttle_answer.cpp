#include "http/throttle_answer.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

int StatusOf(ThrottleCode code) noexcept
{
    switch (code) {
    case ThrottleCode::kOk:
    case ThrottleCode::kExempt:
        return 200;
    case ThrottleCode::kDenied:
        return 417;
    case ThrottleCode::kLagging:
        return 429;
    case ThrottleCode::kUnknown:
    case ThrottleCode::kStandby:
        return 404;
    case ThrottleCode::kStale:
        return 500;
    }
    return 500;
}

} // namespace

int AnswerThrottle(const char *app, const ThrottleAnswer &answer, TextWriter *body) noexcept
{
    const double unit = answer.in_bytes ? 1 : 1e6;
    body->Put("{\"app\": \"");
    body->PutJson(app);
    body->Put(IsAllowed(answer.code) ? "\", \"allowed\": true, \"code\": \""
                                     : "\", \"allowed\": false, \"code\": \"");
    body->Put(ThrottleCodeName(answer.code));
    body->Put("\", \"value\": ");
    body->PutReal(static_cast<double>(answer.value) / unit);
    body->Put(", \"threshold\": ");
    body->PutReal(static_cast<double>(answer.threshold) / unit);
    body->Put(answer.in_bytes ? ", \"unit\": \"bytes\"" : ", \"unit\": \"s\"");
    body->Put(", \"retry_after_seconds\": ");
    body->PutReal(static_cast<double>(answer.retry_after_us) / 1e6);
    body->Put("}\n");
    return StatusOf(answer.code);
}

} // namespace weir
