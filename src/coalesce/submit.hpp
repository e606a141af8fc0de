#pragma once

// weir.submit(): a unit of SQL that is executed as if by its caller, and shares its commit and flush with
// other units of the same role.
//
// The safe way to execute anybody's SQL elsewhere is to be that body: a submitter is a background worker that
// has connected to the database as the session's role, and serves that role alone (submit_worker.cpp). It
// takes over the session's settings, and SET ROLE, for each unit, and looks whether it succeeded
// (submit_settings.hpp). Whatever goes wrong there, an error of the unit included, the unit is not executed
// there: its caller executes it itself, in its own transaction, by the same code (submit_unit.hpp), and that
// run gives the answer. So it does when there is no worker, and when its transaction is more than this call.
//
// With a key the outcome is remembered in the transaction of the unit's writes (submit_keys.hpp).

#include "coalesce/coalescing.hpp"
#include "coalesce/company.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "executor/execdesc.h"
}

namespace weir
{

constexpr uint32_t kSubmitCompanies = 64; // a power of two

// In shared memory. Counters: anybody, relaxed; a process that dies in between loses a count.
struct SubmitShared {
    std::atomic<uint64_t> units; // committed by workers, and their rows
    std::atomic<uint64_t> rows;
    std::atomic<uint64_t> batches;
    std::atomic<uint64_t> replayed; // answered by what is remembered of their key, wherever
    std::atomic<uint64_t> in_place[static_cast<size_t>(Decline::kCount)]; // not given to a worker
    std::atomic<uint64_t> given_back[static_cast<size_t>(GiveBack::kCount)];
    Histogram batch_units;
    Histogram waits;
    Company companies[kSubmitCompanies]; // of a role in a database, by hash: sharing one only blurs it

    void ResetStatistics() noexcept;
};

void InstallSubmit();

// Before ExecutorStart of a SELECT: whether it is a call that will, as far as can be told, be handed to a
// worker. Then it needs no slot of the transaction gate. Costs next to nothing where nobody submits.
bool MayBeSubmitted(const QueryDesc *query_desc);

} // namespace weir
