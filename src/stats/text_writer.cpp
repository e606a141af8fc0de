#include "stats/text_writer.hpp"

#include <charconv>
#include <cmath>
#include <cstring>

#include "pure_only.hpp"

namespace weir
{

namespace
{

constexpr size_t kNumberSize = 64; // the longest: a double takes 24

} // namespace

void TextWriter::Put(const char *text, size_t length) noexcept
{
    if (full_ || length > capacity_ - length_) {
        full_ = true;
        return;
    }
    memcpy(buffer_ + length_, text, length);
    length_ += length;
}

void TextWriter::Put(const char *text) noexcept
{
    Put(text, strlen(text));
}

void TextWriter::PutCount(uint64_t value) noexcept
{
    char number[kNumberSize];
    Put(number, static_cast<size_t>(std::to_chars(number, number + kNumberSize, value).ptr - number));
}

void TextWriter::PutInt(int64_t value) noexcept
{
    char number[kNumberSize];
    Put(number, static_cast<size_t>(std::to_chars(number, number + kNumberSize, value).ptr - number));
}

void TextWriter::PutReal(double value) noexcept
{
    if (std::isnan(value)) {
        Put("NaN");
        return;
    }
    if (std::isinf(value)) {
        Put(value > 0 ? "+Inf" : "-Inf");
        return;
    }
    char number[kNumberSize];
    Put(number, static_cast<size_t>(std::to_chars(number, number + kNumberSize, value).ptr - number));
}

void TextWriter::PutLsn(uint64_t lsn) noexcept
{
    PutHex(static_cast<uint32_t>(lsn >> 32));
    PutChar('/');
    PutHex(static_cast<uint32_t>(lsn));
}

void TextWriter::PutHex(uint32_t value) noexcept
{
    constexpr char kDigits[] = "0123456789ABCDEF";
    char digits[8];
    size_t begin = sizeof(digits);
    do {
        digits[--begin] = kDigits[value & 15];
        value >>= 4;
    } while (value != 0);
    Put(digits + begin, sizeof(digits) - begin);
}

void TextWriter::PutJson(const char *text) noexcept
{
    constexpr char kDigits[] = "0123456789abcdef";
    for (; *text != '\0'; text++) {
        const auto c = static_cast<unsigned char>(*text);
        if (c == '"' || c == '\\') {
            PutChar('\\');
            PutChar(*text);
        } else if (c < 0x20) {
            const char escape[] = {'\\', 'u', '0', '0', kDigits[c >> 4], kDigits[c & 15]};
            Put(escape, sizeof(escape));
        } else {
            PutChar(*text);
        }
    }
}

void TextWriter::PutLabel(const char *text) noexcept
{
    for (; *text != '\0'; text++) {
        if (*text == '\n') {
            Put("\\n");
            continue;
        }
        if (*text == '"' || *text == '\\')
            PutChar('\\');
        PutChar(*text);
    }
}

} // namespace weir
