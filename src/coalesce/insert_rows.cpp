#include "coalesce/insert_rows.hpp"

#include "coalesce/opt_in.hpp"
#include "pg/compat.hpp"

extern "C" {
#include "access/detoast.h"
#include "access/heaptoast.h"
#include "access/toast_internals.h"
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_proc_d.h"
#include "executor/execPartition.h"
#include "executor/nodeModifyTable.h"
#include "mb/pg_wchar.h"
#include "nodes/execnodes.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/resowner.h"
}

namespace weir
{

namespace
{

// A statement with more is a batch by itself.
constexpr uint32_t kMostRows = 256;

// What the expressions of an INSERT may do besides computing a value.
struct Effects {
    bool refused;
    bool sequence; // nextval(): may get the transaction an xid, which then does not mean that it wrote
    bool foreign;  // functions of which nobody knows: they may say that they are stable, and write
};

Effects effects; // of the statement being coalesced

// check_functions_in_node's callback. What is volatile and harmless is listed; it must write nothing, and
// depend on nothing that the row's own transaction would change.
bool CheckFunction(Oid function, void *context)
{
    auto *e = static_cast<Effects *>(context);
    switch (function) {
    case F_NEXTVAL:
        e->sequence = true;
        return false;
    case F_CLOCK_TIMESTAMP:
    case F_GEN_RANDOM_UUID:
    case F_TIMEOFDAY:
    case kRandomFunction:
        return false;
    default:
        break;
    }
    if (function >= FirstUnpinnedObjectId)
        e->foreign = true;
    if (func_volatile(function) == PROVOLATILE_VOLATILE)
        e->refused = true;
    return false;
}

bool WalkEffects(Node *node, Effects *e)
{
    if (node == nullptr || e->refused)
        return false;
    if (IsA(node, SubPlan) || IsA(node, AlternativeSubPlan) ||
        (IsA(node, Param) && reinterpret_cast<Param *>(node)->paramkind != PARAM_EXTERN)) {
        e->refused = true;
        return true;
    }
    if (IsA(node, NextValueExpr))
        e->sequence = true;
    else if (IsA(node, CoerceToDomain))
        e->foreign = true;
    check_functions_in_node(node, CheckFunction, e);
    return WalkTree(node, WalkEffects, e);
}

ResultRelInfo *TargetOf(const QueryDesc *query_desc)
{
    return castNode(ModifyTableState, query_desc->planstate)->resultRelInfo;
}

// ---- rows that go back ----------------------------------------------------------------------------

// What was pulled for the statement being coalesced.
struct Pulled {
    MinimalTuple *earlier; // rows as the plan gave them, without the last one
    uint32_t earlier_count;
    TupleTableSlot *held; // the last one, in the plan's own slot; null: `error` comes then
    ErrorData *error;     // what the next row failed with
    bool external;        // some value points into a table: its snapshot must be kept

