#include "coalesce/submit_unit.hpp"

#include "coalesce/submit_keys.hpp"
#include "pg/compat.hpp"

extern "C" {
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type_d.h"
#include "common/hashfn.h"
#include "executor/spi.h"
#include "nodes/params.h"
#include "nodes/parsenodes.h"
#include "parser/analyze.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
}

namespace weir
{

namespace
{

constexpr int kMostKept = 64;
constexpr unsigned kMostSeen = 256;

struct Statement {
    SPIPlanPtr plan;
    bool counts; // its rows are the unit's
    int type_count;
    Oid *types; // of its parameters; InvalidOid: it does not use that one
};

// In a memory context of its own, with all it points to but the plans.
struct PreparedUnit {
    MemoryContext context;
    uint64 hash;
    Oid user;
    char *sql;
    char *search_path;
    int parameter_count;
    int count;
    Statement *statements;
};

PreparedUnit *kept[kMostKept];
uint32 seen_once[kMostSeen]; // hashes of what came already: only what comes again is kept

// ---- plans that are kept ------------------------------------------------------------------------------

uint64 HashOf(const Unit &unit)
{
    return hash_bytes_extended(reinterpret_cast<const unsigned char *>(unit.sql),
                               static_cast<int>(unit.sql_size), unit.parameter_count);
}

void Drop(PreparedUnit **place)
{
    PreparedUnit *unit = *place;
    *place = nullptr;
    for (int i = 0; i < unit->count; i++)
        SPI_freeplan(unit->statements[i].plan);
    MemoryContextDelete(unit->context);
}

bool IsValid(const PreparedUnit &unit)
{
    for (int i = 0; i < unit.count; i++)
        if (!SPI_plan_is_valid(unit.statements[i].plan))
            return false;
    return true;
}

// Types of parameters were found for this user's view of the database, as it was then.
PreparedUnit *FindKept(const Unit &unit, uint64 hash)
{
    for (PreparedUnit *&at : kept) {
        if (at == nullptr || at->hash != hash || at->user != GetUserId() ||
            at->parameter_count != static_cast<int>(unit.parameter_count) || strcmp(at->sql, unit.sql) != 0 ||
            strcmp(at->search_path, namespace_search_path) != 0)
            continue;
        if (IsValid(*at))
            return at;
        Drop(&at);
    }
    return nullptr;
}

bool ComesAgain(uint64 hash)
{
    uint32 *seen = &seen_once[hash % kMostSeen];
    const auto rest = static_cast<uint32>(hash >> 32) | 1;
    const bool again = *seen == rest;
    *seen = rest;
    return again;
}

void Keep(PreparedUnit *unit)
{
    static unsigned next = 0;
    PreparedUnit **place = &kept[next++ % kMostKept];
    if (*place != nullptr)
        Drop(place);
    for (int i = 0; i < unit->count; i++)
        SPI_keepplan(unit->statements[i].plan);
    MemoryContextSetParent(unit->context, TopMemoryContext);
    *place = unit;
}

// ---- preparing ------------------------------------------------------------------------------------------

char *TextOf(const RawStmt *statement, const char *sql)
{
    const int from = Max(statement->stmt_location, 0);
    return statement->stmt_len > 0 ? pnstrdup(sql + from, static_cast<Size>(statement->stmt_len))
                                   : pstrdup(sql + from);
}

bool IsSelect(const Node *statement)
{
    return IsA(statement, SelectStmt) &&
           reinterpret_cast<const SelectStmt *>(statement)->intoClause == nullptr;
}

bool IsWrite(const Node *statement)
{
    return IsA(statement, InsertStmt) || IsA(statement, UpdateStmt) || IsA(statement, DeleteStmt) ||
           IsA(statement, MergeStmt);
}

bool AreAllForWorkers(const List *statements)
{
    ListCell *cell;
    foreach (cell, statements) {
        const Node *statement = lfirst_node(RawStmt, cell)->stmt;
        if (!IsSelect(statement) && !IsWrite(statement))
            return false;
    }
    return true;
}

void RefuseTransactionControl(const List *statements)
{
    ListCell *cell;
    foreach (cell, statements)
        if (IsA(lfirst_node(RawStmt, cell)->stmt, TransactionStmt))
            ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                            errmsg("weir.submit() cannot execute transaction commands"),
                            errdetail("All statements of a unit are one transaction.")));
}

