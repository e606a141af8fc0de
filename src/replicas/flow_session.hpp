#pragma once

// This process as a writer: its place in the line, what it holds, what it has been charged. flow.cpp,
// flow_bulk.cpp, flow_vacuum.cpp.

#include "replicas/flow.hpp"

namespace weir
{

// WAL that this process has written.
struct WalAmount {
    uint64_t bytes;
    uint64_t records;
};

struct FlowSession {
    int64_t held[kFlowLanes]; // reserved in each line, and not charged yet
    int64_t estimate;         // bytes of one of its transactions; 0: not known
    WalAmount mark;           // that was written at the last charge
    bool batch;               // draws from the batch lane as well
    bool waiting;             // in the line `line`, with held[line]
    uint32_t line;
    int64_t position;
    LocalTransactionId held_in; // the transaction that waited, or need not
};

extern FlowSession flow_session;

uint64_t WalBytesWritten();

// What was written since the mark, which moves on.
WalAmount WrittenSince(WalAmount *mark);

// Charges what was written since the last charge.
void ChargeFlow();

// In a line with `bytes`; first in the batch lane, if that is the session's.
void EnterLine(int64_t bytes);
// Out of it, without having had its turn.
void LeaveLine();
// True: it has to wait `*left_us`. False: it is out of the line, and has what it reserved.
bool IsHeldInLine(int64_t now, int64_t *left_us);

// At the end of a transaction of any process: from then on an autovacuum worker rests, where it must.
void PaceAutovacuum();

uint32 ThrottleWaitEvent();

} // namespace weir
