#pragma once

// What a client carries from its write to its read: how far WAL must be replayed, and on which timeline.
//
// Written LSN or LSN@timeline: 0/3000060, 0/3000060@2. Without the timeline a write that was lost at a
// promotion cannot be told from one that was kept.
//
// Pure: no PostgreSQL header, no clock, no system call.

#include "admission/spec_text.hpp"

namespace weir
{

struct LsnToken {
    uint64_t lsn;      // the end of the commit record; 0: nothing to wait for
    uint32_t timeline; // 0: not said
};

inline bool operator==(const LsnToken &a, const LsnToken &b) noexcept
{
    return a.lsn == b.lsn && a.timeline == b.timeline;
}

// For a format with %X/%X.
#define WEIR_LSN_PARTS(lsn) static_cast<uint32_t>((lsn) >> 32), static_cast<uint32_t>(lsn)

constexpr char kLsnTokenGrammar[] =
    "Write an LSN as pg_lsn does, and optionally its timeline: 0/3000060 or 0/3000060@2.";

// An empty or null text is a token with nothing to wait for.
bool ParseLsnToken(const char *text, LsnToken *token, ParseError *error) noexcept;

} // namespace weir