    // The rows as they travel: in the payload, or in memory of the statement's when they do not fit there.
    char *body;
    size_t size;
    size_t room;
    uint32_t packed;
    bool grown; // it is the latter
};

Pulled pulled;

struct RowsBack {
    ExecProcNodeMtd original;
    TupleTableSlot *slot;
    uint32_t next;
};

RowsBack *rows_back; // of the one statement that can have them

TupleTableSlot *NextRow(PlanState *below)
{
    RowsBack *back = rows_back;
    if (back->next < pulled.earlier_count)
        return ExecStoreMinimalTuple(pulled.earlier[back->next++], back->slot, false);
    below->ExecProcNode = back->original;
    if (pulled.error != nullptr)
        ReThrowError(pulled.error);
    if (pulled.held != nullptr)
        return pulled.held;
    return ExecProcNode(below);
}

// ---- rows that travel -----------------------------------------------------------------------------

// The partition that the row belongs to, and the row as that one has its columns.
ResultRelInfo *Route(ModifyTableState *modify, ResultRelInfo *root, TupleTableSlot **row)
{
    ResultRelInfo *partition =
        ExecFindPartition(modify, root, modify->mt_partition_tuple_routing, *row, modify->ps.state);
    const TupleConversionMap *map = RootToPartitionMap(partition, modify->ps.state);
    if (map != nullptr)
        *row = execute_attr_map_slot(map->attrMap, *row, partition->ri_PartitionTupleSlot);
    return partition;
}

// The checks that ExecInsert() makes before it writes, in its order.
TupleTableSlot *FinishRow(EState *estate, ResultRelInfo *target, TupleTableSlot *row)
{
    Relation relation = target->ri_RelationDesc;
    const TupleConstr *constraints = RelationGetDescr(relation)->constr;
    row->tts_tableOid = RelationGetRelid(relation);
    if (constraints != nullptr && constraints->has_generated_stored) {
        // In a slot of our own: the plan's is fed back as it is.
        TupleTableSlot *own = table_slot_create(relation, &estate->es_tupleTable);
        row = ExecCopySlot(own, row);
        row->tts_tableOid = RelationGetRelid(relation);
        ExecComputeStoredGenerated(target, estate, row, CMD_INSERT);
    }
    if (target->ri_WithCheckOptions != NIL)
        ExecWithCheckOptions(WCO_RLS_INSERT_CHECK, target, row, estate);
    if (constraints != nullptr)
        ExecConstraints(target, row, estate);
    return row;
}

// A large value as it travels: in one piece, and compressed, as storing it would do it. So the worker need
// not, and default_toast_compression is the session's.
Datum ShrinkValue(Datum value, Form_pg_attribute column)
{
    auto *varlena = reinterpret_cast<struct varlena *>(DatumGetPointer(value));
    if (VARATT_IS_EXTERNAL(varlena))
        varlena = detoast_external_attr(varlena);
    value = PointerGetDatum(varlena);
    if (VARATT_IS_COMPRESSED(varlena) || VARSIZE_ANY(varlena) <= TOAST_TUPLE_TARGET ||
        column->attstorage != TYPSTORAGE_EXTENDED)
        return value;
    const Datum compressed = toast_compress_datum(value, column->attcompression);
    return DatumGetPointer(compressed) != nullptr ? compressed : value;
}

// `descriptor`: the table's. The row's own may be the plan's, which knows nothing of how columns are stored.
MinimalTuple ShrinkRow(TupleTableSlot *row, TupleDesc descriptor)
{
    const auto columns = static_cast<size_t>(descriptor->natts);
    auto *values = static_cast<Datum *>(palloc(columns * sizeof(Datum)));
    slot_getallattrs(row);
    memcpy(values, row->tts_values, columns * sizeof(Datum));
    for (int i = 0; i < descriptor->natts; i++)
        if (!row->tts_isnull[i] && TupleDescAttr(descriptor, i)->attlen == -1)
            values[i] = ShrinkValue(values[i], TupleDescAttr(descriptor, i));
    return FormMinimalTuple(descriptor, values, row->tts_isnull);
}

// Room for so much more. False: it would be more than a request can have.
bool Reserve(size_t size)
{
    if (size <= pulled.room - pulled.size)
        return true;
    const size_t needed = pulled.size + size;
    if (needed > LargestPayload())
        return false;
    pulled.room = Min(Max(needed, 2 * pulled.room), LargestPayload());
    auto *body = static_cast<char *>(palloc(pulled.room));
    memcpy(body, pulled.body, pulled.size);
    pulled.body = body;
    pulled.grown = true;
    return true;
}

bool PackRow(TupleTableSlot *row, Relation relation)
{
    MinimalTuple tuple = ExecCopySlotMinimalTuple(row);
    const bool external = (tuple->t_infomask & HEAP_HASEXTERNAL) != 0;
    if (external || tuple->t_len > TOAST_TUPLE_TARGET) {
        heap_free_minimal_tuple(tuple);
        tuple = ShrinkRow(row, RelationGetDescr(relation));
        pulled.external = pulled.external || external;
    }
    const RowHeader header = {RelationGetRelid(relation), 0};
    const size_t size = sizeof(header) + MAXALIGN(tuple->t_len);
    const bool fits = Reserve(size);
    if (fits) {
        memcpy(pulled.body + pulled.size, &header, sizeof(header));
        memcpy(pulled.body + pulled.size + sizeof(header), tuple, tuple->t_len);
        pulled.size += size;
        pulled.packed++;
    }
    heap_free_minimal_tuple(tuple);
    return fits;
}

// The next row: from the plan, checked, packed.
Decline PullRow(QueryDesc *query_desc)
{
    auto *modify = castNode(ModifyTableState, query_desc->planstate);
    ResultRelInfo *target = modify->resultRelInfo;
    ResetPerTupleExprContext(query_desc->estate);
    TupleTableSlot *row = ExecProcNode(outerPlanState(modify));
    pulled.held = row;
    if (modify->mt_partition_tuple_routing != nullptr) {
        target = Route(modify, target, &row);
        const Decline why = JudgePartition(target->ri_RelationDesc);
        if (why != Decline::kNone)
            return why;
    }
    row = FinishRow(query_desc->estate, target, row);
    return PackRow(row, target->ri_RelationDesc) ? Decline::kNone : Decline::kTooLarge;
}

// Rows after the first, in a subtransaction: if one fails, those before it must be inserted first, as they
// may have an error of their own, which then is the one to be reported. Nothing else becomes of the
// statement: it fails either way, and so nothing needs to be undone but what an error leaves behind.
Decline PullFurtherRows(QueryDesc *query_desc, uint32_t count)
{
    const MemoryContext context = CurrentMemoryContext;
    ResourceOwner owner = CurrentResourceOwner;
    volatile Decline why = Decline::kNone;
    BeginInternalSubTransaction(nullptr);
    MemoryContextSwitchTo(context);
    CurrentResourceOwner = owner; // partitions that are opened belong to the statement
    PG_TRY();
    {
        for (uint32_t i = 1; i < count && why == Decline::kNone; i++) {
            pulled.earlier[pulled.earlier_count++] = ExecCopySlotMinimalTuple(pulled.held);
            pulled.held = nullptr;
            why = PullRow(query_desc);
        }
        ReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
    }
    PG_CATCH();
    {
        MemoryContextSwitchTo(context);
        pulled.error = CopyErrorData();
        FlushErrorState();
        RollbackAndReleaseCurrentSubTransaction();
        MemoryContextSwitchTo(context);
        CurrentResourceOwner = owner;
        why = Decline::kRow;
    }
    PG_END_TRY();
    return why;
}

uint32_t RowCount(const Plan *below)
{
    return IsA(below, ValuesScan)
               ? static_cast<uint32_t>(list_length(reinterpret_cast<const ValuesScan *>(below)->values_lists))
               : 1;
}

} // namespace

Decline JudgeInsert(const QueryDesc *query_desc)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    Plan *below = outerPlan(modify);
    effects = {};
    if (IsA(below, Result)) {
        if (outerPlan(below) != nullptr || reinterpret_cast<Result *>(below)->resconstantqual != nullptr)
            return Decline::kStatement;
    } else if (IsA(below, ValuesScan)) {
        if (below->qual != NIL)
            return Decline::kStatement;
        if (RowCount(below) > kMostRows)
            return Decline::kTooLarge;
        WalkEffects(reinterpret_cast<Node *>(reinterpret_cast<ValuesScan *>(below)->values_lists), &effects);
    } else
        return Decline::kStatement;
    WalkEffects(reinterpret_cast<Node *>(below->targetlist), &effects);
    if (effects.refused)
        return Decline::kExpression;
    ListCell *cell;
    foreach (cell, TargetOf(query_desc)->ri_WithCheckOptions)
        if (lfirst_node(WithCheckOption, cell)->kind != WCO_RLS_INSERT_CHECK)
            return Decline::kRowSecurity;
    return Decline::kNone;
}

