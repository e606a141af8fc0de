#pragma once

// Which tables have opted in, and what of a table decides whether its writes can be coalesced: cached in each
// backend, and forgotten when the server says that the table changed.
//
// The table weir.coalesced_table is the truth. A trigger on it tells all backends of a change, through the
// relation cache's invalidations, at commit. That a table is dropped is seen by an object access hook, which
// takes its row along: a regclass that outlives its table would be a number in the next dump. (An event
// trigger would do it too, but event triggers can be switched off, and then nobody would know.)

#include "coalesce/coalescing.hpp"
#include "pg/prelude.hpp"

extern "C" {
#include "nodes/bitmapset.h"
#include "utils/relcache.h"
}

namespace weir
{

struct TableFacts {
    Oid relation; // the hash key
    bool known;
    uint64_t version; // moves on when the table has changed
    Decline insert;
    Decline update;
    Decline remove;
    Bitmapset *fixed; // columns that an UPDATE may not set, offset as attribute numbers in bitmaps are
    TableStatistics *statistics;
    uint32_t row_type; // of its columns: RowTypeOf()
    bool partitioned;
};

// This process knows that no table of its database has opted in: the one branch that statements pay then.
extern bool nothing_opted_in;

// Null: the table has not opted in. In a transaction.
const TableFacts *FactsOf(Relation relation);

// The same by what is cached; null also if that is not known now.
const TableFacts *FactsKnownOf(Oid relation);

// Of a partition whose root has opted in: whether rows that are routed to it can be coalesced. Opened.
Decline JudgePartition(Relation partition);

void InstallOptIn();

} // namespace weir
