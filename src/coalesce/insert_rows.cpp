#include "coalesce/insert_rows.hpp"

#include "pg/compat.hpp"

extern "C" {
#include "access/transam.h"
#include "access/xact.h"
#include "catalog/pg_proc_d.h"
#include "executor/nodeModifyTable.h"
#include "nodes/execnodes.h"
#include "nodes/nodeFuncs.h"
#include "nodes/plannodes.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
}

namespace weir
{

namespace
{

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

struct RowsBack {
    ExecProcNodeMtd original;
    TupleTableSlot *held; // of the plan below: the last row that was pulled, not packed
    TupleTableSlot *slot;
    MinimalTuple *packed;
    uint32_t packed_count;
    uint32_t next;
};

struct Pulled {
    TupleTableSlot *held;
    uint32_t packed; // rows that are in the payload, before `held`
};

Pulled pulled;
RowsBack *rows_back; // of the one statement that can have them

TupleTableSlot *NextRow(PlanState *below)
{
    RowsBack *back = rows_back;
    if (back->next < back->packed_count)
        return ExecStoreMinimalTuple(back->packed[back->next++], back->slot, false);
    below->ExecProcNode = back->original;
    if (back->held != nullptr)
        return back->held;
    return ExecProcNode(below);
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

bool PackRow(TupleTableSlot *row, RequestSlot *slot)
{
    const MinimalTuple tuple = ExecCopySlotMinimalTuple(row);
    const RowHeader header = {};
    const size_t size = sizeof(header) + MAXALIGN(tuple->t_len);
    const bool fits =
        (tuple->t_infomask & HEAP_HASEXTERNAL) == 0 && size <= RequestSlot::kPayloadSize - slot->bytes;
    if (fits) {
        memcpy(slot->payload + slot->bytes, &header, sizeof(header));
        memcpy(slot->payload + slot->bytes + sizeof(header), tuple, tuple->t_len);
        slot->bytes += static_cast<uint32_t>(size);
        slot->rows++;
    }
    heap_free_minimal_tuple(tuple);
    return fits;
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
        if (below->qual != NIL || RowCount(below) > UINT16_MAX)
            return Decline::kStatement;
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
    EState *estate = query_desc->estate;
    PlanState *below = outerPlanState(query_desc->planstate);
    ResultRelInfo *target = TargetOf(query_desc);
    const uint32_t count = RowCount(below->plan);
    slot->kind = RequestKind::kInsert;
    slot->key_offset = slot->key_size = slot->bytes = 0;
    slot->rows = 0;
    slot->returns = false;
    NoteConflicts(query_desc, slot);
    pulled = {};
    for (uint32_t i = 0; i < count; i++) {
        ResetPerTupleExprContext(estate);
        pulled.packed = slot->rows;
        pulled.held = ExecProcNode(below);
        if (!PackRow(FinishRow(estate, target, pulled.held), slot))
            return Decline::kTooLarge;
    }
    // The transaction has written, as far as one can know.
    if (TransactionIdIsValid(GetTopTransactionIdIfAny()) && (effects.foreign || !effects.sequence))
        return Decline::kHasXid;
    return Decline::kNone;
}

void PulledRowsBack(QueryDesc *query_desc, const RequestSlot &slot)
{
    PlanState *below = outerPlanState(query_desc->planstate);
    auto *back = static_cast<RowsBack *>(palloc0(sizeof(RowsBack)));
    back->original = below->ExecProcNode;
    back->held = pulled.held;
    back->slot = ExecInitExtraTupleSlot(query_desc->estate, ExecGetResultType(below), &TTSOpsMinimalTuple);
    back->packed = static_cast<MinimalTuple *>(palloc(sizeof(MinimalTuple) * (slot.rows + 1u)));
    // The last row that was pulled is still in the plan's own slot.
    ForEachRow(slot, [back](RowHeader *, MinimalTuple tuple) {
        if (back->packed_count < pulled.packed)
            back->packed[back->packed_count++] = CopyMinimalTuple(tuple);
    });
    rows_back = back;
    below->ExecProcNode = NextRow;
}

bool ReturnsColumnsOnly(const QueryDesc *query_desc)
{
    const auto *modify = reinterpret_cast<const ModifyTable *>(query_desc->plannedstmt->planTree);
    if (modify->returningLists == NIL)
        return true;
    ListCell *cell;
    foreach (cell, static_cast<const List *>(linitial(modify->returningLists))) {
        const Expr *expression = lfirst_node(TargetEntry, cell)->expr;
        if (!IsA(expression, Var) || !IsReturnedColumn(reinterpret_cast<const Var *>(expression),
                                                       linitial_int(modify->resultRelations)))
            return false;
    }
    return true;
}

void SendReturning(QueryDesc *query_desc, const RequestSlot &slot)
{
    ResultRelInfo *target = TargetOf(query_desc);
    DestReceiver *receiver = query_desc->dest;
    receiver->rStartup(receiver, query_desc->operation, query_desc->tupDesc);
    TupleTableSlot *row = ExecInitExtraTupleSlot(
        query_desc->estate, RelationGetDescr(target->ri_RelationDesc), &TTSOpsMinimalTuple);
    const auto send = [=](MinimalTuple tuple) {
        ProjectionInfo *returning = target->ri_projectReturning;
        ExprContext *context = returning->pi_exprContext;
        ResetExprContext(context);
        ExecStoreMinimalTuple(tuple, row, false);
        row->tts_tableOid = RelationGetRelid(target->ri_RelationDesc);
        context->ecxt_scantuple = row;
        context->ecxt_outertuple = row;
        receiver->receiveSlot(ExecProject(returning), receiver);
    };
    if (slot.kind == RequestKind::kInsert)
        ForEachRow(slot, [send](const RowHeader *header, MinimalTuple tuple) {
            if (header->skipped == 0)
                send(tuple);
        });
    else if (slot.affected > 0)
        send(reinterpret_cast<MinimalTuple>(const_cast<char *>(slot.payload) + slot.returned_offset));
    receiver->rShutdown(receiver);
}

} // namespace weir