// ON CONFLICT DO NOTHING, if it says so.
static void NoteConflicts(const QueryDesc *query_desc, RequestSlot *slot)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    slot->skips_conflicts = modify->onConflictAction == ONCONFLICT_NOTHING;
    slot->arbiter_count = 0;
    ListCell *cell;
    foreach (cell, modify->arbiterIndexes)
        slot->arbiters[slot->arbiter_count++] = lfirst_oid(cell);
}

Decline PullRows(QueryDesc *query_desc, RequestSlot *slot)
{
    const uint32_t count = RowCount(outerPlanState(query_desc->planstate)->plan);
    slot->kind = RequestKind::kInsert;
    slot->key_offset = slot->key_size = 0;
    slot->returns = false;
    NoteConflicts(query_desc, slot);
    pulled = {};
    pulled.body = slot->payload;
    pulled.room = RequestSlot::kPayloadSize;
    pulled.earlier = static_cast<MinimalTuple *>(palloc(sizeof(MinimalTuple) * count));
    Decline why = PullRow(query_desc);
    if (why == Decline::kNone && count > 1)
        why = PullFurtherRows(query_desc, count);
    if (why != Decline::kNone)
        return why;
    slot->rows = static_cast<uint16_t>(pulled.packed);
    slot->bytes = static_cast<uint32_t>(pulled.size);
    if (pulled.grown) {
        char *large = AllocateLargePayload(slot, pulled.size);
        if (large == nullptr)
            return Decline::kTooLarge;
        memcpy(large, pulled.body, pulled.size);
    }
    // The transaction has written, as far as one can know.
    if (TransactionIdIsValid(GetTopTransactionIdIfAny()) && (effects.foreign || !effects.sequence))
        return Decline::kHasXid;
    return Decline::kNone;
}

bool PulledRowsNeedSnapshot()
{
    return pulled.external;
}

