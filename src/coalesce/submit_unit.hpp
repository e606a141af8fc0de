#pragma once

// To execute a unit of weir.submit() in the current transaction, as whoever the current user is: by a
// submitter, and by the caller itself.
//
// Each statement is prepared when the ones before it have run. Parameters are text, and of the type that the
// statement makes of them, as those of a client that leaves their types open; each statement decides that for
// itself. Plans are kept, by text, search_path and role.

#include "coalesce/submit_request.hpp"
#include "pg/prelude.hpp"

namespace weir
{

enum class UnitPlace {
    kWorker, // nothing but SELECT, INSERT, UPDATE, DELETE and MERGE
    kCall,   // the session, by a call that is its whole statement
    kNested  // the session, deeper: plans are not kept, those in use would be thrown away
};

struct UnitOutcome {
    bool refused;  // kWorker: it has another statement, and nothing was executed
    bool replayed; // nothing was executed, what is remembered of its key is the outcome
    int64 rows;    // that its INSERTs, UPDATEs, DELETEs and MERGEs were about
};

UnitOutcome ExecuteUnit(const Unit &unit, UnitPlace place);

} // namespace weir