// What the statement makes of its parameters.
void FindTypes(const RawStmt *raw, const char *text, int given, Statement *statement)
{
    statement->types = nullptr;
    statement->type_count = 0;
    if (given == 0)
        return;
    parse_analyze_varparams(copyObject(const_cast<RawStmt *>(raw)), text, &statement->types,
                            &statement->type_count, nullptr);
    if (statement->type_count > given)
        ereport(ERROR, (errcode(ERRCODE_UNDEFINED_PARAMETER),
                        errmsg("there is no parameter $%d", statement->type_count),
                        errdetail("weir.submit() was given %d parameters.", given)));
    for (int i = 0; i < statement->type_count; i++)
        if (statement->types[i] == UNKNOWNOID)
            ereport(ERROR, (errcode(ERRCODE_INDETERMINATE_DATATYPE),
                            errmsg("could not determine data type of parameter $%d", i + 1)));
}

Statement Prepare(const RawStmt *raw, const char *sql, int given)
{
    Statement statement;
    char *text = TextOf(raw, sql);
    // The statement's own text: positions in errors are those in it.
    RawStmt *alone = linitial_node(RawStmt, pg_parse_query(text));
    statement.counts = IsWrite(alone->stmt);
    FindTypes(alone, text, given, &statement);
    statement.plan = SPI_prepare(text, statement.type_count, statement.types);
    if (statement.plan == nullptr)
        elog(ERROR, "pg_weir: SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
    return statement;
}

// ---- executing ------------------------------------------------------------------------------------------

ParamListInfo ParametersFor(const Statement &statement, const Unit &unit)
{
    if (statement.type_count == 0)
        return nullptr;
    ParamListInfo list = makeParamList(statement.type_count);
    for (int i = 0; i < statement.type_count; i++) {
        ParamExternData *to = &list->params[i];
        const UnitParameter &from = unit.parameters[i];
        to->ptype = statement.types[i];
        to->pflags = PARAM_FLAG_CONST;
        to->isnull = from.text == nullptr;
        to->value = 0;
        if (!OidIsValid(to->ptype)) {
            to->isnull = true;
            continue;
        }
        Oid input;
        Oid io_type;
        getTypeInputInfo(to->ptype, &input, &io_type);
        to->value = OidInputFunctionCall(input, const_cast<char *>(from.text), io_type, -1);
    }
    return list;
}

int64 Execute(const Statement &statement, const Unit &unit)
{
    SPIExecuteOptions options = {};
    options.params = ParametersFor(statement, unit);
    options.dest = CreateDestReceiver(DestNone);
    const int code = SPI_execute_plan_extended(statement.plan, &options);
    if (code == SPI_ERROR_COPY)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("weir.submit() cannot COPY from or to the client")));
    if (code < 0)
        elog(ERROR, "pg_weir: SPI_execute_plan failed: %s", SPI_result_code_string(code));
    return statement.counts ? static_cast<int64>(SPI_processed) : 0;
}

void CheckParameterCount(const PreparedUnit &prepared)
{
    int used = 0;
    for (int i = 0; i < prepared.count; i++)
        used = Max(used, prepared.statements[i].type_count);
    if (used < prepared.parameter_count)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("weir.submit() was given %d parameters, but the unit uses %d",
                               prepared.parameter_count, used)));
}

int64 ExecuteKept(const PreparedUnit &prepared, const Unit &unit)
{
    int64 rows = 0;
    for (int i = 0; i < prepared.count; i++)
        rows += Execute(prepared.statements[i], unit);
    return rows;
}