void PulledRowsBack(QueryDesc *query_desc)
{
    PlanState *below = outerPlanState(query_desc->planstate);
    auto *back = static_cast<RowsBack *>(palloc0(sizeof(RowsBack)));
    back->original = below->ExecProcNode;
    back->slot = ExecInitExtraTupleSlot(query_desc->estate, ExecGetResultType(below), &TTSOpsMinimalTuple);
    rows_back = back;
    below->ExecProcNode = NextRow;
}

namespace
{

// A row is sent after its commit, when nothing may fail any more: not the conversion to the client's
// encoding, and no output function but the server's own.
bool IsSentAsItIs()
{
    const int client = pg_get_client_encoding();
    return client == GetDatabaseEncoding() || client == PG_SQL_ASCII;
}

bool IsPrintedByTheServer(Oid type)
{
    if (type >= FirstNormalObjectId)
        type = getBaseType(type);
    return type < FirstNormalObjectId || type_is_enum(type);
}

} // namespace

bool ReturnsColumnsOnly(const QueryDesc *query_desc)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    if (modify->returningLists == NIL)
        return true;
    if (!IsSentAsItIs())
        return false;
    ListCell *cell;
    foreach (cell, static_cast<const List *>(linitial(modify->returningLists))) {
        const Expr *expression = lfirst_node(TargetEntry, cell)->expr;
        if (!IsA(expression, Var))
            return false;
        const auto *column = reinterpret_cast<const Var *>(expression);
        if (!IsReturnedColumn(column, linitial_int(modify->resultRelations)) ||
            !IsPrintedByTheServer(column->vartype))
            return false;
    }
    return true;
}

uint64_t ReturnedColumns(const QueryDesc *query_desc)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    uint64_t columns = 0;
    ListCell *cell;
    foreach (cell, modify->returningLists == NIL
                       ? NIL
                       : static_cast<const List *>(linitial(modify->returningLists)))
        columns |= RequestSlot::ColumnBit(
            reinterpret_cast<const Var *>(lfirst_node(TargetEntry, cell)->expr)->varattno);
    return columns;
}

namespace
{

// The table or partition that a row was inserted into.
ResultRelInfo *TargetOfRow(const QueryDesc *query_desc, uint32_t relation)
{
    ResultRelInfo *target = TargetOf(query_desc);
    ListCell *cell;
    if (RelationGetRelid(target->ri_RelationDesc) == relation)
        return target;
    foreach (cell, query_desc->estate->es_tuple_routing_result_relations) {
        target = static_cast<ResultRelInfo *>(lfirst(cell));
        if (RelationGetRelid(target->ri_RelationDesc) == relation)
            return target;
    }
    elog(ERROR, "pg_weir: the partition of a row is gone");
}

struct Sender {
    QueryDesc *query_desc;
    ResultRelInfo *target; // of `row`
    TupleTableSlot *row;
};

void SendRow(Sender *sender, ResultRelInfo *target, MinimalTuple tuple)
{
    DestReceiver *receiver = sender->query_desc->dest;
    if (sender->row == nullptr || target != sender->target)
        sender->row = ExecInitExtraTupleSlot(sender->query_desc->estate,
                                             RelationGetDescr(target->ri_RelationDesc), &TTSOpsMinimalTuple);
    sender->target = target;
    ProjectionInfo *returning = target->ri_projectReturning;
    ExprContext *context = returning->pi_exprContext;
    ResetExprContext(context);
    ExecStoreMinimalTuple(tuple, sender->row, false);
    sender->row->tts_tableOid = RelationGetRelid(target->ri_RelationDesc);
    context->ecxt_scantuple = sender->row;
    context->ecxt_outertuple = sender->row;
    receiver->receiveSlot(ExecProject(returning), receiver);
}

} // namespace

void SendReturning(QueryDesc *query_desc, const RequestSlot &slot)
{
    DestReceiver *receiver = query_desc->dest;
    Sender sender = {query_desc, nullptr, nullptr};
    receiver->rStartup(receiver, query_desc->operation, query_desc->tupDesc);
    if (slot.kind == RequestKind::kInsert)
        ForEachRow(slot, [&sender](const RowHeader *header, MinimalTuple tuple) {
            if (header->skipped == 0)
                SendRow(&sender, TargetOfRow(sender.query_desc, header->relation), tuple);
        });
    else if (slot.affected > 0)
        SendRow(&sender, TargetOf(query_desc), reinterpret_cast<MinimalTuple>(ReturnedRowOf(slot)));
    receiver->rShutdown(receiver);
}

} // namespace weir
