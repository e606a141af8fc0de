#pragma once

// Text into a buffer of a fixed size: what does not fit is left out, whole pieces at a time, and Full() says
// so. Numbers are written without regard to any locale.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include <cstddef>
#include <cstdint>

namespace weir
{

class TextWriter
{
  public:
    TextWriter(char *buffer, size_t capacity) noexcept : buffer_(buffer), capacity_(capacity) {}

    void Put(const char *text) noexcept;
    void Put(const char *text, size_t length) noexcept;
    void PutChar(char c) noexcept { Put(&c, 1); }
    void PutCount(uint64_t value) noexcept;
    void PutInt(int64_t value) noexcept;
    void
    PutReal(double value) noexcept; // the shortest text that reads back as the same number; NaN, +Inf, -Inf
    void PutLsn(uint64_t lsn) noexcept; // as PostgreSQL writes it: 16/B374D848

    // Between double quotes of JSON, or of a label in Prometheus's text.
    void PutJson(const char *text) noexcept;
    void PutLabel(const char *text) noexcept;

    // Where the text is now; and back to there: what came after is as if it had never been written.
    size_t Length() const noexcept { return length_; }
    void CutTo(size_t length) noexcept { length_ = length; }
    bool Full() const noexcept { return full_; }

  private:
    void PutHex(uint32_t value) noexcept;

    char *buffer_;
    size_t capacity_;
    size_t length_ = 0;
    bool full_ = false; // something was left out: nothing is written any more
};

} // namespace weir
