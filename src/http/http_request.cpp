#include "http/http_request.hpp"

#include <charconv>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr size_t kMaxValue = 128;

struct Path {
    const char *name;
    Endpoint endpoint;
};

constexpr Path paths[] = {{"/primary", Endpoint::kPrimary},
                          {"/replica", Endpoint::kReplica},
                          {"/health", Endpoint::kHealth},
                          {"/throttle/check", Endpoint::kThrottleCheck},
                          {"/metrics", Endpoint::kMetrics}};

struct Unit {
    const char *name;
    int64_t factor;
    bool of_time; // microseconds; else bytes
};

constexpr Unit units[] = {{"", 1, false},
                          {"B", 1, false},
                          {"kB", 1ll << 10, false},
                          {"MB", 1ll << 20, false},
                          {"GB", 1ll << 30, false},
                          {"TB", 1ll << 40, false},
                          {"us", 1, true},
                          {"ms", 1000, true},
                          {"s", 1000000, true},
                          {"min", 60ll * 1000000, true},
                          {"h", 3600ll * 1000000, true},
                          {"d", 86400ll * 1000000, true}};

// Two hexadecimal digits. False: they are not.
bool DecodeByte(const char *text, char *to) noexcept
{
    unsigned char byte = 0;
    if (std::from_chars(text, text + 2, byte, 16).ptr != text + 2)
        return false;
    *to = static_cast<char>(byte);
    return true;
}

// Undoes %xx and +. False: malformed, longer than `size` allows, or not printable ASCII afterwards.
bool Decode(const char *text, size_t length, char *to, size_t size) noexcept
{
    size_t n = 0;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (c == '+') {
            c = ' ';
        } else if (c == '%') {
            if (length - i < 3 || !DecodeByte(text + i + 1, &c))
                return false;
            i += 2;
        }
        if (c < ' ' || c > '~' || n + 1 >= size)
            return false;
        to[n++] = c;
    }
    to[n] = '\0';
    return true;
}

const char *SetParameter(const char *name, const char *value, HttpRequest *request) noexcept
{
    if (request->endpoint == Endpoint::kReplica && strcmp(name, "lag") == 0)
        return ParseLag(value, request) ? nullptr : "lag: write 16MB, or 2s; each kind once";
    if (request->endpoint == Endpoint::kReplica && strcmp(name, "min_lsn") == 0) {
        ParseError error;
        if (request->has_min_lsn || value[0] == '\0' || !ParseLsnToken(value, &request->min_lsn, &error))
            return "min_lsn: write 0/3000060, or 0/3000060@2 with its timeline; once";
        request->has_min_lsn = true;
        return nullptr;
    }
    if (request->endpoint == Endpoint::kThrottleCheck && strcmp(name, "app") == 0) {
        const size_t length = strlen(value);
        if (request->app[0] != '\0' || length == 0 || length >= sizeof(request->app))
            return "app: write the job's name, of at most 63 characters; once";
        memcpy(request->app, value, length + 1);
        return nullptr;
    }
    return "there is no such parameter here";
}

const char *ParseParameters(const char *text, size_t length, HttpRequest *request) noexcept
{
    const char *end = text + length;
    while (text < end) {
        const auto *stop = static_cast<const char *>(memchr(text, '&', static_cast<size_t>(end - text)));
        if (stop == nullptr)
            stop = end;
        const auto *equals = static_cast<const char *>(memchr(text, '=', static_cast<size_t>(stop - text)));
        char name[kMaxValue];
        char value[kMaxValue];
        if (equals == nullptr || !Decode(text, static_cast<size_t>(equals - text), name, sizeof(name)) ||
            !Decode(equals + 1, static_cast<size_t>(stop - equals - 1), value, sizeof(value)))
            return "parameters: write name=value&name=value, in printable ASCII";
        const char *error = SetParameter(name, value, request);
        if (error != nullptr)
            return error;
        text = stop + 1;
    }
    return nullptr;
}

} // namespace

bool ParseLag(const char *text, HttpRequest *request) noexcept
{
    int64_t number = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(number, 10, &number) || __builtin_add_overflow(number, *at - '0', &number))
            return false;
    if (at == text)
        return false;
    while (*at == ' ')
        at++;
    for (const Unit &unit : units) {
        if (strcmp(at, unit.name) != 0)
            continue;
        bool *has = unit.of_time ? &request->has_max_lag_us : &request->has_max_lag_bytes;
        if (*has)
            return false;
        *has = true;
        return !__builtin_mul_overflow(number, unit.factor,
                                       unit.of_time ? &request->max_lag_us : &request->max_lag_bytes);
    }
    return false;
}

const char *ParseHttpTarget(const char *text, size_t length, HttpRequest *request) noexcept
{
    *request = {};
    if (length > kMaxTarget)
        return "the request target is too long";
    const auto *question = static_cast<const char *>(memchr(text, '?', length));
    const size_t path_length = question != nullptr ? static_cast<size_t>(question - text) : length;
    for (const Path &path : paths)
        if (strlen(path.name) == path_length && memcmp(text, path.name, path_length) == 0)
            request->endpoint = path.endpoint;
    if (request->endpoint == Endpoint::kNone)
        return nullptr;
    const char *error = nullptr;
    if (question != nullptr)
        error = ParseParameters(question + 1, length - path_length - 1, request);
    if (error == nullptr && request->endpoint == Endpoint::kThrottleCheck && request->app[0] == '\0')
        error = "app: write /throttle/check?app=NAME";
    return error;
}

} // namespace weir
