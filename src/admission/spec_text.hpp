#pragma once

// What the two setting languages, weir.classes and weir.class_map, share: where a mistake is, and a cursor
// over the text.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace weir
{

constexpr size_t kClassNameSize = 64; // with the NUL
constexpr char kClassNameGrammar[] = "a class name (a letter or _, then letters, digits, _, $ or -)";

// Why a text was refused. The message names what was expected; it never quotes the user's text beyond ASCII
// identifiers, so it is valid in every encoding.
struct ParseError {
    uint32_t position; // offset in bytes from the start of the text, 0 for the first; at most its length
    char message[160];
};

// A cursor over NUL-terminated text. It never moves past the NUL, so every loop over it ends.
class SpecReader
{
  public:
    // A null text is an empty one.
    SpecReader(const char *text, ParseError *error) noexcept
        : text_(text != nullptr ? text : ""), error_(error)
    {
        error_->position = 0;
        error_->message[0] = '\0';
    }

    char Peek() const noexcept { return text_[at_]; }
    bool AtEnd() const noexcept { return Peek() == '\0'; }
    uint32_t Position() const noexcept { return at_; }
    const char *Here() const noexcept { return text_ + at_; }

    bool AtArrow() const noexcept { return text_[at_] == '=' && text_[at_ + 1] == '>'; }

    static bool IsBlank(char c) noexcept { return c == ' ' || (c >= '\t' && c <= '\r'); }

    // Consumes one byte, if there is one.
    void Advance() noexcept
    {
        if (!AtEnd())
            at_++;
    }

    bool Take(char c) noexcept
    {
        if (AtEnd() || Peek() != c)
            return false;
        at_++;
        return true;
    }

    void SkipBlanks() noexcept
    {
        while (IsBlank(Peek()))
            at_++;
    }

    void SkipBlanksAndCommas() noexcept
    {
        while (IsBlank(Peek()) || Peek() == ',')
            at_++;
    }

    // Reads [A-Za-z_][A-Za-z0-9_$-]*, folded to lower case as SQL folds identifiers. `expected` completes the
    // message "expected ..." where there is none.
    bool ReadIdentifier(const char *expected, char (&out)[kClassNameSize]) noexcept
    {
        const uint32_t start = at_;
        size_t length = 0;

        while (IsIdentifierByte(Peek(), at_ == start)) {
            if (length == kClassNameSize - 1)
                return FailAt(start, "expected %s of at most %zu bytes", expected, kClassNameSize - 1);
            out[length++] = Fold(Peek());
            at_++;
        }
        out[length] = '\0';
        return length > 0 || Fail("expected %s", expected);
    }

    // Both return false, so that a parser can say `return in.Fail(...)`.
    __attribute__((format(printf, 2, 3))) bool Fail(const char *format, ...) noexcept
    {
        va_list args;
        va_start(args, format);
        Report(at_, format, args);
        va_end(args);
        return false;
    }

    __attribute__((format(printf, 3, 4))) bool FailAt(uint32_t position, const char *format, ...) noexcept
    {
        va_list args;
        va_start(args, format);
        Report(position, format, args);
        va_end(args);
        return false;
    }

  private:
    // Not <cctype>: its answers depend on the locale.
    static bool IsIdentifierByte(char c, bool first) noexcept
    {
        if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_')
            return true;
        return !first && ((c >= '0' && c <= '9') || c == '$' || c == '-');
    }

    static char Fold(char c) noexcept { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

    __attribute__((format(printf, 3, 0))) void Report(uint32_t position, const char *format,
                                                      va_list args) noexcept
    {
        error_->position = position;
        vsnprintf(error_->message, sizeof(error_->message), format, args);
    }

    const char *text_;
    ParseError *error_;
    uint32_t at_ = 0;
};

} // namespace weir
