#include "replicas/lsn_token.hpp"

#include "pure_only.hpp"

namespace weir
{

namespace
{

// -1: none.
int DigitOf(char c) noexcept
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

// A number of at most `most` digits, at least one.
bool TakeNumber(SpecReader *reader, uint64_t base, int most, uint64_t *number) noexcept
{
    int digits = 0;
    *number = 0;
    for (; digits < most; digits++) {
        const int digit = DigitOf(reader->Peek());
        if (digit < 0 || static_cast<uint64_t>(digit) >= base)
            break;
        *number = *number * base + static_cast<uint64_t>(digit);
        reader->Advance();
    }
    return digits > 0;
}

bool Fail(const SpecReader &reader, ParseError *error, const char *expected) noexcept
{
    error->position = reader.Position();
    snprintf(error->message, sizeof(error->message), "%s expected", expected);
    return false;
}

} // namespace

bool ParseLsnToken(const char *text, LsnToken *token, ParseError *error) noexcept
{
    constexpr int kHexDigits = 8;
    constexpr int kTimelineDigits = 10;
    constexpr uint64_t kMaxTimeline = 0xffffffff;
    *token = {0, 0};
    SpecReader reader(text, error);
    if (reader.AtEnd())
        return true;
    uint64_t high;
    uint64_t low;
    if (!TakeNumber(&reader, 16, kHexDigits, &high))
        return Fail(reader, error, "1 to 8 hexadecimal digits");
    if (!reader.Take('/'))
        return Fail(reader, error, "\"/\"");
    if (!TakeNumber(&reader, 16, kHexDigits, &low))
        return Fail(reader, error, "1 to 8 hexadecimal digits");
    uint64_t timeline = 0;
    if (reader.Take('@') &&
        (!TakeNumber(&reader, 10, kTimelineDigits, &timeline) || timeline == 0 || timeline > kMaxTimeline))
        return Fail(reader, error, "a timeline, 1 to 4294967295,");
    if (!reader.AtEnd())
        return Fail(reader, error, "the end");
    *token = {high << 32 | low, static_cast<uint32_t>(timeline)};
    return true;
}

} // namespace weir