PreparedUnit *NewPreparedUnit(const Unit &unit, uint64 hash, int statements)
{
    const MemoryContext context =
        AllocSetContextCreate(CurrentMemoryContext, "pg_weir unit", ALLOCSET_SMALL_SIZES);
    const MemoryContext previous = MemoryContextSwitchTo(context);
    auto *prepared = static_cast<PreparedUnit *>(palloc0(sizeof(PreparedUnit)));
    prepared->context = context;
    prepared->hash = hash;
    prepared->user = GetUserId();
    prepared->sql = pstrdup(unit.sql);
    prepared->search_path = pstrdup(namespace_search_path);
    prepared->parameter_count = static_cast<int>(unit.parameter_count);
    prepared->statements =
        static_cast<Statement *>(palloc0(sizeof(Statement) * static_cast<Size>(statements)));
    MemoryContextSwitchTo(previous);
    return prepared;
}

// The types go where they last as long as the plan.
void Add(PreparedUnit *prepared, const Statement &statement)
{
    Statement *added = &prepared->statements[prepared->count];
    *added = statement;
    if (statement.type_count > 0) {
        const Size size = sizeof(Oid) * static_cast<Size>(statement.type_count);
        added->types = static_cast<Oid *>(MemoryContextAlloc(prepared->context, size));
        memcpy(added->types, statement.types, size);
    }
    prepared->count++;
}

// In SPI's memory context. `keep`: the plans, if that makes sense.
int64 PrepareAndExecute(const List *raw, const Unit &unit, uint64 hash, bool keep)
{
    PreparedUnit *prepared = NewPreparedUnit(unit, hash, list_length(raw));
    int64 rows = 0;
    ListCell *cell;
    foreach (cell, raw) {
        const Statement statement = Prepare(lfirst_node(RawStmt, cell), unit.sql, prepared->parameter_count);
        Add(prepared, statement);
        rows += Execute(statement, unit);
    }
    CheckParameterCount(*prepared);
    if (keep && ComesAgain(hash) && AreAllForWorkers(raw))
        Keep(prepared);
    return rows;
}

UnitOutcome RunStatements(const Unit &unit, UnitPlace place)
{
    const bool keeps = place != UnitPlace::kNested;
    const uint64 hash = HashOf(unit);
    const PreparedUnit *prepared = keeps ? FindKept(unit, hash) : nullptr;
    if (prepared != nullptr)
        return {false, false, ExecuteKept(*prepared, unit)};
    const List *raw = pg_parse_query(unit.sql);
    if (raw == NIL)
        ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                        errmsg("weir.submit() was given no statement to execute")));
    if (place == UnitPlace::kWorker && !AreAllForWorkers(raw))
        return {true, false, 0};
    RefuseTransactionControl(raw);
    return {false, false, PrepareAndExecute(raw, unit, hash, keeps)};
}

UnitOutcome RunOnce(const Unit &unit, UnitPlace place)
{
    UnitOutcome outcome = {false, true, 0};
    uint8 request[kRequestHashSize];
    HashRequest(unit, request);
    if (FindOutcome(unit, request, &outcome.rows))
        return outcome;
    outcome = RunStatements(unit, place);
    if (!outcome.refused)
        RememberOutcome(unit, request, outcome.rows);
    return outcome;
}

} // namespace

UnitOutcome ExecuteUnit(const Unit &unit, UnitPlace place)
{
    const bool needs_snapshot = !ActiveSnapshotSet();
    if (needs_snapshot)
        PushActiveSnapshot(GetTransactionSnapshot());
    SPI_connect();
    const UnitOutcome outcome = unit.key != nullptr ? RunOnce(unit, place) : RunStatements(unit, place);
    SPI_finish();
    if (needs_snapshot)
        PopActiveSnapshot();
    return outcome;
}

} // namespace weir
